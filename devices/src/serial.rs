//! A serial port (16550A): vm-superio's registers, with flow control towards the host.
//!
//! The host may only hand over bytes that the guest will not lose. A guest listens when it has enabled the
//! receive interrupt and holds RTS; before Linux opens the port it does not, and with CRTSCTS set it drops RTS
//! while its terminal layer is full. Until then the caller keeps its bytes and waits for the eventfd.
//!
//! Where output goes may take none for as long as it likes (a pager, a stopped reader). That holds up the vCPU that
//! prints and nobody else: the registers and the output have a lock each.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, GuestRequest};

/// The number of ports.
pub const PORTS: u64 = 8;

/// Transmitter holding register: what the guest prints (16550D data sheet, table II).
const THR: u8 = 0;
/// Interrupt enable register, bit 0: received data available (16550D data sheet, table II).
const IER: u8 = 1;
const IER_RECEIVE: u8 = 1 << 0;
/// Modem control register: request to send, and loopback.
const MCR: u8 = 4;
const MCR_RTS: u8 = 1 << 1;
const MCR_LOOP: u8 = 1 << 4;

/// An eventfd that is written to raise an interrupt, or to say that the guest has room for input.
struct Doorbell(EventFd);

impl Trigger for Doorbell {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialEvents for Doorbell {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // Writing to an eventfd fails only when its counter is full, and then it is already readable.
        let _ = self.0.write(1);
    }
}

/// The byte that the guest has just sent, to be written out once the registers are unlocked.
#[derive(Default)]
struct Sent(Option<u8>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = bytes.first().copied();
        Ok(bytes.len().min(1))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Uart = Serial<Doorbell, Doorbell, Sent>;

/// Where output goes.
struct Output {
    writer: Box<dyn Write + Send>,
    /// It has failed, which is told once.
    failed: bool,
}

impl Output {
    fn send(&mut self, byte: u8) {
        let result = self.writer.write_all(&[byte]).and_then(|()| self.writer.flush());
        if let Err(error) = result
            && !std::mem::replace(&mut self.failed, true)
        {
            warn!("the serial console's output is lost: {error}");
        }
    }
}

/// A serial port whose output goes to a writer and whose input comes by [`SerialPort::feed`].
pub struct SerialPort {
    uart: Mutex<Uart>,
    /// Locked before `uart` by who prints, so that bytes keep their order, and while they are written out.
    output: Mutex<Output>,
}

impl SerialPort {
    /// `interrupt` is written to raise the port's interrupt (an edge), `room` whenever [`feed`](Self::feed)
    /// may take more than it did; each byte of output is written to `out` as it comes.
    pub fn new(interrupt: EventFd, room: EventFd, out: Box<dyn Write + Send>) -> Self {
        Self {
            uart: Mutex::new(Serial::with_events(
                Doorbell(interrupt),
                Doorbell(room),
                Sent::default(),
            )),
            output: Mutex::new(Output {
                writer: out,
                failed: false,
            }),
        }
    }

    /// Hands bytes to the guest and returns how many it took: none while it does not listen, else as many as
    /// the FIFO has room for. The rest is the caller's to keep until `room` becomes readable.
    pub fn feed(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        if !listens(&uart) || uart.fifo_capacity() == 0 || bytes.is_empty() {
            return 0;
        }
        match uart.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(error) => {
                debug!("the serial console took no input: {error:?}");
                0
            }
        }
    }

    fn print(&self, value: u8) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = {
            let mut uart = self.lock();
            set_register(&mut uart, THR, value);
            uart.writer_mut().0.take()
        };
        if let Some(byte) = sent {
            output.send(byte);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether bytes handed over now would reach the guest's driver.
///
/// Reading IER and MCR has no side effect, but IER shares its offset with the divisor latch.
fn listens(uart: &Uart) -> bool {
    let state = uart.state();
    state.interrupt_enable & IER_RECEIVE != 0 && state.modem_control & (MCR_RTS | MCR_LOOP) == MCR_RTS
}

fn set_register(uart: &mut Uart, offset: u8, value: u8) {
    if let Err(error) = uart.write(offset, value) {
        debug!("serial console: {error:?}");
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(value), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *value = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        match (u8::try_from(offset), data.first()) {
            (Ok(THR), Some(&value)) => self.print(value),
            (Ok(offset), Some(&value)) => {
                let mut uart = self.lock();
                set_register(&mut uart, offset, value);
                if matches!(offset, IER | MCR) && listens(&uart) {
                    uart.events().in_buffer_empty();
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u64 = 0;
    const LSR: u64 = 5;
    const LSR_DATA_READY: u8 = 1;

    struct Sink(Sender<u8>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            bytes.iter().for_each(|byte| self.0.send(*byte).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        port: Arc<SerialPort>,
        interrupt: EventFd,
        room: EventFd,
        out: Receiver<u8>,
    }

    fn rig() -> Rig {
        let (interrupt, room) = (
            EventFd::new(EFD_NONBLOCK).unwrap(),
            EventFd::new(EFD_NONBLOCK).unwrap(),
        );
        let (sink, out) = channel();
        let port = SerialPort::new(
            interrupt.try_clone().unwrap(),
            room.try_clone().unwrap(),
            Box::new(Sink(sink)),
        );
        Rig {
            port: Arc::new(port),
            interrupt,
            room,
            out,
        }
    }

    impl Rig {
        fn write(&self, offset: u64, value: u8) {
            assert_eq!(self.port.write(offset, &[value]), ControlFlow::Continue(()));
        }

        fn read(&self, offset: u64) -> u8 {
            let mut data = [0xaa];
            self.port.read(offset, &mut data);
            data[0]
        }

        fn listen(&self) {
            self.write(MCR.into(), MCR_RTS);
            self.write(IER.into(), IER_RECEIVE);
        }

        fn drain(&self) -> Vec<u8> {
            std::iter::from_fn(|| (self.read(LSR) & LSR_DATA_READY != 0).then(|| self.read(DATA))).collect()
        }
    }

    #[test]
    fn output_goes_to_the_writer() {
        let rig = rig();
        b"hello".iter().for_each(|byte| rig.write(DATA, *byte));
        assert_eq!(rig.out.try_iter().collect::<Vec<_>>(), b"hello");
    }

    /// Says that it was called and returns only when it is let go.
    struct Stuck {
        called: Sender<()>,
        release: Receiver<()>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.called.send(()).unwrap();
            self.release.recv().unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_that_is_stuck_holds_up_who_prints_and_nobody_else() {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (called, was_called) = channel();
        let (let_go, release) = channel();
        let port = SerialPort::new(eventfd(), eventfd(), Box::new(Stuck { called, release }));
        assert_eq!(port.write(MCR.into(), &[MCR_RTS]), ControlFlow::Continue(()));
        assert_eq!(port.write(IER.into(), &[IER_RECEIVE]), ControlFlow::Continue(()));
        let (taken, was_taken) = channel();
        let taken = thread::scope(|scope| {
            scope.spawn(|| port.write(DATA, b"x"));
            was_called.recv().unwrap();
            scope.spawn(|| taken.send(port.feed(b"ab")).unwrap());
            let taken = was_taken.recv_timeout(Duration::from_secs(10));
            let_go.send(()).unwrap();
            taken
        });
        assert_eq!(taken, Ok(2));
    }

    #[test]
    fn input_waits_until_the_guest_listens() {
        let rig = rig();
        assert_eq!(rig.port.feed(b"abc"), 0);
        rig.write(IER.into(), IER_RECEIVE);
        assert_eq!(rig.port.feed(b"abc"), 0, "RTS is not held");
        assert!(rig.room.read().is_err(), "nothing says there is room");
        rig.write(MCR.into(), MCR_RTS);
        assert_eq!(rig.room.read().unwrap(), 1);
        assert_eq!(rig.port.feed(b"abc"), 3);
        assert!(rig.interrupt.read().unwrap() >= 1);
        assert_eq!(rig.drain(), b"abc");
    }

    #[test]
    fn no_byte_of_a_long_input_is_lost_or_reordered() {
        let rig = rig();
        rig.listen();
        let input: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        let (mut fed, mut got) = (0, Vec::new());
        while got.len() < input.len() {
            let taken = rig.port.feed(&input[fed..]);
            assert!(taken > 0, "a drained FIFO takes input");
            fed += taken;
            got.extend(rig.drain());
            assert!(rig.room.read().is_ok(), "a drained FIFO says there is room");
        }
        assert_eq!(got, input);
    }

    #[test]
    fn dropping_rts_holds_input_back_and_raising_it_asks_for_more() {
        let rig = rig();
        rig.listen();
        rig.write(MCR.into(), 0);
        let _ = rig.room.read();
        assert_eq!(rig.port.feed(b"held"), 0);
        rig.write(MCR.into(), MCR_RTS);
        assert!(rig.room.read().is_ok());
        assert_eq!(rig.port.feed(b"held"), 4);
    }

    #[test]
    fn a_port_in_loopback_takes_no_input() {
        let rig = rig();
        rig.listen();
        rig.write(MCR.into(), MCR_RTS | MCR_LOOP);
        assert_eq!(rig.port.feed(b"abc"), 0);
    }

    #[test]
    fn no_access_panics() {
        let rig = rig();
        for offset in 0..PORTS {
            for value in 0..=255 {
                for width in 0..=8 {
                    assert_eq!(
                        rig.port.write(offset, &vec![value; width]),
                        ControlFlow::Continue(())
                    );
                    rig.port.read(offset, &mut vec![0; width]);
                }
            }
        }
    }
}

//! A serial port (16550A): vm-superio's registers, with flow control towards the host.
//!
//! The host may only hand over bytes that the guest will not lose. A guest listens when it has enabled the
//! receive interrupt and holds RTS; before Linux opens the port it does not, and with CRTSCTS set it drops RTS
//! while its terminal layer is full. Until then the caller keeps its bytes and waits for the eventfd.
//!
//! Where output goes may take none for as long as it likes (a pager, a stopped reader). That holds up the vCPU that
//! prints and nobody else: the registers and the output have a lock each.

mod state;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, GuestRequest};
use crate::counters;
use crate::counters::{Counters, Sample};

pub use state::{SerialState, SerialStateError};

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

counters! {
    struct Counts {
        /// Bytes that the guest printed.
        output_bytes,
        /// Bytes that the guest was given.
        input_bytes,
        /// Bytes that were printed and could not be written out.
        lost_bytes,
    }
}

/// Where output goes.
struct Output {
    writer: Box<dyn Write + Send>,
    /// It has failed, which is told once.
    failed: bool,
}

impl Output {
    fn send(&mut self, byte: u8, counts: &Counts) {
        let result = self.writer.write_all(&[byte]).and_then(|()| self.writer.flush());
        counts.output_bytes.add(1);
        counts.lost_bytes.add(result.is_err().into());
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
    /// Of output while `output` is locked, of input while `uart` is.
    counts: Counts,
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
            counts: Counts::default(),
        }
    }

    /// How much went through it.
    pub fn counts(&self) -> Vec<Sample> {
        self.counts.read()
    }

    /// Hands bytes to the guest and returns how many it took: none while it does not listen, else as many as
    /// the FIFO has room for. The rest is the caller's to keep until `room` becomes readable.
    pub fn feed(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        if !listens(&uart) || uart.fifo_capacity() == 0 || bytes.is_empty() {
            return 0;
        }
        match uart.enqueue_raw_bytes(bytes) {
            Ok(taken) => {
                self.counts.input_bytes.add(taken as u64);
                taken
            }
            Err(error) => {
                debug!("the serial console took no input: {error:?}");
                0
            }
        }
    }

    /// What is needed to go on with the port later. What the guest has printed is with the writer; what it has not read is
    /// in the state.
    pub fn save(&self) -> SerialState {
        self.lock().state().into()
    }

    /// Puts the port where another one was. An interrupt that the guest has not answered is raised again, and if it
    /// listens, who has input is told that there is room.
    ///
    /// # Errors
    /// The state is damaged, and nothing has changed; or the host has no descriptor left.
    pub fn restore(&self, saved: &SerialState) -> Result<(), SerialStateError> {
        let mut uart = self.lock();
        let interrupt = Doorbell(uart.interrupt_evt().0.try_clone()?);
        let room = Doorbell(uart.events().0.try_clone()?);
        *uart = Serial::from_state(&saved.into(), interrupt, room, Sent::default())?;
        if listens(&uart) {
            uart.events().in_buffer_empty();
        }
        Ok(())
    }

    fn print(&self, value: u8) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = {
            let mut uart = self.lock();
            set_register(&mut uart, THR, value);
            uart.writer_mut().0.take()
        };
        if let Some(byte) = sent {
            output.send(byte, &self.counts);
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

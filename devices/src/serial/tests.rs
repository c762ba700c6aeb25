//! Tests of the serial port, with a guest that writes registers.

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
fn another_port_goes_on_with_registers_input_and_an_unanswered_interrupt() {
    let rig = rig();
    rig.listen();
    assert_eq!(rig.port.feed(b"typed"), 5);
    let saved = rig.port.save();
    let other = self::rig();
    other.port.restore(&saved).unwrap();
    assert!(other.interrupt.read().is_ok(), "there is input");
    assert!(other.room.read().is_ok(), "and room for more");
    assert_eq!(other.port.feed(b"!"), 1);
    assert_eq!(other.drain(), b"typed!");
    assert_eq!(other.port.save().modem_control, MCR_RTS);
    other.write(DATA, b'x');
    assert_eq!(other.out.try_iter().collect::<Vec<_>>(), b"x");
}

#[test]
fn a_damaged_state_is_refused_and_changes_nothing() {
    let rig = rig();
    rig.listen();
    let damaged = SerialState {
        received: vec![0; 65],
        ..rig.port.save()
    };
    let refused = rig.port.restore(&damaged).unwrap_err();
    assert!(matches!(refused, SerialStateError::Damaged), "{refused}");
    assert!(rig.drain().is_empty());
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

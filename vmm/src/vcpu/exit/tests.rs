//! Tests of the answers to exits, without KVM.

use std::sync::{Arc, Mutex};

use devices::BusDevice;

use super::*;

/// An answer that nobody counts.
fn handle(exit: Exit<'_>, buses: &Buses) -> Next {
    super::handle(exit, buses, &ExitCounts::default())
}

/// Counts up on each read, keeps what is written, and asks for a reset when that is 0xfe.
#[derive(Default)]
struct Probe {
    reads: Mutex<u8>,
    written: Mutex<Vec<Vec<u8>>>,
}

impl BusDevice for Probe {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let mut reads = self.reads.lock().unwrap();
        *reads += 1;
        data.fill(*reads);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        self.written.lock().unwrap().push(data.to_vec());
        if data[0] == 0xfe {
            ControlFlow::Break(GuestRequest::Reset)
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn buses() -> (Arc<Probe>, Buses) {
    let probe = Arc::new(Probe::default());
    let mut buses = Buses::default();
    buses.pio.insert(0x10, 4, probe.clone()).unwrap();
    buses.mmio.insert(0xd000_0000, 0x1000, probe.clone()).unwrap();
    (probe, buses)
}

#[test]
fn a_string_of_outs_is_one_access_a_value() {
    let (probe, buses) = buses();
    let out = |width, data: &'static [u8]| {
        handle(
            Exit::PortOut {
                port: 0x10,
                width,
                data,
            },
            &buses,
        )
    };
    assert_eq!(out(1, &[1, 2, 3]), Next::Enter);
    assert_eq!(out(2, &[4, 5, 6, 7]), Next::Enter);
    assert_eq!(
        *probe.written.lock().unwrap(),
        [vec![1], vec![2], vec![3], vec![4, 5], vec![6, 7]]
    );
}

#[test]
fn a_string_of_ins_is_one_access_a_value() {
    let (_, buses) = buses();
    let mut data = [0; 4];
    assert_eq!(
        handle(
            Exit::PortIn {
                port: 0x11,
                width: 2,
                data: &mut data
            },
            &buses
        ),
        Next::Enter
    );
    assert_eq!(data, [1, 1, 2, 2]);
}

#[test]
fn nothing_is_written_after_a_request() {
    let (probe, buses) = buses();
    let exit = Exit::PortOut {
        port: 0x10,
        width: 1,
        data: &[1, 0xfe, 3],
    };
    assert_eq!(handle(exit, &buses), Next::Request(GuestRequest::Reset));
    assert_eq!(*probe.written.lock().unwrap(), [[1], [0xfe]]);
}

#[test]
fn memory_accesses_reach_the_device_at_their_address() {
    let (probe, buses) = buses();
    let mut data = [0; 8];
    assert_eq!(
        handle(
            Exit::Mmio {
                addr: 0xd000_0ff8,
                data: &mut data,
                write: false
            },
            &buses
        ),
        Next::Enter
    );
    assert_eq!(data, [1; 8]);
    assert_eq!(
        handle(
            Exit::Mmio {
                addr: 0xd000_0ff9,
                data: &mut data,
                write: false
            },
            &buses
        ),
        Next::Enter
    );
    assert_eq!(data, [0xff; 8], "an access that reaches past the device floats");
    assert_eq!(
        handle(
            Exit::Mmio {
                addr: 0xd000_0000,
                data: &mut [7, 8],
                write: true
            },
            &buses
        ),
        Next::Enter
    );
    assert_eq!(*probe.written.lock().unwrap(), [[7, 8]]);
    let reset = handle(
        Exit::Mmio {
            addr: 0xd000_0000,
            data: &mut [0xfe],
            write: true,
        },
        &buses,
    );
    assert_eq!(reset, Next::Request(GuestRequest::Reset));
}

#[test]
fn what_is_no_devices_concern_goes_to_the_caller() {
    let (_, buses) = buses();
    assert_eq!(handle(Exit::EmulationFailed, &buses), Next::CompleteInstruction);
    assert_eq!(
        handle(Exit::MsrWrite { index: 1, value: 2 }, &buses),
        Next::WriteMsr { index: 1, value: 2 }
    );
    assert_eq!(handle(Exit::Interrupted, &buses), Next::Check);
    assert_eq!(
        handle(Exit::Crashed(Crash::TripleFault), &buses),
        Next::Crash(Crash::TripleFault)
    );
}

#[test]
fn an_access_of_no_width_does_not_panic() {
    let (_, buses) = buses();
    assert_eq!(
        handle(
            Exit::PortOut {
                port: 0x10,
                width: 0,
                data: &[]
            },
            &buses
        ),
        Next::Enter
    );
}

//! The keyboard controller, of which a machine without a keyboard keeps one thing: its reset line.

use std::ops::ControlFlow;

use crate::bus::{BusDevice, GuestRequest};

/// The number of ports, from 0x60 (data) to 0x64 (status and command).
pub const PORTS: u64 = 5;

/// The status and command port, relative to the data port.
const COMMAND: u64 = 4;
/// Command "pulse output line 0", which is wired to the CPU's reset (IBM PS/2 Technical Reference, 8042).
const PULSE_RESET: u8 = 0xfe;
/// Status: output buffer full, input buffer empty.
///
/// An output buffer that never drains is how Linux's driver knows, after sixteen reads, that there is no
/// controller; and an input buffer that is always empty lets a reset command through without a wait.
const STATUS: u8 = 0x01;

/// The i8042's reset line.
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (COMMAND, [status, ..]) = (offset, data) {
            *status = STATUS;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        match (offset, data) {
            (COMMAND, [PULSE_RESET, ..]) => ControlFlow::Break(GuestRequest::Reset),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_on_the_command_port_resets() {
        assert_eq!(I8042.write(4, &[0xfe]), ControlFlow::Break(GuestRequest::Reset));
        assert_eq!(I8042.write(0, &[0xfe]), ControlFlow::Continue(()));
        assert_eq!(I8042.write(4, &[0x20]), ControlFlow::Continue(()));
        assert_eq!(I8042.write(4, &[]), ControlFlow::Continue(()));
    }

    #[test]
    fn is_always_ready_for_a_command_and_never_for_a_driver() {
        let mut status = [0];
        I8042.read(4, &mut status);
        assert_eq!(status[0] & 0b10, 0, "input buffer empty");
        assert_eq!(status[0] & 0b01, 1, "output buffer full");
    }
}

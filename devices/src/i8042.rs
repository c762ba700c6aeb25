//! The keyboard controller, of which a machine without a keyboard keeps one thing: its reset line.
//!
//! Its two ports lie apart, with the speaker's, which is KVM's, between them.

use std::ops::ControlFlow;

use crate::bus::{BusDevice, GuestRequest};

/// Command "pulse output line 0", which is wired to the CPU's reset (IBM PS/2 Technical Reference, 8042).
const PULSE_RESET: u8 = 0xfe;
/// Status: output buffer full, input buffer empty.
///
/// An output buffer that never drains is how Linux's driver knows, after sixteen reads, that there is no
/// controller; and an input buffer that is always empty lets a reset command through without a wait.
const STATUS: u8 = 0x01;

/// Port 0x60: no keyboard's data.
pub struct DataPort;

impl BusDevice for DataPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> ControlFlow<GuestRequest> {
        ControlFlow::Continue(())
    }
}

/// Port 0x64: status and commands.
pub struct CommandPort;

impl BusDevice for CommandPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(STATUS);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        match data {
            [PULSE_RESET, ..] => ControlFlow::Break(GuestRequest::Reset),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_on_the_command_port_resets() {
        assert_eq!(
            CommandPort.write(0, &[0xfe]),
            ControlFlow::Break(GuestRequest::Reset)
        );
        assert_eq!(CommandPort.write(0, &[0x20]), ControlFlow::Continue(()));
        assert_eq!(CommandPort.write(0, &[]), ControlFlow::Continue(()));
        assert_eq!(DataPort.write(0, &[0xfe]), ControlFlow::Continue(()));
    }

    #[test]
    fn is_always_ready_for_a_command_and_never_for_a_driver() {
        let mut status = [0];
        CommandPort.read(0, &mut status);
        assert_eq!(status[0] & 0b10, 0, "input buffer empty");
        assert_eq!(status[0] & 0b01, 1, "output buffer full");
    }
}

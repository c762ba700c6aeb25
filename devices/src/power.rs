//! ACPI's power registers: sleep control, sleep status and reset, one port each.
//!
//! The registers of a hardware-reduced platform (ACPI 6.5 §4.8.3.7 and §4.8.3.6): no fixed events, no timer,
//! no SCI. The only sleep state is S5, soft off.

use std::ops::ControlFlow;

use crate::bus::{BusDevice, GuestRequest};

/// The number of ports: sleep control, sleep status, reset.
pub const PORTS: u64 = 3;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;

/// SLP_EN, bit 5 of the sleep control register (ACPI 6.5 table 4.20).
const SLP_EN: u8 = 1 << 5;
/// SLP_TYPx, bits 2 to 4 of the same.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;

/// The ACPI power registers of one machine.
pub struct PowerRegisters {
    s5_sleep_type: u8,
    reset_value: u8,
}

impl PowerRegisters {
    /// `s5_sleep_type` (0 to 7) is what the DSDT's `\_S5` names, `reset_value` what the FADT's RESET_VALUE is.
    pub fn new(s5_sleep_type: u8, reset_value: u8) -> Self {
        Self {
            s5_sleep_type,
            reset_value,
        }
    }
}

impl BusDevice for PowerRegisters {
    /// Sleep status has WAK_STS clear (the machine never wakes); the others are write-only and read as 0.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        let Some(&value) = data.first() else {
            return ControlFlow::Continue(());
        };
        let sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
        match offset {
            SLEEP_CONTROL if value & SLP_EN != 0 && sleep_type == self.s5_sleep_type => {
                ControlFlow::Break(GuestRequest::PowerOff)
            }
            RESET if value == self.reset_value => ControlFlow::Break(GuestRequest::Reset),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_off_only_by_the_right_sleep_type_with_sleep_enable() {
        let power = PowerRegisters::new(5, 1);
        assert_eq!(
            power.write(0, &[0x34]),
            ControlFlow::Break(GuestRequest::PowerOff)
        );
        assert_eq!(
            power.write(0, &[0x14]),
            ControlFlow::Continue(()),
            "SLP_EN is clear"
        );
        assert_eq!(
            power.write(0, &[0x30]),
            ControlFlow::Continue(()),
            "another sleep type"
        );
        assert_eq!(
            power.write(1, &[0x34]),
            ControlFlow::Continue(()),
            "the status register"
        );
    }

    #[test]
    fn resets_only_by_the_reset_value() {
        let power = PowerRegisters::new(5, 1);
        assert_eq!(power.write(2, &[1]), ControlFlow::Break(GuestRequest::Reset));
        assert_eq!(power.write(2, &[0xff]), ControlFlow::Continue(()));
    }

    #[test]
    fn reads_as_zero_whatever_the_width() {
        let power = PowerRegisters::new(5, 1);
        for width in 1..=3 {
            let mut data = vec![0xaa; width];
            power.read(0, &mut data);
            assert_eq!(data, vec![0; width]);
        }
    }
}

//! The two ends of the machine.

use crate::interrupts;
use crate::ports;

/// ACPI's sleep control register of the hardware-reduced model (ACPI 6.5 §4.8.3.7), where posada has it: SLP_EN, sleep type 5.
const SLEEP_CONTROL: u16 = 0x600;
const POWER_OFF: u8 = 1 << 5 | 5 << 2;
/// The pvpanic device, and its bit for a guest that has panicked (QEMU docs/specs/pvpanic).
const PVPANIC: u16 = 0x505;
const PANICKED: u8 = 1;

/// Switches the machine off: posada's exit status is 0.
pub fn off() -> ! {
    // SAFETY: the device ends the machine.
    unsafe { ports::write(SLEEP_CONTROL, POWER_OFF) };
    interrupts::halt_forever()
}

/// Tells that the guest has crashed: posada's exit status is 3.
pub fn crash() -> ! {
    // SAFETY: the device ends the machine.
    unsafe { ports::write(PVPANIC, PANICKED) };
    interrupts::halt_forever()
}

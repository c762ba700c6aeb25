//! I/O ports, which the TSS allows to user mode.

use core::arch::asm;

/// Writes a byte to a port.
///
/// # Safety
/// The device must not write to memory that Rust knows of.
pub unsafe fn write(port: u16, value: u8) {
    // SAFETY: the caller vouches for the device's effect.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Reads a byte from a port.
pub fn read(port: u16) -> u8 {
    let value;
    // SAFETY: no device of this machine does more than answer when a port is read.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

//! Device interrupts: the I/O APIC's pins, and how a program sleeps until one comes.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::tables::FIRST_INTERRUPT;
use crate::traps;

/// Pins of the I/O APIC (82093AA data sheet, §3.2).
pub const PINS: usize = 24;

/// How many interrupts there were in all. The four are written by the handler in `traps.rs`.
pub static TOTAL: AtomicU32 = AtomicU32::new(0);
/// How many there were from each pin.
pub static COUNTS: [AtomicU32; PINS] = [const { AtomicU32::new(0) }; PINS];
/// What the virtio device at each pin has said in its InterruptStatus.
pub static PENDING: [AtomicU32; PINS] = [const { AtomicU32::new(0) }; PINS];
/// The address of the virtio device at each pin, or 0.
pub static DEVICES: [AtomicU32; PINS] = [const { AtomicU32::new(0) }; PINS];

/// The I/O APIC's index register; the data register is 0x10 above (82093AA data sheet, §3.1).
const IO_APIC: usize = 0xfec0_0000;
/// The spurious interrupt vector register of the local APIC, and its bit that enables it (Intel SDM Vol 3 §11.9).
const SPURIOUS_VECTOR: usize = 0xfee0_00f0;
const APIC_ENABLE: u32 = 1 << 8;
/// Where the PIC's interrupts come in (Intel SDM Vol 3 §11.5.1): masked, because they are the I/O APIC's once more, and
/// with the vectors of exceptions.
const LINT0: usize = 0xfee0_0350;
const MASKED: u32 = 1 << 16;

/// Lets the device at `pin` interrupt this CPU, on an edge. `device` is the address of a virtio device's registers, or 0.
///
/// # Panics
/// If the I/O APIC has no such pin.
pub fn enable(pin: u32, device: u32) {
    assert!(
        (pin as usize) < PINS,
        "interrupt {pin}: the I/O APIC has {PINS} pins"
    );
    DEVICES[pin as usize].store(device, Ordering::Relaxed);
    let entry = 0x10 + 2 * pin;
    // SAFETY: these are the APICs' registers, mapped to themselves; the handler for the vector is in place.
    unsafe {
        write(LINT0, MASKED);
        write(SPURIOUS_VECTOR, APIC_ENABLE | 0xff);
        // The upper half is the destination: the APIC with the id 0. The lower: fixed, edge, active high, not masked.
        write(IO_APIC, entry + 1);
        write(IO_APIC + 0x10, 0);
        write(IO_APIC, entry);
        write(IO_APIC + 0x10, u32::from(FIRST_INTERRUPT) + pin);
    }
}

unsafe fn write(address: usize, value: u32) {
    // SAFETY: the caller vouches for the register.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) }
}

/// How many interrupts there have been. Ask before looking for work, and hand the answer to [`wait`].
pub fn seen() -> u32 {
    TOTAL.load(Ordering::Acquire)
}

/// Halts the CPU until there has been an interrupt since [`seen`] gave this number; returns at once if there has been.
pub fn wait(seen: u32) {
    traps::halt(seen);
}

/// Halts for good: nothing is left to be done, and no interrupt changes that.
pub fn halt_forever() -> ! {
    loop {
        wait(seen());
    }
}

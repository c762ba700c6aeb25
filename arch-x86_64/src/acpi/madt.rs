//! The multiple APIC description table: CPUs, I/O APIC, and how legacy interrupts are wired (§5.2.12).

use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// Revision that goes with ACPI 6.5's structures.
const REVISION: u8 = 5;
const HEADER_SIZE: u32 = 36;
/// Flags bit 0, PCAT_COMPAT: KVM's irqchip has a PC's two 8259s.
const PCAT_COMPAT: u32 = 1;

// Interrupt controller structure types (§5.2.12).
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;

const CPU_ENABLED: u8 = 1;
/// KVM's I/O APIC has id 0 after a reset. Unlike in the MP table, it may equal a CPU's: they share no APIC bus.
const IO_APIC_ID: u8 = 0;
const ALL_PROCESSORS: u8 = 0xff;

/// The MADT for CPUs with the APIC ids 0 to `cpus` - 1. acpi_tables' own MADT lacks the flags and the NMI structure.
pub(super) fn madt(cpus: u8) -> Sdt {
    let mut table = Sdt::new(
        *b"APIC",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut body = Vec::with_capacity(48 + usize::from(cpus) * 8);
    body.extend_from_slice(&(layout::LOCAL_APIC.0 as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for cpu in 0..cpus {
        body.extend_from_slice(&[LOCAL_APIC, 8, cpu, cpu, CPU_ENABLED, 0, 0, 0]);
    }
    body.extend_from_slice(&[IO_APIC, 12, IO_APIC_ID, 0]);
    body.extend_from_slice(&(layout::IO_APIC.0 as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // its first global system interrupt
    // No interrupt source override: ISA interrupts have their own numbers as global ones, with ISA's edge and polarity.
    body.extend_from_slice(&[LOCAL_APIC_NMI, 6, ALL_PROCESSORS, 0, 0, 1]); // LINT1
    // In one piece: every append sums the whole table up again.
    table.append_slice(&body);
    table
}

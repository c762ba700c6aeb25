//! The MP table: CPUs, I/O APIC and interrupt wiring for kernels without ACPI.
//!
//! Layouts and numbers are those of Intel's MultiProcessor Specification, version 1.4, chapter 4.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout;

/// Why the MP table was not written.
#[derive(Debug, Error)]
pub enum MpTableError {
    /// No CPU, or more than APIC ids allow.
    #[error("an MP table cannot describe {0} CPUs; give the guest 1 to {max}", max = layout::MAX_CPUS)]
    Cpus(u32),
    /// There is no RAM where the table goes.
    #[error(
        "the MP table cannot be written at {address:#x}: {source}; the guest needs at least 1 MiB of memory"
    )]
    Write {
        /// Where it goes.
        address: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

const SPEC_REVISION_1_4: u8 = 4;
/// Header of the configuration table (§4.2).
const HEADER_SIZE: usize = 44;
/// Length and checksum of the header, filled in last.
const LENGTH_OFFSET: usize = 4;
const CHECKSUM_OFFSET: usize = 7;
const ENTRY_COUNT_OFFSET: usize = 34;

// Entry types (Table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

// CPU flags (Table 4-4).
const CPU_ENABLED: u8 = 1;
const CPU_BOOTSTRAP: u8 = 2;
/// Version of an integrated local APIC and of the I/O APIC, as KVM's report them.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// Family 6, and a CPU with FPU and APIC: kernels read the real values by CPUID (§4.3.1 has these for CPUs without).
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

// Interrupt types (Table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

const ISA_BUS: u8 = 0;
/// Pins of the I/O APIC. A real ISA bus has 16 lines; Linux takes a device's line from its entry all the same.
const PINS: u8 = 24;
/// ISA IRQ 2 is the cascade of the second 8259 and comes from no device.
const CASCADE_IRQ: u8 = 2;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the MP floating pointer and configuration table for `cpus` CPUs, whose APIC ids are 0 to `cpus` - 1.
///
/// # Errors
/// Too many or no CPUs, or a guest without low memory.
pub fn write<M: GuestMemoryBackend>(mem: &M, cpus: u32) -> Result<(), MpTableError> {
    let cpu_count = u8::try_from(cpus)
        .ok()
        .filter(|&n| n > 0 && cpus <= layout::MAX_CPUS);
    let table = configuration_table(cpu_count.ok_or(MpTableError::Cpus(cpus))?);
    put(mem, &table, layout::MP_TABLE)?;
    put(mem, &floating_pointer(), layout::MP_FLOATING_POINTER)
}

fn put<M: GuestMemoryBackend>(mem: &M, bytes: &[u8], at: GuestAddress) -> Result<(), MpTableError> {
    mem.write_slice(bytes, at).map_err(|source| MpTableError::Write {
        address: at.0,
        source,
    })
}

/// §4.1. Feature bytes 0: a configuration table is present, and the 8259s are not hidden behind an IMCR.
fn floating_pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(layout::MP_TABLE.0 as u32).to_le_bytes());
    pointer[8] = 1; // length in paragraphs
    pointer[9] = SPEC_REVISION_1_4;
    pointer[10] = checksum(&pointer);
    pointer
}

fn configuration_table(cpus: u8) -> Vec<u8> {
    // The I/O APIC's id must differ from all CPUs' (§3.6.6).
    let io_apic_id = cpus;
    let mut table = header();
    let mut entries: u16 = 0;
    let mut add = |entry: &[u8]| {
        table.extend_from_slice(entry);
        entries += 1;
    };
    for cpu in 0..cpus {
        add(&processor(cpu));
    }
    add(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    add(&io_apic(io_apic_id));
    for irq in (0..PINS).filter(|&irq| irq != CASCADE_IRQ) {
        // Flags 0: polarity and trigger as the bus has it, for ISA edge and active high. The last byte is the pin.
        add(&[IO_INTERRUPT, INT, 0, 0, ISA_BUS, irq, io_apic_id, irq]);
    }
    // The 8259s' output at LINT0 of the boot CPU, NMI at LINT1 of every CPU, as a PC has them.
    add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    // 44 + 254 * 20 + 27 * 8 = 5340 bytes at most.
    let length = table.len() as u16;
    table[LENGTH_OFFSET..LENGTH_OFFSET + 2].copy_from_slice(&length.to_le_bytes());
    table[ENTRY_COUNT_OFFSET..ENTRY_COUNT_OFFSET + 2].copy_from_slice(&entries.to_le_bytes());
    table[CHECKSUM_OFFSET] = checksum(&table);
    table
}

fn header() -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_SIZE);
    header.extend_from_slice(b"PCMP");
    header.extend_from_slice(&[0, 0, SPEC_REVISION_1_4, 0]);
    header.extend_from_slice(b"POSADA  ");
    header.extend_from_slice(b"VM          ");
    header.extend_from_slice(&[0; 8]); // no OEM table, its size, the entry count
    header.extend_from_slice(&(layout::LOCAL_APIC.0 as u32).to_le_bytes());
    header.extend_from_slice(&[0; 4]); // no extended table
    header
}

fn processor(cpu: u8) -> [u8; 20] {
    let flags = CPU_ENABLED | if cpu == 0 { CPU_BOOTSTRAP } else { 0 };
    let mut entry = [0; 20];
    entry[..4].copy_from_slice(&[PROCESSOR, cpu, LOCAL_APIC_VERSION, flags]);
    entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
    entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
    entry
}

fn io_apic(id: u8) -> [u8; 8] {
    const ENABLED: u8 = 1;
    let mut entry = [IO_APIC, id, IO_APIC_VERSION, ENABLED, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&(layout::IO_APIC.0 as u32).to_le_bytes());
    entry
}

/// What makes the bytes' sum 0 modulo 256.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::images::{MIB, bytes_at, guest};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The entries of the table that the floating pointer leads to, checked as a kernel checks it.
    fn entries(cpus: u32) -> Vec<Vec<u8>> {
        let mem = guest(2 * MIB);
        write(&mem, cpus).unwrap();
        let pointer = bytes_at(&mem, 0x9_fc00, 16);
        assert_eq!(
            (&pointer[..4], pointer[8], pointer[9], sum(&pointer)),
            (&b"_MP_"[..], 1, 4, 0)
        );
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        let header = bytes_at(&mem, at.into(), 44);
        let length = u16::from_le_bytes([header[4], header[5]]);
        let count = u16::from_le_bytes([header[34], header[35]]);
        let table = bytes_at(&mem, at.into(), length.into());
        assert_eq!((&table[..4], table[6], sum(&table)), (&b"PCMP"[..], 4, 0));
        assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
        assert!(u64::from(at) + u64::from(length) <= 0x9_fc00);
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let [kind, ..] = rest {
            let (entry, after) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = after;
        }
        assert_eq!(entries.len(), usize::from(count));
        entries
    }

    #[test]
    fn every_cpu_has_an_entry() {
        for cpus in [1, 2, 7, 64, 254] {
            let entries = entries(cpus);
            let found: Vec<_> = entries
                .iter()
                .filter(|e| e[0] == 0)
                .map(|e| (e[1], e[3]))
                .collect();
            let expected: Vec<_> = (0..cpus as u8)
                .map(|id| (id, if id == 0 { 3 } else { 1 }))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn interrupts_are_wired_as_kvm_does() {
        let entries = entries(3);
        assert!(entries.contains(&b"\x01\0ISA   ".to_vec()));
        assert!(
            entries.contains(&vec![2, 3, 0x11, 1, 0, 0, 0xc0, 0xfe]),
            "I/O APIC 3 at 0xfec00000"
        );
        let isa: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == 3)
            .map(|e| (e[1], e[5], e[6], e[7]))
            .collect();
        let expected: Vec<_> = (0..24)
            .filter(|irq| *irq != 2)
            .map(|irq| (0, irq, 3, irq))
            .collect();
        assert_eq!(isa, expected);
        let local: Vec<_> = entries.iter().filter(|e| e[0] == 4).cloned().collect();
        assert_eq!(
            local,
            [vec![4, 3, 0, 0, 0, 0, 0, 0], vec![4, 1, 0, 0, 0, 0, 0xff, 1]]
        );
    }

    #[test]
    fn what_cannot_be_described_is_an_error() {
        for cpus in [0, 255, 256 + 1, u32::MAX] {
            assert!(matches!(write(&guest(MIB), cpus), Err(MpTableError::Cpus(n)) if n == cpus));
        }
        let error = write(&guest(0x9_e000), 1).unwrap_err().to_string();
        assert!(error.contains("cannot be written at 0x9e000"), "{error}");
    }
}

//! Tests of the ACPI tables: found and checked as a kernel does it, their fields by the offsets of the specification.

use super::*;
use crate::kernel::images::{MIB, bytes_at, guest};

type Memory = vm_memory::GuestMemoryMmap<()>;

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn assert_sum(bytes: &[u8]) {
    assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
}

/// The table at `address`, its header checked (§5.2.6).
fn table(mem: &Memory, address: u64, signature: &[u8; 4], revision: u8) -> Vec<u8> {
    let length = number(&bytes_at(mem, address + 4, 4));
    let table = bytes_at(mem, address, length as usize);
    assert_eq!((&table[..4], table[8]), (&signature[..], revision));
    assert_eq!(
        (&table[10..16], &table[16..24]),
        (&b"POSADA"[..], &b"POSADAVM"[..])
    );
    assert_sum(&table);
    table
}

/// FADT, MADT and DSDT, found from the RSDP.
fn tables(cpus: u32, virtio: &[VirtioSlot]) -> [Vec<u8>; 3] {
    let mem = guest(2 * MIB);
    let address = write(&mem, &AcpiInfo { cpus, virtio }).unwrap();
    assert_eq!(address, GuestAddress(0xe0000));
    let rsdp = bytes_at(&mem, address.0, 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_sum(&rsdp[..20]);
    assert_sum(&rsdp);
    let xsdt = table(&mem, number(&rsdp[24..32]), b"XSDT", 1);
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(&mem, number(&xsdt[36..44]), b"FACP", 6);
    let madt = table(&mem, number(&xsdt[44..52]), b"APIC", 5);
    let dsdt = table(&mem, number(&fadt[140..148]), b"DSDT", 2);
    assert!(
        bytes_at(&mem, 0x10_0000, MIB as usize)
            .iter()
            .all(|byte| *byte == 0)
    );
    [fadt, madt, dsdt]
}

fn contains(table: &[u8], part: &[u8]) -> bool {
    table.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_fadt_is_hardware_reduced() {
    let [fadt, ..] = tables(1, &[]);
    assert_eq!(fadt.len(), 276);
    let flags = number(&fadt[112..116]);
    // WBINVD, no fixed buttons or RTC wake-up, reset register, headless, hardware-reduced.
    assert_eq!(
        flags,
        1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 12 | 1 << 20
    );
    assert_eq!(number(&fadt[109..111]), 1 << 2, "IAPC_BOOT_ARCH: no VGA");
    let port = |number: u16| [&[1, 8, 0, 1][..], &u64::from(number).to_le_bytes()].concat();
    assert_eq!(fadt[116..128], port(0x602));
    assert_eq!(fadt[128], 1, "RESET_VALUE");
    assert_eq!(fadt[244..256], port(0x600));
    assert_eq!(fadt[256..268], port(0x601));
    assert_eq!(fadt[268..276], *b"POSADAVM");
    // No fixed hardware: no event, control, timer or GPE block has an address.
    assert!(fadt[56..88].iter().chain(&fadt[148..244]).all(|byte| *byte == 0));
}

#[test]
fn the_madt_has_every_cpu() {
    for cpus in [1, 2, 7, 64, 254] {
        let [_, madt, _] = tables(cpus, &[]);
        assert_eq!(number(&madt[36..40]), 0xfee0_0000);
        assert_eq!(number(&madt[40..44]), 1, "PCAT_COMPAT");
        let mut rest = &madt[44..];
        let mut found = Vec::new();
        while let [_, length, ..] = rest {
            let (entry, after) = rest.split_at(usize::from(*length));
            found.push(entry.to_vec());
            rest = after;
        }
        let mut expected: Vec<Vec<u8>> = (0..cpus as u8).map(|id| vec![0, 8, id, id, 1, 0, 0, 0]).collect();
        expected.push(vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]); // I/O APIC
        expected.push(vec![4, 6, 0xff, 0, 0, 1]); // NMI at LINT1
        assert_eq!(found, expected);
    }
}

#[test]
fn the_dsdt_has_the_legacy_devices() {
    let [.., dsdt] = tables(1, &[]);
    assert!(
        contains(&dsdt, b"\x08_S5_\x12\x06\x02\x0a\x05\x0a\x05"),
        "_S5 is {{5, 5}}"
    );
    // EISA ids as §19.3.4 encodes them, and resource descriptors as §6.4 does.
    let com1_io = [0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8];
    let com1_irq = [0x89, 6, 0, 0x03, 1, 4, 0, 0, 0];
    assert!(contains(&dsdt, b"COM1\x08_HID\x0c\x41\xd0\x05\x01"), "PNP0501");
    assert!(contains(
        &dsdt,
        &[com1_io.as_slice(), &com1_irq, &[0x79]].concat()
    ));
    assert!(contains(&dsdt, b"RTC_\x08_HID\x0c\x41\xd0\x0b\x00"), "PNP0B00");
    assert!(contains(&dsdt, &[0x47, 1, 0x70, 0, 0x70, 0, 1, 2, 0x79]));
    assert!(contains(&dsdt, b"PEVT\x08_HID\x0dQEMU0001\0"));
    assert!(contains(&dsdt, &[0x47, 1, 0x05, 0x05, 0x05, 0x05, 1, 1, 0x79]));
    assert!(dsdt.len() < 384, "{} bytes for a guest to interpret", dsdt.len());
}

#[test]
fn the_generation_id_and_the_power_button_are_notified_by_the_generic_event_device() {
    let [.., dsdt] = tables(1, &[]);
    // Names as drivers look for them, and ADDR (§19.6.102, Package): the address's halves.
    let generation_id = [
        &b"VMGN\x08_HID\x0dPSDA0001\0"[..],
        b"\x08_CID\x0dVM_Gen_Counter\0\x08_DDN\x0dVM_Gen_Counter\0",
        b"\x08ADDR\x12\x08\x02\x0c\x00\xc0\x09\x00\x00",
    ]
    .concat();
    assert!(contains(&dsdt, &generation_id), "{dsdt:x?}");
    assert!(contains(&dsdt, b"PWRB\x08_HID\x0c\x41\xd0\x0c\x0c"), "PNP0C0C");
    let generic_event = [
        &b"GED_\x08_HID\x0dACPI0013\0\x08_CRS"[..],
        &[0x11, 0x17, 0x0a, 20], // a buffer (§20.2.5.4) of 20 bytes
        // Extended interrupts (§6.4.3.6), edge-triggered consumers, lines 9 and 13.
        &[0x89, 6, 0, 0b0011, 1, 9, 0, 0, 0],
        &[0x89, 6, 0, 0b0011, 1, 13, 0, 0, 0, 0x79, 0],
        // A method of one argument (§20.2.5.2): if (§20.2.5.3) that is 13, Notify (PWRB, 0x80), else Notify (VMGN, 0x80).
        b"\x14\x1c_EVT\x01",
        b"\xa0\x0c\x93\x68\x0a\x0d\x86PWRB\x0a\x80",
        b"\xa1\x08\x86VMGN\x0a\x80",
    ]
    .concat();
    assert!(contains(&dsdt, &generic_event), "{dsdt:x?}");
}

#[test]
fn the_generation_id_is_where_the_guest_has_no_ram() {
    use crate::boot::memory_map::{RangeKind, memory_map};
    let (start, end) = (
        layout::GENERATION_ID.0,
        layout::GENERATION_ID.0 + layout::GENERATION_ID_SIZE as u64,
    );
    assert!(start.is_multiple_of(8));
    let map = memory_map(&guest(2 * MIB));
    let around = map
        .iter()
        .find(|range| range.start <= start && end <= range.start + range.size);
    assert_eq!(around.map(|range| range.kind), Some(RangeKind::Reserved));
}

#[test]
fn each_virtio_device_has_its_registers_its_line_and_its_own_id() {
    let slots = layout::virtio_slots(9, layout::Interrupts::IoApic).unwrap();
    let [.., without] = tables(1, &[]);
    let [.., with] = tables(1, &slots);
    assert!(!contains(&without, b"LNRO0005"));
    let last = [
        &b"VR08\x08_HID\x0dLNRO0005\0"[..],
        // Memory32Fixed (§6.4.3.4), writable; an extended interrupt (§6.4.3.6), edge-triggered consumer, line 5.
        &[0x86, 9, 0, 1, 0x00, 0x80, 0x00, 0xd0, 0x00, 0x10, 0, 0],
        &[0x89, 6, 0, 0b0011, 1, 5, 0, 0, 0],
        b"\x08_UID\x0a\x08",
    ];
    for part in last {
        assert!(contains(&with, part), "{part:x?} in {with:x?}");
    }
}

#[test]
fn what_cannot_be_described_is_an_error() {
    let mem = guest(2 * MIB);
    for cpus in [0, 255, 256 + 1, u32::MAX] {
        let error = write(&mem, &AcpiInfo { cpus, virtio: &[] }).unwrap_err();
        assert!(matches!(error, AcpiError::Cpus(n) if n == cpus));
    }
    let many = vec![layout::virtio_slots(1, layout::Interrupts::IoApic).unwrap()[0]; 3000];
    let error = write(
        &mem,
        &AcpiInfo {
            cpus: 1,
            virtio: &many,
        },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("but only 131072 are kept for them"), "{error}");
    let error = write(&guest(0xe_0000), &AcpiInfo { cpus: 1, virtio: &[] })
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot be written at 0xe0000"), "{error}");
}

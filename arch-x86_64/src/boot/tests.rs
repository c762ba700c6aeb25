//! Tests of the boot data, read back from guest memory as a kernel reads it.

use linux_loader::loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestMemoryMmap;

use super::memory_map::{MemoryRange, RangeKind, memory_map};
use super::*;
use crate::kernel::images::{MIB, bytes_at, guest, loaded};

const GIB: u64 = 1 << 30;
const INITRD: InitrdRange = InitrdRange {
    addr: GuestAddress(3 * MIB),
    size: 12345,
};

/// Memory with RAM as [`layout::ram_ranges`] has it; pages that are not touched cost nothing.
fn large_guest(bytes: u64) -> GuestMemoryMmap<()> {
    let ranges: Vec<_> = layout::ram_ranges(bytes)
        .into_iter()
        .map(|(at, size)| (at, size as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn info<'a>(kernel: &'a LoadedKernel, cmdline: &'a CStr) -> BootInfo<'a> {
    BootInfo {
        kernel,
        initrd: Some(INITRD),
        cmdline,
        rsdp: Some(layout::RSDP),
    }
}

fn range(start: u64, end: u64, kind: RangeKind) -> MemoryRange {
    MemoryRange {
        start,
        size: end - start,
        kind,
    }
}

#[test]
fn the_memory_map_leaves_reserved_ranges_out() {
    use RangeKind::{Ram, Reserved};
    let low = [range(0, 0x9c000, Ram), range(0x9c000, MIB, Reserved)];
    let kvm = range(0xfffb_c000, 0xfffc_0000, Reserved);
    let small = memory_map(&guest(128 * MIB));
    assert_eq!(small, [low[0], low[1], range(MIB, 128 * MIB, Ram), kvm]);
    let large = memory_map(&large_guest(5 * GIB));
    assert_eq!(
        large,
        [
            low[0],
            low[1],
            range(MIB, 3 * GIB, Ram),
            kvm,
            range(4 * GIB, 6 * GIB, Ram)
        ]
    );
    let tiny = memory_map(&guest(0x9_c000));
    assert_eq!(tiny, [low[0], low[1], kvm]);
}

#[test]
fn the_zero_page_describes_the_guest() {
    let mem = large_guest(5 * GIB);
    let kernel = loaded(MIB, 2 * MIB);
    write(&mem, &info(&kernel, c"console=ttyS0")).unwrap();
    let page: boot_params = mem.read_obj(layout::ZERO_PAGE).unwrap();
    let hdr = page.hdr;
    assert_eq!(
        ({ hdr.boot_flag }, { hdr.header }, { hdr.version }),
        (0xaa55, 0x5372_6448, 0x20f)
    );
    assert_eq!((hdr.type_of_loader, hdr.loadflags), (0xff, 1));
    assert_eq!(
        ({ hdr.ramdisk_image }, { hdr.ramdisk_size }),
        (3 * MIB as u32, 12345)
    );
    assert_eq!(({ hdr.cmd_line_ptr }, { hdr.cmdline_size }), (0x20000, 2047));
    assert_eq!(bytes_at(&mem, 0x20000, 14), b"console=ttyS0\0");
    assert_eq!({ page.acpi_rsdp_addr }, 0xe0000);
    assert_eq!(
        page.sentinel, 0,
        "a sentinel makes the kernel wipe what the loader wrote"
    );
    let map: Vec<_> = page.e820_table[..usize::from(page.e820_entries)]
        .iter()
        .map(|entry| ({ entry.addr }, { entry.size }, { entry.r#type }))
        .collect();
    let expected: Vec<_> = memory_map(&mem)
        .iter()
        .map(|range| (range.start, range.size, range.kind as u32))
        .collect();
    assert_eq!(map, expected);
}

#[test]
fn a_bzimage_keeps_its_own_header() {
    let mem = guest(8 * MIB);
    let own = setup_header {
        boot_flag: 0xaa55,
        version: 0x20c,
        setup_sects: 27,
        pref_address: 0x123_4567,
        init_size: 0x89_abcd,
        ..Default::default()
    };
    let kernel = LoadedKernel {
        setup_header: Some(own),
        cmdline_max: 100,
        ..loaded(MIB, 2 * MIB)
    };
    let plain = BootInfo {
        initrd: None,
        rsdp: None,
        ..info(&kernel, c"")
    };
    write(&mem, &plain).unwrap();
    let page: boot_params = mem.read_obj(layout::ZERO_PAGE).unwrap();
    let expected = setup_header {
        type_of_loader: 0xff,
        cmd_line_ptr: 0x20000,
        cmdline_size: 100,
        ..own
    };
    assert_eq!(page.hdr, expected);
    assert_eq!({ page.acpi_rsdp_addr }, 0);
}

/// Walks the page tables as a CPU does (Intel SDM Vol 3 §4.5.4).
fn translate(mem: &GuestMemoryMmap<()>, cr3: u64, address: u64) -> Option<u64> {
    let mut table = cr3;
    for level in [39, 30, 21] {
        let entry: u64 = mem
            .read_obj(GuestAddress(table + (address >> level & 0x1ff) * 8))
            .unwrap();
        if entry & 0x3 != 0x3 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
        if level == 21 {
            assert_eq!(entry & 0x80, 0x80, "only 2 MiB pages end the walk");
        }
    }
    Some(table + (address & 0x1f_ffff))
}

#[test]
fn page_tables_map_4_gib_to_themselves() {
    let mem = guest(8 * MIB);
    let kernel = loaded(MIB, 2 * MIB);
    let registers = write(&mem, &info(&kernel, c"")).unwrap();
    for page in 0..2048 {
        let address = (page << 21) + page * 7;
        assert_eq!(translate(&mem, registers.cr3, address), Some(address));
    }
    for beyond in [4 * GIB, 5 * GIB, 512 * GIB, 1 << 46] {
        assert_eq!(translate(&mem, registers.cr3, beyond), None, "{beyond:#x}");
    }
}

#[test]
fn linux64_starts_in_long_mode() {
    let mem = guest(8 * MIB);
    let kernel = LoadedKernel {
        entry: GuestAddress(MIB + 0x200),
        ..loaded(MIB, 2 * MIB)
    };
    let registers = write(&mem, &info(&kernel, c"")).unwrap();
    assert_eq!(
        (registers.rip, registers.rsi, registers.rsp),
        (MIB + 0x200, 0x7000, 0x8ff0)
    );
    // Protection, paging; PAE; long mode enabled and active; interrupts off.
    assert_eq!(registers.cr0 & 0x8000_0001, 0x8000_0001);
    assert_eq!(
        (registers.cr4, registers.efer, registers.rflags),
        (0x20, 0x500, 2)
    );
    assert_eq!((registers.cs.selector, registers.ss.selector), (0x10, 0x18));
    assert!(registers.cs.l && !registers.cs.db);
    assert_eq!(gdt_entry(&mem, &registers, registers.cs), 0x00af_9b00_0000_ffff);
    assert_eq!(gdt_entry(&mem, &registers, registers.ds), 0x00cf_9300_0000_ffff);
}

fn gdt_entry(mem: &GuestMemoryMmap<()>, registers: &Registers, segment: Segment) -> u64 {
    assert!(segment.selector | 7 <= registers.gdt.limit);
    mem.read_obj(GuestAddress(registers.gdt.base + u64::from(segment.selector)))
        .unwrap()
}

#[test]
fn pvh_starts_in_protected_mode_with_start_info() {
    let mem = large_guest(5 * GIB);
    let kernel = LoadedKernel {
        protocol: EntryProtocol::Pvh,
        ..loaded(MIB, 2 * MIB)
    };
    let registers = write(&mem, &info(&kernel, c"quiet")).unwrap();
    assert_eq!((registers.rip, registers.rbx), (MIB, 0x6000));
    assert_eq!(
        (registers.cr0, registers.cr3, registers.cr4, registers.efer),
        (0x11, 0, 0, 0)
    );
    assert!(registers.cs.db && !registers.cs.l);
    assert_eq!(
        (registers.tr.base, registers.tr.limit, registers.tr.type_),
        (0, 0x67, 0xb)
    );
    assert_eq!(gdt_entry(&mem, &registers, registers.cs), 0x00cf_9b00_0000_ffff);

    let start: hvm_start_info = mem.read_obj(GuestAddress(registers.rbx)).unwrap();
    assert_eq!((start.magic, start.version, start.flags), (0x336e_c578, 1, 0));
    assert_eq!((start.cmdline_paddr, start.rsdp_paddr), (0x20000, 0xe0000));
    assert_eq!(bytes_at(&mem, 0x20000, 6), b"quiet\0");
    let module: hvm_modlist_entry = mem.read_obj(GuestAddress(start.modlist_paddr)).unwrap();
    assert_eq!((start.nr_modules, module.paddr, module.size), (1, 3 * MIB, 12345));
    let map: Vec<_> = (0..u64::from(start.memmap_entries))
        .map(|i| {
            mem.read_obj::<hvm_memmap_table_entry>(GuestAddress(start.memmap_paddr + i * 24))
                .unwrap()
        })
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    let expected: Vec<_> = memory_map(&mem)
        .iter()
        .map(|range| (range.start, range.size, range.kind as u32))
        .collect();
    assert_eq!(map, expected);
}

#[test]
fn pvh_without_an_initrd_has_no_modules() {
    let mem = guest(8 * MIB);
    let kernel = LoadedKernel {
        protocol: EntryProtocol::Pvh,
        ..loaded(MIB, 2 * MIB)
    };
    write(
        &mem,
        &BootInfo {
            initrd: None,
            rsdp: None,
            ..info(&kernel, c"")
        },
    )
    .unwrap();
    let start: hvm_start_info = mem.read_obj(layout::PVH_START_INFO).unwrap();
    assert_eq!(
        (start.nr_modules, start.modlist_paddr, start.rsdp_paddr),
        (0, 0, 0)
    );
}

#[test]
fn the_command_line_has_the_kernels_limit() {
    let mem = guest(8 * MIB);
    let kernel = LoadedKernel {
        cmdline_max: 10,
        ..loaded(MIB, 2 * MIB)
    };
    assert!(write(&mem, &info(&kernel, c"0123456789")).is_ok());
    let error = write(&mem, &info(&kernel, c"0123456789a"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the kernel command line has 11 bytes, but this kernel takes 10 at most; shorten it"
    );
    let boundless = LoadedKernel {
        cmdline_max: usize::MAX,
        ..kernel
    };
    let long = std::ffi::CString::new(vec![b'x'; layout::CMDLINE_SIZE - 1]).unwrap();
    assert!(write(&mem, &info(&boundless, &long)).is_ok());
    let longer = std::ffi::CString::new(vec![b'x'; layout::CMDLINE_SIZE]).unwrap();
    let error = write(&mem, &info(&boundless, &longer)).unwrap_err();
    assert!(matches!(
        error,
        BootError::CmdlineTooLong {
            length: 65536,
            limit: 65535
        }
    ));
}

#[test]
fn a_guest_without_low_memory_is_an_error() {
    for protocol in [EntryProtocol::Linux64, EntryProtocol::Pvh] {
        let kernel = LoadedKernel {
            protocol,
            ..loaded(MIB, 2 * MIB)
        };
        let error = write(&guest(0x7000), &info(&kernel, c""))
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot be written at 0x20000"), "{error}");
    }
}

#[test]
fn boot_data_stays_in_low_memory() {
    for protocol in [EntryProtocol::Linux64, EntryProtocol::Pvh] {
        let mem = guest(2 * MIB);
        let kernel = LoadedKernel {
            protocol,
            ..loaded(MIB, 2 * MIB)
        };
        write(&mem, &info(&kernel, c"x")).unwrap();
        let reserved = bytes_at(&mem, 0x9_c000, (2 * MIB - 0x9_c000) as usize);
        assert!(reserved.iter().all(|byte| *byte == 0));
        assert!(
            bytes_at(&mem, 0, 0x500).iter().all(|byte| *byte == 0),
            "vectors and BIOS data area"
        );
    }
}

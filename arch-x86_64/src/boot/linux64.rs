//! The 64-bit Linux boot protocol: zero page, page tables, long mode.
//!
//! "Boot protocol" is Documentation/arch/x86/boot.rst of Linux, "zero page" its zero-page.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::memory_map::memory_map;
use super::{BOOT_CS, BootError, BootInfo, flat_registers, put, put_slice, write_gdt};
use crate::layout;
use crate::registers::{Registers, Segment};

/// "must contain 0xAA55" (boot protocol, boot_flag).
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", the setup header's magic.
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// The newest protocol version whose fields are filled in here: 2.15.
const PROTOCOL_VERSION: u16 = 0x20f;
/// type_of_loader: "undefined", what a loader without an assigned number says.
const LOADER_UNDEFINED: u8 = 0xff;
/// loadflags bit 0, LOADED_HIGH: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// What x86-64 kernels are aligned to unless configured otherwise (CONFIG_PHYSICAL_ALIGN, 2 MiB).
const KERNEL_ALIGNMENT: u32 = 2 << 20;

// Control register bits: Intel SDM Vol 3 §2.5 and §2.2.1.
const CR0_PE: u64 = 1 << 0;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

// Page table bits: Intel SDM Vol 3 §4.5.4.
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 1 << 7;
/// Accessed and dirty are set now, so that the page walker need not write them later.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE: u64 = 4096;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// Page directories, of 1 GiB each.
const DIRECTORIES: u64 = 4;

/// Writes everything and returns the registers.
pub(super) fn write<M: GuestMemoryBackend>(mem: &M, info: &BootInfo<'_>) -> Result<Registers, BootError> {
    put(mem, "zero page", &zero_page(mem, info)?, layout::ZERO_PAGE)?;
    write_page_tables(mem)?;
    let code = Segment::code64(BOOT_CS);
    let gdt = write_gdt(mem, code)?;
    Ok(Registers {
        rip: info.kernel.entry.0,
        rsi: layout::ZERO_PAGE.0,
        // What Linux itself sets first (CR0_STATE), so that it changes nothing when it does.
        cr0: CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG,
        cr3: layout::BOOT_PAGE_TABLES.0,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..flat_registers(code, gdt)
    })
}

/// The setup header for the kernel: the image's own where it has one, else what an ELF image leaves to the loader.
fn header(info: &BootInfo<'_>) -> setup_header {
    let mut header = info.kernel.setup_header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HDRS,
        version: PROTOCOL_VERSION,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    });
    header.type_of_loader = LOADER_UNDEFINED;
    // All addresses are below 4 GiB, so the ext_* halves stay 0.
    header.cmd_line_ptr = layout::CMDLINE.0 as u32;
    header.cmdline_size = info.kernel.cmdline_max as u32;
    if let Some(initrd) = info.initrd {
        header.ramdisk_image = initrd.addr.0 as u32;
        header.ramdisk_size = initrd.size as u32;
    }
    header
}

fn zero_page<M: GuestMemoryBackend>(mem: &M, info: &BootInfo<'_>) -> Result<boot_params, BootError> {
    let mut params = boot_params {
        hdr: header(info),
        ..Default::default()
    };
    params.acpi_rsdp_addr = info.rsdp.map_or(0, |address| address.0);
    let map = memory_map(mem);
    let limit = params.e820_table.len();
    if map.len() > limit {
        return Err(BootError::TooManyRanges {
            entries: map.len(),
            limit,
        });
    }
    params.e820_entries = map.len() as u8;
    for (entry, range) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.size,
            r#type: range.kind as u32,
        };
    }
    Ok(params)
}

/// Maps the first 4 GiB to themselves in 2 MiB pages.
///
/// The protocol demands only the kernel, the zero page and the command line. The whole 4 GiB cost 12 KiB more, next to
/// the tables needed anyway, and let a guest without page tables of its own reach its initrd and its devices.
/// 1 GiB pages would need a CPU that has them.
fn write_page_tables<M: GuestMemoryBackend>(mem: &M) -> Result<(), BootError> {
    const TABLE: u64 = PRESENT_WRITABLE | ACCESSED;
    const LEAF: u64 = PRESENT_WRITABLE | ACCESSED | DIRTY | LARGE_PAGE;
    let pml4 = layout::BOOT_PAGE_TABLES.0;
    let pdpt = pml4 + PAGE;
    let directories = pdpt + PAGE;
    put_entries(mem, pml4, [pdpt | TABLE])?;
    put_entries(
        mem,
        pdpt,
        (0..DIRECTORIES).map(|i| (directories + i * PAGE) | TABLE),
    )?;
    let pages = DIRECTORIES * PAGE / size_of::<u64>() as u64;
    put_entries(mem, directories, (0..pages).map(|i| (i * LARGE_PAGE_SIZE) | LEAF))
}

fn put_entries<M: GuestMemoryBackend>(
    mem: &M,
    at: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<(), BootError> {
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    put_slice(mem, "page tables", &bytes, GuestAddress(at))
}

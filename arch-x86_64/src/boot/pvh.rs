//! The PVH boot protocol: `hvm_start_info`, 32-bit protected mode without paging.
//!
//! Xen's docs/misc/pvh.pandoc ("x86/HVM direct boot ABI") and public/arch-x86/hvm/start_info.h.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::memory_map::memory_map;
use super::{BOOT_CS, BootError, BootInfo, flat_registers, put, put_slice, write_gdt};
use crate::layout;
use crate::registers::{Registers, Segment};

/// Version 1 has the memory map.
const START_INFO_VERSION: u32 = 1;
/// "cr0: bit 0 (PE) must be set. All the other writeable bits are cleared." ET cannot be cleared.
const CR0_PE_ET: u64 = 0x11;
/// As many entries as fit up to the zero page.
const MEMORY_MAP_ENTRIES: usize =
    ((layout::ZERO_PAGE.0 - layout::PVH_MEMORY_MAP.0) / size_of::<hvm_memmap_table_entry>() as u64) as usize;

/// Writes everything and returns the registers.
pub(super) fn write<M: GuestMemoryBackend>(mem: &M, info: &BootInfo<'_>) -> Result<Registers, BootError> {
    let map = memory_map(mem);
    if map.len() > MEMORY_MAP_ENTRIES {
        return Err(BootError::TooManyRanges {
            entries: map.len(),
            limit: MEMORY_MAP_ENTRIES,
        });
    }
    let mut table = Vec::with_capacity(map.len() * size_of::<hvm_memmap_table_entry>());
    for range in &map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            reserved: 0,
        };
        table.extend_from_slice(entry.as_slice());
    }
    put_slice(mem, "PVH memory map", &table, layout::PVH_MEMORY_MAP)?;
    let mut start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: START_INFO_VERSION,
        cmdline_paddr: layout::CMDLINE.0,
        rsdp_paddr: info.rsdp.map_or(0, |address| address.0),
        memmap_paddr: layout::PVH_MEMORY_MAP.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = info.initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.addr.0,
            size: initrd.size,
            ..Default::default()
        };
        put(mem, "PVH module list", &module, layout::PVH_MODULES)?;
        start_info.nr_modules = 1;
        start_info.modlist_paddr = layout::PVH_MODULES.0;
    }
    put(mem, "PVH start info", &start_info, layout::PVH_START_INFO)?;
    let code = Segment::code32(BOOT_CS);
    let gdt = write_gdt(mem, code)?;
    Ok(Registers {
        rip: info.kernel.entry.0,
        rbx: layout::PVH_START_INFO.0,
        cr0: CR0_PE_ET,
        ..flat_registers(code, gdt)
    })
}

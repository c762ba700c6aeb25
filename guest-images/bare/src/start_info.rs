//! What the boot protocol hands over: the command line and the memory map (Xen's public/arch-x86/hvm/start_info.h).

use core::ffi::{CStr, c_char};
use core::ptr;

/// `hvm_start_info`, version 1.
#[repr(C)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// `hvm_memmap_table_entry`.
#[repr(C)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// `XEN_HVM_START_MAGIC_VALUE`, and the version that has the memory map.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;

/// Addresses from `start` to just before `end`.
pub struct Range {
    /// The first.
    pub start: usize,
    /// The one after the last.
    pub end: usize,
}

unsafe extern "C" {
    /// The first byte after this program's memory.
    static bare_image_end: u8;
}

impl StartInfo {
    /// Whether it is what the protocol says, so that the other functions can be used.
    pub fn is_sound(&self) -> bool {
        self.magic == MAGIC && self.version >= VERSION
    }

    /// The command line; `None` if it is not UTF-8.
    pub fn command_line(&self) -> Option<&'static str> {
        if self.command_line == 0 {
            return Some("");
        }
        let line = ptr::with_exposed_provenance::<c_char>(self.command_line as usize);
        // SAFETY: the protocol has a NUL-terminated string there. Nothing writes to memory that is not this program's.
        unsafe { CStr::from_ptr(line) }.to_str().ok()
    }

    /// The RAM behind this program, which nobody uses.
    pub fn free_ram(&self) -> Range {
        let start = (&raw const bare_image_end).addr();
        let map = ptr::with_exposed_provenance::<MapEntry>(self.memory_map as usize);
        let mut end = start;
        for index in 0..self.memory_map_entries as usize {
            // SAFETY: the protocol has that many entries there.
            let entry = unsafe { &*map.add(index) };
            let range = entry.address as usize..entry.address.saturating_add(entry.size) as usize;
            if entry.kind == RAM && range.contains(&start) {
                end = range.end;
            }
        }
        Range { start, end }
    }
}

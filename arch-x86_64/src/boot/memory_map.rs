//! The guest's memory map: which addresses are RAM that it may use, and which are reserved.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::layout;

/// What a range of addresses is; the numbers are those of e820 (ACPI 6.5 §15), which PVH uses too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// The guest's to use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One entry of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First byte.
    pub start: u64,
    /// Size in bytes, not 0.
    pub size: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// What no guest gets as RAM, in order: start and end.
const RESERVED: [(u64, u64); 2] = [
    (layout::LOW_RESERVED_START.0, layout::HIGH_RAM_START.0),
    (
        layout::KVM_IDENTITY_MAP.0,
        layout::KVM_IDENTITY_MAP.0 + layout::KVM_RESERVED_SIZE,
    ),
];

/// The memory map for the RAM that `mem` has, in the order of addresses.
pub fn memory_map<M: GuestMemoryBackend>(mem: &M) -> Vec<MemoryRange> {
    let mut map: Vec<MemoryRange> = RESERVED
        .iter()
        .map(|&(start, end)| MemoryRange {
            start,
            size: end - start,
            kind: RangeKind::Reserved,
        })
        .collect();
    for region in mem.iter() {
        let end = region.start_addr().0.saturating_add(region.len());
        let mut start = region.start_addr().0;
        for (reserved_start, reserved_end) in RESERVED {
            push_ram(&mut map, start, end.min(reserved_start));
            start = start.max(reserved_end.min(end));
        }
        push_ram(&mut map, start, end);
    }
    map.sort_by_key(|range| range.start);
    map
}

fn push_ram(map: &mut Vec<MemoryRange>, start: u64, end: u64) {
    if end > start {
        map.push(MemoryRange {
            start,
            size: end - start,
            kind: RangeKind::Ram,
        });
    }
}

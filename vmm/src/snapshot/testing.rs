//! What the tests of snapshots' memory share.

use std::path::PathBuf;

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::ranges::{PAGE_SIZE, PageRanges};
use crate::memory::GuestMemory;

/// A directory that goes with the value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("posada-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// One without a disk, on which it would take long to have many files written.
    pub fn in_memory(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/posada-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Memory with a hole between its regions, which are no whole number of chunks.
pub fn memory() -> GuestMemory {
    let ranges = [
        (GuestAddress(0), 3 << 20),
        (GuestAddress(1 << 32), (5 << 20) + 4096),
    ];
    GuestMemory::from_ranges(&ranges).unwrap()
}

/// Everything in `memory`, in the order of a memory file.
pub fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut all = Vec::new();
    for region in memory.iter() {
        let start = all.len();
        all.resize(start + region.len() as usize, 0);
        memory.read_slice(&mut all[start..], region.start_addr()).unwrap();
    }
    all
}

/// Guest-physical address of a page of the memory file.
pub fn address(memory: &GuestMemory, page: u64) -> GuestAddress {
    let mut offset = page * PAGE_SIZE;
    for region in memory.iter() {
        if offset < region.len() {
            return GuestAddress(region.start_addr().0 + offset);
        }
        offset -= region.len();
    }
    panic!("page {page} is behind the end of memory")
}

/// Fills a page with bytes that are no other page's or value's.
pub fn fill(memory: &GuestMemory, page: u64, value: u8) {
    let bytes: Vec<u8> = (0..PAGE_SIZE).map(|at| value ^ (at + page) as u8 | 1).collect();
    memory.write_slice(&bytes, address(memory, page)).unwrap();
}

/// All pages of `memory`.
pub fn all(memory: &GuestMemory) -> PageRanges {
    PageRanges::all(super::write::total(memory))
}

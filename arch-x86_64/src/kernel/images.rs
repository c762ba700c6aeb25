//! Kernel images for tests, built by hand.

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{EntryProtocol, ImageFormat, LoadedKernel};

/// Guest memory of `bytes` bytes from 0 on.
pub(crate) fn guest(bytes: u64) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

/// A kernel as if loaded from ELF at `start..end`.
pub(crate) fn loaded(start: u64, end: u64) -> LoadedKernel {
    LoadedKernel {
        entry: GuestAddress(start),
        protocol: EntryProtocol::Linux64,
        format: ImageFormat::Elf,
        start: GuestAddress(start),
        end: GuestAddress(end),
        setup_header: None,
        cmdline_max: 2047,
        initrd_max: u64::MAX,
    }
}

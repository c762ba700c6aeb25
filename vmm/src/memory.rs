//! Guest memory: anonymous host memory in huge pages, at the guest-physical addresses the architecture has.

use std::io;

use arch_x86_64::layout;
use nix::sys::sysinfo::sysinfo;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, NewBitmap as _};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

use crate::config::ByteSize;

pub use devices::virtio::{DirtyMap, GuestMemory};

/// Why a guest cannot have the memory that was asked for.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// More than the host has, swap included.
    #[error("memory of {wanted}: the host has {available} MiB of memory and swap in all; ask for less")]
    MoreThanHost {
        /// What was asked for.
        wanted: ByteSize,
        /// What there is, in MiB.
        available: u64,
    },
    /// The host could not map it.
    #[error("memory of {wanted}: the host cannot map it ({cause}); ask for less")]
    Map {
        /// What was asked for.
        wanted: ByteSize,
        /// What the mapping ended with.
        cause: String,
    },
}

/// Maps `size` bytes of guest memory.
///
/// The pages come when they are first touched, as huge pages where the host has them: a first touch is then
/// forty times cheaper. None of it goes into a core dump of the VMM.
pub fn map(size: ByteSize) -> Result<GuestMemory, MemoryError> {
    let available = host_memory();
    if size.0 > available {
        return Err(MemoryError::MoreThanHost {
            wanted: size,
            available: available >> 20,
        });
    }
    let failed = |cause: String| MemoryError::Map { wanted: size, cause };
    let mut regions = Vec::new();
    for (base, len) in layout::ram_ranges(size.0) {
        regions.push(map_region(base, len).map_err(failed)?);
    }
    let memory = GuestMemory::from_regions(regions).map_err(|error| failed(error.to_string()))?;
    advise(&memory);
    Ok(memory)
}

fn map_region(base: GuestAddress, len: u64) -> Result<GuestRegionMmap<DirtyMap>, String> {
    let len = usize::try_from(len).map_err(|error| error.to_string())?;
    let region = MmapRegionBuilder::new_with_bitmap(len, DirtyMap::with_len(len))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| error.to_string())?;
    GuestRegionMmap::new(region, base).ok_or_else(|| "it wraps around the address space".to_owned())
}

/// Both are hints: a host without them runs the same guest, more slowly or with larger core dumps.
fn advise(memory: &GuestMemory) {
    for region in memory.iter() {
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: the range is exactly the region's own mapping, which outlives the call, and neither
            // advice changes what the memory holds.
            let result = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
            if result != 0 {
                tracing::debug!("madvise {advice} on guest memory: {}", io::Error::last_os_error());
            }
        }
    }
}

/// The host's memory and swap in bytes, or no bound where it does not say.
fn host_memory() -> u64 {
    sysinfo().map_or(u64::MAX, |info| {
        info.ram_total().saturating_add(info.swap_total())
    })
}

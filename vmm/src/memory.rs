//! Guest memory: anonymous host memory in huge pages, at the guest-physical addresses the architecture has.

use std::io;

use arch_x86_64::layout;
use nix::sys::sysinfo::sysinfo;
use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, NewBitmap as _};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, GuestRegionMmap};

use crate::config::ByteSize;

pub use devices::virtio::{DirtyMap, GuestMemory};

/// Bytes at the start of guest memory that are in small pages: a huge one. A guest's start needs a few pages of them, tables and
/// the beginning of a kernel, and would wait for all the others to be zeroed.
const LOW: u64 = 2 << 20;

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
/// The pages come when they are first touched, but for the lowest as huge pages where the host has them: a first touch is then
/// forty times cheaper. None of it goes into a core dump of the VMM.
pub fn map(size: ByteSize) -> Result<GuestMemory, MemoryError> {
    let memory = map_by_pages(size)?;
    advise(&memory, GuestAddress(LOW), libc::MADV_HUGEPAGE);
    Ok(memory)
}

/// Maps `size` bytes of guest memory as [`map`] does, each page of which is there on its own.
pub(crate) fn map_by_pages(size: ByteSize) -> Result<GuestMemory, MemoryError> {
    let memory = map_regions(size.0, |base, len, _| map_region(base, len))?;
    keep_out_of_dumps(&memory);
    Ok(memory)
}

/// Guest memory of `size` bytes, of which `map` maps each region: from its guest-physical address, its length in bytes and that of
/// the regions before it.
pub(crate) fn map_regions(
    size: u64,
    mut map: impl FnMut(GuestAddress, usize, u64) -> Result<GuestRegionMmap<DirtyMap>, String>,
) -> Result<GuestMemory, MemoryError> {
    let available = host_memory();
    if size > available {
        return Err(MemoryError::MoreThanHost {
            wanted: ByteSize(size),
            available: available >> 20,
        });
    }
    let (mut regions, mut before) = (Vec::new(), 0);
    for (base, len) in layout::ram_ranges(size) {
        let region = usize::try_from(len)
            .map_err(|error| error.to_string())
            .and_then(|len| map(base, len, before));
        regions.push(region.map_err(|cause| cannot_map(size, &cause))?);
        before += len;
    }
    GuestMemory::from_regions(regions).map_err(|error| cannot_map(size, &error))
}

/// That `size` bytes could not be mapped.
pub(crate) fn cannot_map(size: u64, cause: &impl ToString) -> MemoryError {
    MemoryError::Map {
        wanted: ByteSize(size),
        cause: cause.to_string(),
    }
}

fn map_region(base: GuestAddress, len: usize) -> Result<GuestRegionMmap<DirtyMap>, String> {
    let region = MmapRegionBuilder::new_with_bitmap(len, DirtyMap::with_len(len))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| error.to_string())?;
    GuestRegionMmap::new(region, base).ok_or_else(|| "it wraps around the address space".to_owned())
}

/// None of `memory` goes into a core dump of the VMM.
pub(crate) fn keep_out_of_dumps(memory: &GuestMemory) {
    advise(memory, GuestAddress(0), libc::MADV_DONTDUMP);
}

/// A hint about guest memory from `start` on: a host that does not take it runs the same guest, more slowly or with larger core
/// dumps.
fn advise(memory: &GuestMemory, start: GuestAddress, advice: libc::c_int) {
    for region in memory.iter() {
        let skipped = start.0.saturating_sub(region.start_addr().0).min(region.len()) as usize;
        // SAFETY: the range is the end of the region's own mapping, which outlives the call, and neither advice that is given
        // here changes what the memory holds.
        let result = unsafe {
            let from = region.as_ptr().add(skipped);
            libc::madvise(from.cast(), region.len() as usize - skipped, advice)
        };
        if result != 0 {
            tracing::debug!("madvise {advice} on guest memory: {}", io::Error::last_os_error());
        }
    }
}

/// The host's memory and swap in bytes, or no bound where it does not say.
fn host_memory() -> u64 {
    sysinfo().map_or(u64::MAX, |info| {
        info.ram_total().saturating_add(info.swap_total())
    })
}

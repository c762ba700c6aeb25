//! Gives guest memory back to the host. This is the one place that does.

use std::io;

use libc::c_void;
use thiserror::Error;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::PAGE_SIZE;
use crate::virtio::{Chain, GuestMemory};

/// Why memory was not given back.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// Pages that are no RAM; all others were given back.
    #[error("the guest hands over pages where it has no memory")]
    NotRam,
    /// The host does not take it.
    #[error("the host does not take memory back: {0}")]
    Refused(#[from] io::Error),
}

/// Gives the pages from `start` up to `end` back; the guest finds zeros in them. Both are guest-physical addresses and
/// multiples of [`PAGE_SIZE`]. Takes a step for each page that is no RAM.
pub fn release_pages(memory: &GuestMemory, start: u64, end: u64) -> Result<(), ReleaseError> {
    let (mut at, mut outcome) = (start, Ok(()));
    while at < end {
        let Some(region) = memory.find_region(GuestAddress(at)) else {
            outcome = Err(ReleaseError::NotRam);
            at += PAGE_SIZE;
            continue;
        };
        let offset = at - region.start_addr().0;
        let len = (end - at).min(region.len() - offset);
        let host = region.as_ptr().wrapping_add(offset as usize);
        // SAFETY: the region has `len` bytes from `offset` on, and its mapping lives as long as `memory`.
        unsafe { discard(host.cast(), len as usize) }?;
        GuestMemoryRegion::bitmap(region).mark_dirty(offset as usize, len as usize);
        at += len;
    }
    outcome
}

/// Gives the pages back that lie whole in the buffers that the device may write (§5.5.6.5).
pub fn release_buffers(chain: &Chain) -> Result<(), ReleaseError> {
    for buffer in chain.writable() {
        let start = buffer.iov_base as usize;
        let first = start.next_multiple_of(PAGE_SIZE as usize);
        let end = (start + buffer.iov_len) & !(PAGE_SIZE as usize - 1);
        if first < end {
            let host = buffer.iov_base.wrapping_byte_add(first - start);
            // SAFETY: the pages lie in a buffer of the chain, hence in guest memory, which the queue keeps mapped that the
            // chain was taken from.
            unsafe { discard(host, end - first) }?;
        }
    }
    Ok(())
}

/// Guest memory is private and anonymous, so that MADV_DONTNEED frees it, and huge pages with the last of their parts.
///
/// # Safety
/// The `len` bytes at `host` are guest memory that is mapped during the call.
unsafe fn discard(host: *mut c_void, len: usize) -> io::Result<()> {
    // SAFETY: the range is mapped, as the caller promises, and stays so; what becomes of its bytes is as if the guest
    // had written zeros, which it can at any time.
    match unsafe { libc::madvise(host, len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

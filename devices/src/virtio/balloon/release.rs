//! Gives guest memory back to the host. This is the one place that does.

use std::io;
use std::ops::Range;

use libc::c_void;
use thiserror::Error;
use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::PAGE_SIZE;
use crate::virtio::{Chain, DirtyMap, GuestMemory};

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

/// Bytes of the smallest piece of a restored guest's memory that is replaced, and the most pieces of a region: each can be a mapping
/// of its own, of which Linux gives a process 65,530, and half of them can be the snapshot's already.
const PIECE: usize = 64 << 10;
const MAX_PIECES: usize = 8192;

type Region = GuestRegionMmap<DirtyMap>;

/// Gives the pages from `start` up to `end` back. Both are guest-physical addresses and multiples of [`PAGE_SIZE`]. Takes a
/// step for each page that is no RAM.
///
/// The guest finds zeros in them; but where the memory is a snapshot's, in less than a [piece](piece_of) what the snapshot has there.
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
        release(region, offset as usize..(offset + len) as usize)?;
        at += len;
    }
    outcome
}

/// Gives the pages back that lie whole in the buffers that the device may write (§5.5.6.5), as [`release_pages`] does.
pub fn release_buffers(memory: &GuestMemory, chain: &Chain) -> Result<(), ReleaseError> {
    for buffer in chain.writable() {
        let host = buffer.iov_base as usize;
        let place = memory.iter().find_map(|region| {
            let offset = host.checked_sub(region.as_ptr() as usize)?;
            (offset < region.len() as usize).then_some((region, offset))
        });
        let (region, offset) = place.ok_or(ReleaseError::NotRam)?;
        let end = (offset + buffer.iov_len).min(region.len() as usize);
        let first = offset.next_multiple_of(PAGE_SIZE as usize);
        let end = end & !(PAGE_SIZE as usize - 1);
        if first < end {
            release(region, first..end)?;
        }
    }
    Ok(())
}

/// Gives bytes of `region` back: whole pages of it.
fn release(region: &Region, range: Range<usize>) -> io::Result<()> {
    let pieces = if region.get_mmap().bitmap().is_backed() {
        whole_pieces(region.len() as usize, &range)
    } else {
        range.end..range.end
    };
    let host = |at| region.as_ptr().wrapping_add(at).cast();
    // SAFETY: the ranges are parts of the region, one behind the other, and its mapping lives as long as it does.
    unsafe {
        discard(host(range.start), pieces.start - range.start)?;
        replace(host(pieces.start), pieces.len())?;
        discard(host(pieces.end), range.end - pieces.end)?;
    }
    region.get_mmap().bitmap().mark_dirty(range.start, range.len());
    Ok(())
}

/// Bytes of what is replaced at once in a region of `len` bytes: a power of two, to a multiple of which it is aligned in the region.
fn piece_of(len: usize) -> usize {
    len.div_ceil(MAX_PIECES).next_power_of_two().max(PIECE)
}

/// The pieces that lie whole in `range` of a region of `len` bytes. Empty, at the range's end, if there is none.
fn whole_pieces(len: usize, range: &Range<usize>) -> Range<usize> {
    let piece = piece_of(len);
    let (start, end) = (range.start.next_multiple_of(piece), range.end / piece * piece);
    if start < end {
        start..end
    } else {
        range.end..range.end
    }
}

/// Frees memory, and huge pages with the last of their parts. Anonymous memory is zeros then, and a private mapping of a file what
/// the file has.
///
/// # Safety
/// The `len` bytes at `host` are guest memory that is mapped during the call.
unsafe fn discard(host: *mut c_void, len: usize) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: the range is mapped, as the caller promises, and stays so; its bytes become others that the guest had or could
    // have written, at any time. Guest memory is only accessed by volatile operations and system calls.
    match unsafe { libc::madvise(host, len, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts new memory, all zeros, in the place of a file's, as a guest has that is not restored: in huge pages, and out of core dumps.
///
/// # Safety
/// As for [`discard`].
unsafe fn replace(host: *mut c_void, len: usize) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is guest memory, as the caller promises, and is mapped again when this returns, for who touches it
    // meanwhile waits. To Rust its bytes become zeros, as if the guest had written them.
    if unsafe { libc::mmap(host, len, protection, flags, -1, 0) } == libc::MAP_FAILED {
        // The host gives this process fewer mappings than Linux does by default.
        // SAFETY: the caller's promise.
        return unsafe { discard(host, len) };
    }
    for advice in [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
        // SAFETY: neither advice changes what the memory holds. A host that does not take one runs the same guest.
        unsafe { libc::madvise(host, len, advice) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_of_any_size_has_only_so_many_pieces() {
        for len in [
            1,
            PIECE,
            PIECE * MAX_PIECES,
            PIECE * MAX_PIECES + 1,
            3 << 30,
            1 << 45,
        ] {
            let piece = piece_of(len);
            assert!(
                piece.is_power_of_two() && len.div_ceil(piece) <= MAX_PIECES,
                "{len:#x}"
            );
        }
        assert_eq!(piece_of(PIECE * MAX_PIECES), PIECE);
    }

    #[test]
    fn pieces_lie_whole_in_what_is_given_back() {
        let pieces = |range| whole_pieces(1 << 20, &range);
        assert_eq!(pieces(0..1 << 20), 0..1 << 20);
        assert_eq!(pieces(4096..3 * PIECE + 4096), PIECE..3 * PIECE);
        for range in [4096..2 * PIECE - 4096, 0..PIECE - 4096, 4096..PIECE, PIECE..PIECE] {
            assert_eq!(pieces(range.clone()), range.end..range.end);
        }
    }
}

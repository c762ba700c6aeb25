//! Copies guest memory into a file, a hole for each page of zeros, and sums it up while it does.
//!
//! [`Job::run`] is what the child of a fork may do in a process that had several threads: it takes no lock, allocates
//! nothing, cannot panic, and its system calls are direct ones. Everything that it needs is made by [`Job::new`] before.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use crc32fast::Hasher;
use libc::c_int;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::memory_file::CHUNK;
use super::pages::{self, PageMap};
use super::ranges::{PAGE_SIZE, PageRanges};
use crate::memory::GuestMemory;
use crate::procfs;

const PAGE: usize = PAGE_SIZE as usize;

/// What is copied at a time: it stays in the CPU's cache until it has been summed up and written.
const BLOCK: usize = 256 << 10;

/// Part of one region, one range and one chunk.
struct Piece {
    host: *const u8,
    offset: u64,
    len: usize,
    chunk: usize,
}

/// The copying of guest memory, prepared.
pub(super) struct Job<'a> {
    file: RawFd,
    pieces: Vec<Piece>,
    buffer: Vec<u8>,
    /// Summed up, a block of zeros.
    zeros: Hasher,
    pages: PageMap,
    /// Pages that are zero unless this process has one of its own in their place, either set.
    anonymous: PageRanges,
    holes: &'a PageRanges,
    sums: &'a [AtomicU32],
    /// Keeps mapped what `pieces` point to.
    _memory: GuestMemory,
}

impl<'a> Job<'a> {
    /// Prepares to copy `ranges` of `memory` into `file`, in which there are only holes, and the checksum of each chunk to `sums`, all 0.
    /// `holes` are pages that come from holes in the files that the memory is mapped from.
    ///
    /// # Errors
    /// The kernel does not say what of the memory is anonymous.
    pub(super) fn new(
        memory: &GuestMemory,
        ranges: &PageRanges,
        holes: &'a PageRanges,
        file: &impl AsRawFd,
        sums: &'a [AtomicU32],
    ) -> io::Result<Self> {
        let mut zeros = Hasher::new();
        zeros.update(&[0; PAGE]);
        for _ in 0..(BLOCK / PAGE).ilog2() {
            let half = zeros.clone();
            zeros.combine(&half);
        }
        Ok(Self {
            file: file.as_raw_fd(),
            pieces: plan(memory, ranges),
            buffer: vec![0; BLOCK],
            zeros,
            pages: PageMap::new((CHUNK / PAGE_SIZE) as usize),
            anonymous: procfs::if_there(pages::anonymous_pages(memory))?.unwrap_or_default(),
            holes,
            sums,
            _memory: memory.clone(),
        })
    }

    /// Copies everything and has the file's data written to its disk; asks `go_on` before each 2 MiB.
    ///
    /// # Errors
    /// The error's number: `ECANCELED` if it was not to go on.
    pub(super) fn run(&mut self, mut go_on: impl FnMut() -> bool) -> Result<(), c_int> {
        match self.pages.open() {
            // In a root directory without procfs every page is looked at.
            Err(libc::ENOENT) => {}
            opened => opened?,
        }
        let pieces = std::mem::take(&mut self.pieces);
        let copied = pieces.iter().try_for_each(|piece| match go_on() {
            true => self.copy(piece),
            false => Err(libc::ECANCELED),
        });
        // Given back instead of dropped: the child of a fork must not free.
        self.pieces = pieces;
        copied?;
        // SAFETY: takes a descriptor and no memory.
        returned(unsafe { libc::fdatasync(self.file) } as isize).map(drop)
    }

    fn copy(&mut self, piece: &Piece) -> Result<(), c_int> {
        let Some(sum) = self.sums.get(piece.chunk) else {
            return Err(libc::EINVAL);
        };
        self.pages.read(piece.host as usize, piece.len)?;
        let mut hasher = Hasher::new_with_initial(sum.load(Ordering::Relaxed));
        for done in (0..piece.len).step_by(BLOCK) {
            let len = (piece.len.saturating_sub(done)).min(BLOCK);
            let pages = done / PAGE..(done + len).div_ceil(PAGE);
            if len == BLOCK && pages.clone().all(|page| self.is_zero(piece, page)) {
                hasher.combine(&self.zeros);
                continue;
            }
            self.gather(piece, pages)?;
            let Some(block) = self.buffer.get(..len) else {
                return Err(libc::EINVAL);
            };
            hasher.update(block);
            write_block(self.file, block, piece.offset.wrapping_add(done as u64))?;
        }
        sum.store(hasher.finalize(), Ordering::Relaxed);
        Ok(())
    }

    /// Whether a page of `piece`, whose page map has been read, is known to be zero without a look at it, which would have the
    /// kernel make a page.
    fn is_zero(&self, piece: &Piece, page: usize) -> bool {
        let at = (piece.offset / PAGE_SIZE).wrapping_add(page as u64);
        !self.pages.may_be_own(page) && (self.anonymous.contains(at) || self.holes.contains(at))
    }

    /// Copies a block of `piece`, which has these pages, to the buffer.
    fn gather(&mut self, piece: &Piece, pages: Range<usize>) -> Result<(), c_int> {
        for (page, at) in pages.zip((0..BLOCK).step_by(PAGE)) {
            let zero = self.is_zero(piece, page);
            let start = page.wrapping_mul(PAGE);
            let len = piece.len.saturating_sub(start).min(PAGE);
            let Some(into) = self.buffer.get_mut(at..at.wrapping_add(len)) else {
                return Err(libc::EINVAL);
            };
            if zero {
                into.fill(0);
                continue;
            }
            // SAFETY: the piece has `len` bytes from `start` on in a region of guest memory, of which the job has a share, and
            // `into` is as long, in memory of this process's own. No reference is made to guest memory: bytes that are written at
            // the same time come out as any of their values.
            unsafe { std::ptr::copy_nonoverlapping(piece.host.wrapping_add(start), into.as_mut_ptr(), len) };
        }
        Ok(())
    }
}

/// Splits `ranges` where regions and chunks end.
fn plan(memory: &GuestMemory, ranges: &PageRanges) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(ranges.runs());
    for (host, offset, len) in pages::parts(memory, ranges) {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let to = end.min((at / CHUNK + 1) * CHUNK);
            pieces.push(Piece {
                host: host.wrapping_add((at - offset) as usize),
                offset: at,
                len: (to - at) as usize,
                chunk: (at / CHUNK) as usize,
            });
            at = to;
        }
    }
    pieces
}

/// Writes what of `block` is not zero: runs of pages that have other bytes.
fn write_block(file: RawFd, block: &[u8], offset: u64) -> Result<(), c_int> {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    let is_zero = |page: &[u8]| ZEROS.get(..page.len()) == Some(page);
    let (mut start, mut end) = (0, 0);
    for page in block.chunks(PAGE) {
        if is_zero(page) {
            write_run(file, block.get(start..end), offset.wrapping_add(start as u64))?;
            start = end.wrapping_add(page.len());
        }
        end = end.wrapping_add(page.len());
    }
    write_run(file, block.get(start..end), offset.wrapping_add(start as u64))
}

fn write_run(file: RawFd, run: Option<&[u8]>, mut offset: u64) -> Result<(), c_int> {
    let mut rest = run.unwrap_or_default();
    while !rest.is_empty() {
        // SAFETY: `rest` is readable for its length during the call.
        let written =
            returned(unsafe { libc::pwrite(file, rest.as_ptr().cast(), rest.len(), offset as i64) })?;
        if written == 0 {
            return Err(libc::EIO);
        }
        rest = rest.get(written..).unwrap_or_default();
        offset = offset.wrapping_add(written as u64);
    }
    Ok(())
}

/// A system call's result, or its error number. `EINTR` cannot be one: who calls has no signal handlers, or regular files only.
pub(super) fn returned(result: isize) -> Result<usize, c_int> {
    // SAFETY: the address is that of the calling thread's own errno.
    usize::try_from(result).map_err(|_| unsafe { *libc::__errno_location() })
}

/// Length of `memory` in bytes, over all regions.
pub(super) fn total(memory: &GuestMemory) -> u64 {
    memory.iter().map(|region| region.len()).sum()
}

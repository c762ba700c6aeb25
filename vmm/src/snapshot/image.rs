//! Guest memory out of memory files: mapped privately, so that a guest runs before its memory is read, and put back later.
//!
//! A snapshot's memory is a full one's file, over which lie the changed pages of the diffs that lead to it, each from its own
//! file. Every page of the guest is mapped from the file that has it last; nothing is copied. So a page that the guest has written can
//! be put back by dropping it.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use libc::c_int;
use vm_memory::mmap::{MmapRegionBuilder, NewBitmap as _};
use vm_memory::{FileOffset, GuestMemoryBackend as _, GuestRegionMmap};

use super::memory_file::{MemoryFile, MemoryFileError};
use super::pages;
use super::ranges::{PAGE_SIZE, PageRanges};
use super::write::total;
use crate::memory::{self, DirtyMap, GuestMemory, MemoryError};

/// Diffs that there may be on a full snapshot. With [`MAX_RUNS`] it bounds the mappings that a guest's memory has: Linux gives a
/// process 65,530 by default.
pub const MAX_DIFFS: usize = 8;

/// Runs of changed pages that a diff may have ([`PageRanges::in_at_most`]).
pub const MAX_RUNS: usize = 2048;

/// Written pages that are dropped by one call may have this many others between them, which then are mapped anew when they are touched.
const GAP: u64 = 16;

/// The memory of a snapshot.
#[derive(Debug)]
pub struct MemoryImage {
    /// The full one, then the diffs, oldest first.
    files: Vec<MemoryFile>,
    /// All pages, in order.
    parts: Vec<Part>,
}

/// Pages that come from one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    pages: Range<u64>,
    file: usize,
}

impl MemoryImage {
    /// A full snapshot's memory with that of the diffs on it, oldest first.
    ///
    /// # Errors
    /// More diffs, or diffs of more runs, than can be mapped; a list of changed pages that goes beyond its file; files of
    /// different lengths.
    pub fn new(full: MemoryFile, diffs: Vec<(MemoryFile, PageRanges)>) -> Result<Self, MemoryFileError> {
        let too_many = diffs.len() > MAX_DIFFS || diffs.iter().any(|(_, changed)| changed.runs() > MAX_RUNS);
        if too_many {
            return Err(MemoryFileError::ChainTooLong {
                diffs: diffs.len(),
                max: MAX_DIFFS,
            });
        }
        let pages = 0..full.bytes().div_ceil(PAGE_SIZE);
        let (mut parts, mut files) = (vec![Part { pages, file: 0 }], vec![full]);
        for (file, changed) in diffs {
            file.check_len(files[0].bytes())?;
            file.check_ranges(&changed)?;
            parts = cover(parts, &changed, files.len());
            files.push(file);
        }
        Ok(Self { files, parts })
    }

    /// Length of the memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.files[0].bytes()
    }

    /// How many diffs lie over the full one.
    pub fn diffs(&self) -> usize {
        self.files.len() - 1
    }

    /// Maps it as the memory of a new guest.
    ///
    /// # Errors
    /// The host cannot map it.
    pub fn map(&self) -> Result<GuestMemory, MemoryError> {
        let memory = memory::map_regions(self.bytes(), |base, len, offset| {
            let file = self.files[0]
                .file()
                .try_clone()
                .map_err(|error| error.to_string())?;
            let region = MmapRegionBuilder::new_with_bitmap(len, DirtyMap::with_len(len))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::new(file, offset))
                .build()
                .map_err(|error| error.to_string())?;
            region.bitmap().set_backed();
            GuestRegionMmap::new(region, base).ok_or_else(|| "it wraps around the address space".to_owned())
        })?;
        let over = self.parts.iter().filter(|part| part.file > 0);
        over.clone()
            .try_for_each(|part| self.map_part(&memory, part, &part.pages))
            .map_err(|error| memory::cannot_map(self.bytes(), &error))?;
        memory::keep_out_of_dumps(&memory);
        Ok(memory)
    }

    /// Puts `memory`, of a guest that rests, back to what the image has. `mapped` is the image that it was mapped from or put back to
    /// last, if any: if that is this one, only the pages that differ are touched.
    ///
    /// What was recorded as written until then says nothing of the difference to this image: take it, and forget it.
    ///
    /// # Errors
    /// The image is of another size, or the host cannot map it. The guest's memory then is neither the old nor the new.
    pub fn rewind(&self, memory: &GuestMemory, mapped: Option<&Self>) -> io::Result<()> {
        if total(memory) != self.bytes() {
            return Err(io::Error::other("the guest has another size of memory"));
        }
        if !mapped.is_some_and(|mapped| self.is_same(mapped)) {
            self.map_over(memory, &PageRanges::all(self.bytes()))?;
            memory
                .iter()
                .for_each(|region| region.get_mmap().bitmap().set_backed());
            return Ok(());
        }
        // Pages that the guest gave back to the host are no part of the file's mapping any more.
        let lost = pages::anonymous_pages(memory)?;
        self.map_over(memory, &lost)?;
        drop_pages(memory, &pages::private(memory)?.with_gaps_filled(GAP))
    }

    /// Maps `pages` of the image over what is there.
    fn map_over(&self, memory: &GuestMemory, pages: &PageRanges) -> io::Result<()> {
        for run in pages.iter() {
            let first = self.parts.partition_point(|part| part.pages.end <= run.start);
            for part in self.parts[first..]
                .iter()
                .take_while(|part| part.pages.start < run.end)
            {
                let both = run.start.max(part.pages.start)..run.end.min(part.pages.end);
                self.map_part(memory, part, &both)?;
            }
        }
        if !pages.is_empty() {
            memory::keep_out_of_dumps(memory);
        }
        Ok(())
    }

    /// Maps `pages`, which `part` has, over what is there.
    fn map_part(&self, memory: &GuestMemory, part: &Part, pages: &Range<u64>) -> io::Result<()> {
        let mut ranges = PageRanges::default();
        ranges.push(pages.clone());
        for (host, offset, len) in pages::parts(memory, &ranges) {
            // SAFETY: the `len` bytes at `host` are part of a region of `memory`, which stays mapped there. Guest memory is only accessed
            // by volatile operations and system calls, which take what they find.
            unsafe {
                map_fixed(
                    host,
                    len as usize,
                    self.files[part.file].file().as_raw_fd(),
                    offset,
                )
            }?;
        }
        Ok(())
    }

    /// The pages that come from holes in the files: zeros, as long as they are not written.
    pub fn holes(&self) -> PageRanges {
        let mut holes = PageRanges::default();
        for part in &self.parts {
            self.files[part.file].add_holes(part.pages.clone(), &mut holes);
        }
        holes
    }

    /// Whether both are made of the same pages of the same files.
    fn is_same(&self, other: &Self) -> bool {
        let same = |(left, right): (&MemoryFile, &MemoryFile)| left.is_same(right);
        self.parts == other.parts
            && self.files.len() == other.files.len()
            && self.files.iter().zip(&other.files).all(same)
    }
}

/// `parts`, with the pages `changed` coming from `file`.
fn cover(parts: Vec<Part>, changed: &PageRanges, file: usize) -> Vec<Part> {
    let mut covered: Vec<Part> = Vec::with_capacity(parts.len() + 2 * changed.runs());
    let mut push = |pages: Range<u64>, file| match covered.last_mut() {
        _ if pages.is_empty() => {}
        Some(last) if last.file == file && last.pages.end == pages.start => last.pages.end = pages.end,
        _ => covered.push(Part { pages, file }),
    };
    let mut runs = changed.iter();
    let mut next = runs.next();
    for part in parts {
        let mut at = part.pages.start;
        while let Some(run) = next.clone().filter(|run| run.start < part.pages.end) {
            let end = run.end.min(part.pages.end);
            // A run that began in the part before leaves nothing before it.
            push(at..run.start, part.file);
            push(run.start.max(at)..end, file);
            at = end;
            if run.end > end {
                break;
            }
            next = runs.next();
        }
        push(at..part.pages.end, part.file);
    }
    covered
}

/// Maps `file` privately over what is at `host`.
///
/// # Safety
/// The `len` bytes at `host` are a mapping that may be replaced: nobody has a Rust reference to them.
unsafe fn map_fixed(host: *mut u8, len: usize, file: c_int, offset: u64) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: as the caller promises.
    match unsafe { libc::mmap(host.cast(), len, protection, flags, file, offset as i64) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Drops pages, which then come from their mapping's file again.
fn drop_pages(memory: &GuestMemory, dropped: &PageRanges) -> io::Result<()> {
    for (host, _, len) in pages::parts(memory, dropped) {
        // SAFETY: the range is part of a region of guest memory, to which there are no Rust references.
        if unsafe { libc::madvise(host.cast(), len as usize, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads `pages` of `memory` before a guest asks for them: those that [`present`](pages::present) has found in an earlier guest of
/// the same image, say.
///
/// # Errors
/// The file cannot be read.
pub fn prefault(memory: &GuestMemory, pages: &PageRanges) -> io::Result<()> {
    match populate(memory, pages) {
        // Linux before 5.14 reads ahead, and leaves the mapping to the first touch.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            advise(memory, pages, libc::MADV_WILLNEED)
        }
        result => result,
    }
}

/// Has `pages` of `memory` there when it returns, wherever they come from. Not on Linux before 5.14.
pub(super) fn populate(memory: &GuestMemory, pages: &PageRanges) -> io::Result<()> {
    advise(memory, pages, libc::MADV_POPULATE_READ)
}

/// Gives an advice that does not change what is in memory.
fn advise(memory: &GuestMemory, pages: &PageRanges, advice: c_int) -> io::Result<()> {
    for (host, _, len) in pages::parts(memory, pages) {
        // SAFETY: the range is part of a region of guest memory, and no advice that is given here changes what it holds.
        while unsafe { libc::madvise(host.cast(), len as usize, advice) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

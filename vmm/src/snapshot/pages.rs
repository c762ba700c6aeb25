//! What the kernel knows of the pages of this process's memory: which there are, and which come from a file.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

use libc::c_int;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::ranges::{PAGE_SIZE, PageRanges};
use super::write::{returned, total};
use crate::memory::GuestMemory;

/// Bits of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// Entries that are read at a time.
const ENTRIES: usize = 64 << 10;

/// No file descriptor.
const NO_FILE: RawFd = -1;

/// A window on /proc/self/pagemap. [`open`](Self::open) and what follows may be called in the child of a fork.
pub(super) struct PageMap {
    file: RawFd,
    entries: Vec<u64>,
    valid: usize,
}

impl PageMap {
    /// A window of at most `pages` pages.
    pub(super) fn new(pages: usize) -> Self {
        Self {
            file: NO_FILE,
            entries: vec![0; pages],
            valid: 0,
        }
    }

    /// Opens the page map of the process that calls, which a child of a fork has its own of.
    pub(super) fn open(&mut self) -> Result<(), c_int> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the path is a string with an end.
        let file = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), flags) };
        self.file = returned(file as isize)? as RawFd;
        Ok(())
    }

    /// Reads the entries of the pages that the `len` bytes at `host`, which is a page's start, lie in; none if it could not be opened.
    pub(super) fn read(&mut self, host: usize, len: usize) -> Result<(), c_int> {
        self.valid = 0;
        if self.file == NO_FILE {
            return Ok(());
        }
        let pages = len.div_ceil(PAGE_SIZE as usize).min(self.entries.len());
        let offset = (host / PAGE_SIZE as usize).wrapping_mul(8) as i64;
        let into = self.entries.as_mut_ptr().cast();
        // SAFETY: `entries` has room for as many entries of 8 bytes.
        let read = returned(unsafe { libc::pread(self.file, into, pages.wrapping_mul(8), offset) })?;
        self.valid = read / 8;
        Ok(())
    }

    /// Whether this page of those read, counted from 0, may be this process's own. `true` if it was not read.
    pub(super) fn may_be_own(&self, page: usize) -> bool {
        let read = self.entries.get(..self.valid).unwrap_or_default();
        read.get(page).is_none_or(|&entry| is_own(entry))
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        if self.file != NO_FILE {
            // SAFETY: the descriptor is this one's own and is not used afterwards.
            unsafe { libc::close(self.file) };
        }
    }
}

/// Whether a page is neither missing nor a file's: one of anonymous memory, or a private copy of a file's.
fn is_own(entry: u64) -> bool {
    entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT
}

/// The pages of `memory` for which `choose` wants their entries.
fn choose(memory: &GuestMemory, choose: impl Fn(u64) -> bool) -> io::Result<PageRanges> {
    let mut map = PageMap::new(ENTRIES);
    map.open().map_err(io::Error::from_raw_os_error)?;
    let mut chosen = PageRanges::default();
    for (host, offset, len) in parts(memory, &PageRanges::all(total(memory))) {
        for done in (0..len).step_by(ENTRIES * PAGE_SIZE as usize) {
            let len = (len - done).min(ENTRIES as u64 * PAGE_SIZE);
            let at = host as usize + done as usize;
            map.read(at, len as usize).map_err(io::Error::from_raw_os_error)?;
            let first = (offset + done) / PAGE_SIZE;
            for (page, &entry) in (first..).zip(&map.entries[..map.valid]) {
                if choose(entry) {
                    chosen.push(page..page + 1);
                }
            }
        }
    }
    Ok(chosen)
}

/// The pages that there are: what a guest has used since its memory was mapped, and what the kernel put beside it.
///
/// # Errors
/// /proc/self/pagemap cannot be read.
pub fn present(memory: &GuestMemory) -> io::Result<PageRanges> {
    choose(memory, |entry| entry & (PRESENT | SWAPPED) != 0)
}

/// The pages that are this process's own: those of a private mapping of a file that were written since it was made.
///
/// # Errors
/// /proc/self/pagemap cannot be read.
pub fn private(memory: &GuestMemory) -> io::Result<PageRanges> {
    choose(memory, is_own)
}

/// The pages of `memory`, which was mapped from a snapshot, that are not the snapshot's any more: written, or given back to the host.
///
/// # Errors
/// /proc/self/pagemap or /proc/self/maps cannot be read.
pub fn changed(memory: &GuestMemory) -> io::Result<PageRanges> {
    Ok(private(memory)?.union(&anonymous_pages(memory)?))
}

/// The addresses in this process at which `memory` is not a mapping of a file.
///
/// # Errors
/// /proc/self/maps cannot be read.
pub(super) fn anonymous(memory: &GuestMemory) -> io::Result<Vec<Range<usize>>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let mut found: Vec<Range<usize>> = Vec::new();
    for vma in maps.lines().filter_map(anonymous_vma) {
        for region in memory.iter() {
            let start = region.as_ptr() as usize;
            let end = start + region.len() as usize;
            let part = vma.start.max(start)..vma.end.min(end);
            match found.last_mut() {
                _ if part.is_empty() => {}
                Some(last) if last.end == part.start => last.end = part.end,
                _ => found.push(part),
            }
        }
    }
    Ok(found)
}

/// The pages of `memory` that are no mapping of a file.
///
/// # Errors
/// /proc/self/maps cannot be read.
pub(super) fn anonymous_pages(memory: &GuestMemory) -> io::Result<PageRanges> {
    let vmas = anonymous(memory)?;
    let mut pages = PageRanges::default();
    for (host, offset, len) in parts(memory, &PageRanges::all(total(memory))) {
        let start = host as usize;
        for vma in &vmas {
            let (from, to) = (vma.start.max(start), vma.end.min(start + len as usize));
            if from < to {
                let first = (offset + (from - start) as u64) / PAGE_SIZE;
                pages.push(first..first + ((to - from) as u64).div_ceil(PAGE_SIZE));
            }
        }
    }
    Ok(pages)
}

/// The addresses of a line of /proc/self/maps (proc_pid_maps(5)) if it has inode 0: "start-end flags offset device inode".
fn anonymous_vma(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    (fields.nth(3)? == "0").then_some(start..end)
}

/// The stretches of `ranges` by region: address in this process, offset in the memory file, length in bytes.
pub(super) fn parts<'a>(
    memory: &'a GuestMemory,
    ranges: &'a PageRanges,
) -> impl Iterator<Item = (*mut u8, u64, u64)> + 'a {
    let starts = memory.iter().scan(0, |next, region| {
        let start = *next;
        *next += region.len();
        Some((start, region))
    });
    starts.flat_map(|(start, region)| {
        let end = start + region.len();
        let clip = move |run: Range<u64>| {
            let from = (run.start * PAGE_SIZE).max(start);
            let to = (run.end * PAGE_SIZE).min(end);
            (from < to).then(|| {
                let host = region.as_ptr().wrapping_add((from - start) as usize);
                (host, from, to - from)
            })
        };
        ranges.iter().filter_map(clip)
    })
}

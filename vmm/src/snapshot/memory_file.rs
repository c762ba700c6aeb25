//! The file `memory` of a snapshot: what was in the guest's RAM, in a sparse file of just that length.
//!
//! The regions of RAM follow each other: a region's offset is the sum of the lengths before it. Pages of zeros are holes. A
//! diff's file has the same length and offsets, and only the pages that its list of changed pages names ([`PageRanges`]).
//!
//! A checksum stands for each [`CHUNK`] of the file: the CRC-32 of those of its bytes that are the snapshot's (all of them, or the
//! changed pages one after another), 0 for a chunk without any.
//!
//! Whoever shortens the file while a guest runs on it kills that guest's process (SIGBUS at its next touch of what is gone). A
//! shared lock (flock(2)) is held on a file in use, so that who is about to replace or remove it can know; posada does not write to a
//! file after it is complete, and takes the right to write away.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;

use crc32fast::Hasher;
use libc::c_int;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ranges::{PAGE_SIZE, PageRanges};
use super::write::{Job, total};
use crate::config::ByteSize;
use crate::memory::GuestMemory;

/// Bytes that one checksum is for.
pub const CHUNK: u64 = 2 << 20;

/// The checksums of a file's chunks, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checksums(pub(super) Vec<u32>);

/// Why a memory file cannot be used or made.
#[derive(Debug, Error)]
pub enum MemoryFileError {
    /// It could not be opened, locked or read.
    #[error("cannot {doing} the snapshot's memory '{path}': {source}", path = path.display())]
    Io {
        /// What was to be done with it.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe.
    #[error("the snapshot's memory '{path}' is not a regular file", path = .0.display())]
    NotAFile(PathBuf),
    /// It was truncated, or belongs to another snapshot.
    #[error(
        "the snapshot's memory '{path}' has {found} bytes where the snapshot says {expected}: it was cut short, or belongs to \
         another snapshot",
        path = path.display()
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The snapshot's memory in bytes.
        expected: u64,
    },
    /// Somebody is writing or removing it.
    #[error("the snapshot's memory '{path}' is being written or removed by another process", path = .0.display())]
    Locked(PathBuf),
    /// The list of checksums or of changed pages does not fit the file.
    #[error("the snapshot's memory '{path}' has {size} and its list of {what} is for another size", path = path.display())]
    WrongList {
        /// The file.
        path: PathBuf,
        /// The snapshot's memory.
        size: ByteSize,
        /// Which list.
        what: &'static str,
    },
    /// It was put together of several snapshots' memory.
    #[error("the snapshot's memory '{path}' was put together of several: nobody knows its checksums", path = .0.display())]
    NoChecksums(PathBuf),
    /// Its bytes are not those that were written.
    #[error(
        "the snapshot's memory '{path}' is damaged: the checksum of the {CHUNK} bytes from {offset:#x} on is wrong",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset of the first chunk that is.
        offset: u64,
    },
    /// Parts of too many files, or too many parts, to be mapped.
    #[error("a chain of {diffs} diffs is longer than the {max} that can be restored: take a full snapshot")]
    ChainTooLong {
        /// Diffs in the chain.
        diffs: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Makes an empty memory file of `len` bytes, all hole, which only its owner can read: a guest's memory holds its secrets.
///
/// # Errors
/// There is such a file already, or the directory does not take one.
pub fn create(path: &Path, len: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(len)?;
    Ok(file)
}

/// Writes `ranges` of `memory` into a file that [`create`] made, and waits until its disk has it. The guest rests meanwhile;
/// [`Frozen`](super::frozen::Frozen) lets it run on.
///
/// # Errors
/// The file system is full or fails, or the kernel does not tell of the memory's mappings.
pub fn write(memory: &GuestMemory, ranges: &PageRanges, file: &File) -> io::Result<Checksums> {
    let sums = Checksums::of(total(memory));
    Job::new(memory, ranges, &PageRanges::default(), file, &sums)?
        .run(|| true)
        .map_err(io::Error::from_raw_os_error)?;
    Ok(Checksums(sums.into_iter().map(AtomicU32::into_inner).collect()))
}

/// Takes the right to write from a file that is complete.
///
/// # Errors
/// The file system does not keep it.
pub fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o400))
}

impl Checksums {
    /// Of memory that nobody has read as a whole.
    pub fn unknown() -> Self {
        Self(Vec::new())
    }

    /// Room for those of `bytes` of memory.
    fn of(bytes: u64) -> Vec<AtomicU32> {
        (0..bytes.div_ceil(CHUNK)).map(|_| AtomicU32::new(0)).collect()
    }
}

/// A complete memory file, open for reading, with a shared lock on it.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl MemoryFile {
    /// Opens the memory of a snapshot that has `len` bytes of RAM.
    ///
    /// # Errors
    /// There is no such file, it is no regular file, it has another length, or somebody has locked it for himself.
    pub fn open(path: &Path, len: u64) -> Result<Self, MemoryFileError> {
        let failed = |doing| {
            move |source| MemoryFileError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        // A pipe would keep the opener waiting.
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(failed("open"))?;
        let found = file.metadata().map_err(failed("look at"))?;
        if !found.is_file() {
            return Err(MemoryFileError::NotAFile(path.to_owned()));
        }
        file.try_lock_shared().map_err(|error| match error {
            TryLockError::WouldBlock => MemoryFileError::Locked(path.to_owned()),
            TryLockError::Error(source) => failed("lock")(source),
        })?;
        // Looked at again: whoever had it locked before may have changed it.
        let found = file.metadata().map_err(failed("look at"))?.len();
        let opened = Self {
            file,
            path: path.to_owned(),
            len: found,
        };
        opened.check_len(len)?;
        Ok(opened)
    }

    /// Refuses a file of another length than `expected`.
    pub(super) fn check_len(&self, expected: u64) -> Result<(), MemoryFileError> {
        if self.len == expected {
            return Ok(());
        }
        Err(MemoryFileError::WrongLength {
            path: self.path.clone(),
            found: self.len,
            expected,
        })
    }

    /// Reads all of `ranges` and compares it with the checksums.
    ///
    /// # Errors
    /// The file cannot be read, the lists do not fit it, or a checksum is wrong.
    pub fn verify(&self, ranges: &PageRanges, sums: &Checksums) -> Result<(), MemoryFileError> {
        self.check_ranges(ranges)?;
        if sums.0.is_empty() {
            return Err(MemoryFileError::NoChecksums(self.path.clone()));
        }
        if sums.0.len() as u64 != self.len.div_ceil(CHUNK) {
            return Err(self.wrong_list("checksums"));
        }
        let mut hashers = vec![Hasher::new(); sums.0.len()];
        let mut buffer = vec![0; CHUNK as usize];
        for run in ranges.iter() {
            let (mut at, end) = (run.start * PAGE_SIZE, (run.end * PAGE_SIZE).min(self.len));
            while at < end {
                let to = end.min((at / CHUNK + 1) * CHUNK);
                self.sum_up(at..to, &mut hashers[(at / CHUNK) as usize], &mut buffer)
                    .map_err(|source| self.io("read", source))?;
                at = to;
            }
        }
        let wrong = |(hasher, sum): (Hasher, &u32)| hasher.finalize() != *sum;
        match hashers.into_iter().zip(&sums.0).position(wrong) {
            Some(chunk) => Err(MemoryFileError::Damaged {
                path: self.path.clone(),
                offset: chunk as u64 * CHUNK,
            }),
            None => Ok(()),
        }
    }

    /// Adds the bytes at `range`, which lie in one chunk. Those of a hole are not read.
    fn sum_up(&self, range: Range<u64>, hasher: &mut Hasher, buffer: &mut [u8]) -> io::Result<()> {
        let buffer = &mut buffer[..(range.end - range.start) as usize];
        if self.data_from(range.start) >= range.end {
            buffer.fill(0);
        } else {
            self.file.read_exact_at(buffer, range.start)?;
        }
        hasher.update(buffer);
        Ok(())
    }

    /// Adds to `holes` those of `pages`, which are behind the ones that it has, in which the file has no data.
    pub(super) fn add_holes(&self, pages: Range<u64>, holes: &mut PageRanges) {
        let mut at = pages.start;
        while at < pages.end {
            let data = (self.data_from(at * PAGE_SIZE) / PAGE_SIZE).min(pages.end);
            holes.push(at..data);
            let hole = self.hole_from(data * PAGE_SIZE).div_ceil(PAGE_SIZE);
            at = hole.max(data + 1);
        }
    }

    /// Where data is at or behind `offset`, or no place; a file system that does not know of holes has it everywhere.
    fn data_from(&self, offset: u64) -> u64 {
        self.seek(offset, libc::SEEK_DATA).unwrap_or(offset)
    }

    /// Where a hole is at or behind `offset`: at the file's end at last.
    fn hole_from(&self, offset: u64) -> u64 {
        self.seek(offset, libc::SEEK_HOLE).unwrap_or(u64::MAX)
    }

    /// Where the next of `what` is; no place if it is behind the file's end.
    fn seek(&self, offset: u64, what: c_int) -> io::Result<u64> {
        // SAFETY: takes a descriptor and no memory; nobody uses the descriptor's position.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, what) };
        let error = io::Error::last_os_error();
        match u64::try_from(found) {
            Ok(found) => Ok(found),
            Err(_) if error.raw_os_error() == Some(libc::ENXIO) => Ok(u64::MAX),
            Err(_) => Err(error),
        }
    }

    /// Refuses a list that has pages behind the file's end.
    pub(super) fn check_ranges(&self, ranges: &PageRanges) -> Result<(), MemoryFileError> {
        match ranges.end() <= self.len.div_ceil(PAGE_SIZE) {
            true => Ok(()),
            false => Err(self.wrong_list("changed pages")),
        }
    }

    fn wrong_list(&self, what: &'static str) -> MemoryFileError {
        MemoryFileError::WrongList {
            path: self.path.clone(),
            size: ByteSize(self.len),
            what,
        }
    }

    pub(super) fn io(&self, doing: &'static str, source: io::Error) -> MemoryFileError {
        MemoryFileError::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    /// Bytes of guest memory that it is for.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether both are one file, by whatever name.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let id = |file: &File| file.metadata().map(|found| (found.dev(), found.ino()));
        matches!((id(&self.file), id(&other.file)), (Ok(left), Ok(right)) if left == right)
    }
}

#[cfg(test)]
mod tests;

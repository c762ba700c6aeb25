//! A disk of a guest's own over a base that many share: what the guest has written is in the overlay, all else in the base.
//!
//! The overlay is a sparse file: a [header], a bitmap with a bit a sector, and the sectors, each where it is on the disk.
//! With a bit for a sector, which is what all requests are multiples of, a write never has to copy what is around it from
//! the base; so requests go to the one file or the other as they are, and two that meet in a block are no special case.

mod bitmap;
mod commit;
mod error;
mod header;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

pub use commit::Commit;
pub use error::OverlayError;
pub(super) use header::MAGIC;

use super::lock::{self, LockError};
use super::{Layer, Place, SECTOR, new_file};
use bitmap::{BLOCK, Bitmap, WORDS};
use header::{BITMAP, Base, Header, Unreadable};

/// What the data begins at a multiple of: more than any file system's or disk's unit.
const DATA_ALIGNMENT: u64 = 1 << 20;
/// Only the user that runs the guest can read what it writes.
const MODE: u32 = 0o600;

/// An open overlay. It is locked as long as it is open.
pub struct Overlay {
    base: File,
    base_path: PathBuf,
    /// The overlay through the page cache, whatever way its data goes.
    file: File,
    data: u64,
    bitmap: Bitmap,
    /// Is held while a part of the file's bitmap is read and written.
    writing: Mutex<()>,
}

impl Overlay {
    /// Opens the overlay at `path`, or makes it, for the base at `base_path`, which is open as `base` and has `size` bytes.
    pub(super) fn open(path: &Path, base: File, base_path: &Path, size: u64) -> Result<Self, OverlayError> {
        let create = |source| OverlayError::Create {
            path: path.to_owned(),
            source,
        };
        let identity = Base::of(base_path, &base, size).map_err(create)?;
        let bitmap = Bitmap::new(size / u64::from(SECTOR)).map_err(create)?;
        let data = (BITMAP + bitmap.bytes()).next_multiple_of(DATA_ALIGNMENT);
        let header = Header { base: identity, data };
        let file = match make(path, &header) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => reopen(path, &header, &bitmap)?,
            Err(source) => return Err(create(source)),
        };
        Ok(Self {
            base,
            base_path: base_path.to_owned(),
            file,
            data,
            bitmap,
            writing: Mutex::new(()),
        })
    }

    /// The file that the data goes to.
    pub(super) fn data_file(&self, path: &Path, direct: bool) -> io::Result<File> {
        if !direct {
            return self.file.try_clone();
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
    }

    /// The base.
    pub(super) fn base(&self) -> &File {
        &self.base
    }

    /// Where the base is.
    pub(super) fn base_path(&self) -> &Path {
        &self.base_path
    }

    /// Where the data begins in the file, in bytes.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// Where `len` bytes at `offset` of the disk are, or as many of them as are together.
    #[inline]
    pub(super) fn find(&self, offset: u64, len: u64) -> Place {
        let sector = u64::from(SECTOR);
        let (first, end) = (offset / sector, (offset + len).div_ceil(sector));
        let (is_there, run) = self.bitmap.run(first, end - first);
        let len = ((first + run) * sector - offset).min(len);
        if is_there {
            Place {
                layer: Layer::Top,
                offset: self.data + offset,
                len,
            }
        } else {
            Place {
                layer: Layer::Base,
                offset,
                len,
            }
        }
    }

    /// `len` bytes at `offset` of the disk are in the file from now on. Of a sector that is written in parts, each call
    /// follows the one before.
    #[inline]
    pub(super) fn wrote(&self, offset: u64, len: u64) {
        let sector = u64::from(SECTOR);
        self.bitmap.set(offset / sector, (offset + len) / sector);
    }

    /// Whether sectors have been written since the last flush that were not there before.
    pub(super) fn has_changed(&self) -> bool {
        self.bitmap.changes().is_some()
    }

    /// Sets the bits that are set in `words` in a block of the file's bitmap. Others may have set more there since the copy
    /// was made: these stay.
    fn add_to_file(&self, block: usize, words: &[u64]) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let at = BITMAP + (block * BLOCK) as u64;
        let mut bytes = [0; BLOCK];
        self.file.read_exact_at(&mut bytes, at)?;
        let places: &mut [[u8; WORD]] = bytes.as_chunks_mut().0;
        for (place, word) in places.iter_mut().zip(words) {
            *place = (u64::from_le_bytes(*place) | word).to_le_bytes();
        }
        self.file.write_all_at(&bytes, at)
    }
}

/// Bytes of a word of the bitmap.
const WORD: usize = BLOCK / WORDS;

/// Makes the overlay, locked, without a sector.
fn make(path: &Path, header: &Header) -> io::Result<File> {
    let bytes = header.encode().ok_or(io::ErrorKind::InvalidFilename)?;
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    new_file::create(path, MODE, |file| {
        file.try_lock()?;
        file.write_all_at(&bytes, 0)?;
        file.set_len(length(header))
    })
}

/// Bytes of an overlay.
fn length(header: &Header) -> u64 {
    header.data.saturating_add(header.base.size)
}

/// Opens an overlay that is there, and reads its bitmap.
fn reopen(path: &Path, expected: &Header, bitmap: &Bitmap) -> Result<File, OverlayError> {
    let open_error = |source| OverlayError::Open {
        path: path.to_owned(),
        source,
    };
    // To open a pipe would wait for somebody at its other end.
    if !path.metadata().map_err(open_error)?.is_file() {
        return Err(OverlayError::NoOverlay {
            path: path.to_owned(),
        });
    }
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(open_error)?;
    // A header is never changed, so it can be read before the lock is there; what is no overlay is then called by its name.
    check(path, &file, expected)?;
    lock::lock(&file, false).map_err(|error| match error {
        LockError::InUse(holder) => OverlayError::InUse {
            path: path.to_owned(),
            holder,
        },
        LockError::Failed(source) => OverlayError::NoLock {
            path: path.to_owned(),
            source,
        },
    })?;
    load(&file, bitmap).map_err(open_error)?;
    Ok(file)
}

/// Looks whether the file is the overlay of this base.
fn check(path: &Path, file: &File, expected: &Header) -> Result<(), OverlayError> {
    let path = path.to_owned();
    let mut bytes = [0; header::SIZE];
    let read = file.read_exact_at(&mut bytes, 0);
    let found = match read.map_or(Err(Unreadable::Magic), |()| Header::decode(&bytes)) {
        Ok(found) => found,
        Err(Unreadable::Magic) => return Err(OverlayError::NoOverlay { path }),
        Err(Unreadable::Version(version)) => return Err(OverlayError::Version { path, version }),
        Err(Unreadable::Damaged) => {
            let what = "its header is not as it was written";
            return Err(OverlayError::Damaged { path, what });
        }
    };
    let (was, is) = (&found.base, &expected.base);
    let is_as_it_was = (was.size, was.modified) == (is.size, is.modified);
    // A base that was moved, and is at its old place no more, is the same.
    if was.path != is.path && (!is_as_it_was || was.path.exists()) {
        let (belongs, base) = (was.path.clone(), is.path.clone());
        return Err(OverlayError::OtherBase { path, belongs, base });
    }
    if !is_as_it_was {
        let (was, is) = (Box::new(was.clone()), Box::new(is.clone()));
        return Err(OverlayError::BaseChanged { path, was, is });
    }
    let len = file.metadata().map(|metadata| metadata.len());
    if found.data != expected.data || len.ok() != Some(length(expected)) {
        let what = "it is shorter or longer than it was made";
        return Err(OverlayError::Damaged { path, what });
    }
    Ok(())
}

/// Reads the parts of the file's bitmap that were ever written.
fn load(file: &File, bitmap: &Bitmap) -> io::Result<()> {
    let end = BITMAP + bitmap.bytes();
    let mut at = BITMAP;
    let mut bytes = [0; BLOCK];
    while let Some(found) = next_data(file, at)?.filter(|found| *found < end) {
        // Holes begin and end at the file system's blocks, of which it may have smaller ones.
        at = found - (found - BITMAP) % BLOCK as u64;
        file.read_exact_at(&mut bytes, at)?;
        bitmap.load(at - BITMAP, &bytes);
        at += BLOCK as u64;
    }
    Ok(())
}

/// Where the file's next data is, from `at` on.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match lseek(file.as_fd(), at as i64, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

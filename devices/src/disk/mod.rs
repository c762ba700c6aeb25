//! Disk images on the host: raw files and block devices, opened, locked, measured and watched.
//!
//! What is read from and written to an image goes through an [`Engine`]; nothing here knows virtio.

mod block_device;
mod durability;
mod engine;
mod error;
mod format;
mod lock;
mod patience;
mod sync;
#[cfg(test)]
mod tests;
mod uring;

pub use durability::{Durability, Flush};
pub use engine::{Engine, EngineKind, Operation};
pub use error::{DiskError, Holder, NoImage};

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Bytes of a sector, the unit of a disk's size and of all positions on it, whatever its blocks are (§5.2.4).
pub const SECTOR: u32 = 512;

/// How an image is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Nobody is to write to it.
    pub readonly: bool,
    /// Past the host's page cache (O_DIRECT).
    pub direct: bool,
    /// The user says that it is raw: it is one even if it begins like an image of another format.
    pub raw: bool,
}

/// The sizes of what an image is made of, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// What positions and lengths of requests are multiples of: a power of two, at least [`SECTOR`].
    pub logical: u32,
    /// What can be written without reading what is around it: a power of two, at least `logical`.
    pub physical: u32,
}

/// An open image. It is locked as long as it is open.
pub struct Image {
    path: PathBuf,
    file: File,
    sectors: AtomicU64,
    blocks: Blocks,
    options: ImageOptions,
    durability: Durability,
    /// Readable when somebody else who had opened the file for writing has closed it. Of regular files only.
    changes: Option<Inotify>,
}

impl Image {
    /// Opens and locks the image at `path`: alone if it is writable, else together with others who only read.
    ///
    /// # Errors
    /// It cannot be opened like that, is none, is of another format, or is in use.
    pub fn open(path: &Path, options: ImageOptions) -> Result<Self, DiskError> {
        let is_device = check_kind(path)?;
        let mut file = open(path, options)?;
        lock::lock(&file, path, options.readonly)?;
        if !options.raw {
            format::refuse_foreign(&file, path)?;
        }
        let failed = |source| DiskError::open(path, options, source);
        let blocks = blocks(&file, is_device, options.direct).map_err(failed)?;
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        check_size(path, size, blocks.logical)?;
        Ok(Self {
            path: path.to_owned(),
            changes: if is_device {
                None
            } else {
                Some(watch(&file).map_err(failed)?)
            },
            file,
            sectors: AtomicU64::new(size / u64::from(SECTOR)),
            blocks,
            options,
            durability: Durability::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// How it was opened.
    pub fn options(&self) -> ImageOptions {
        self.options
    }

    /// What it is made of.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// How much of what was written has reached the disk.
    #[inline]
    pub fn durability(&self) -> &Durability {
        &self.durability
    }

    /// Its size in [sectors](SECTOR), as of the last [`measure`](Self::measure).
    #[inline]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Looks how large it is now; returns whether that has changed. What is less than a block at its end is not part of it.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn measure(&self) -> io::Result<bool> {
        let size = (&self.file).seek(SeekFrom::End(0))?;
        let sectors = size / u64::from(self.blocks.logical) * u64::from(self.blocks.logical / SECTOR);
        Ok(self.sectors.swap(sectors, Ordering::Relaxed) != sectors)
    }

    /// What becomes readable when the file may have changed its size; `None` for what never does.
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// Takes note of the changes so far.
    pub fn clear_changes(&self) {
        self.durability.written();
        if let Some(changes) = &self.changes {
            // Fails only when there is nothing to read.
            let _ = changes.read_events();
        }
    }
}

/// Looks before opening: to open a pipe would wait for somebody at its other end, and to open a character device may do
/// anything. Returns whether it is a block device.
fn check_kind(path: &Path) -> Result<bool, DiskError> {
    let metadata = path.metadata().map_err(|source| DiskError::Missing {
        path: path.to_owned(),
        source,
    })?;
    let kind = metadata.file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    } else if kind.is_dir() {
        NoImage::Directory
    } else if kind.is_char_device() {
        NoImage::CharacterDevice
    } else {
        NoImage::PipeOrSocket
    };
    Err(DiskError::NoImage {
        path: path.to_owned(),
        what,
    })
}

fn open(path: &Path, options: ImageOptions) -> Result<File, DiskError> {
    let mut open = OpenOptions::new();
    open.read(true).write(!options.readonly);
    if options.direct {
        open.custom_flags(libc::O_DIRECT);
    }
    open.open(path)
        .map_err(|source| DiskError::open(path, options, source))
}

/// Of a file in the page cache any byte can be written; 4096 is the size of its pages. Direct I/O has blocks of its own.
fn blocks(file: &File, is_device: bool, direct: bool) -> io::Result<Blocks> {
    const PAGE: u32 = 4096;
    if is_device {
        return block_device::blocks(file);
    }
    let logical = if direct {
        block_device::direct_block(file)?
    } else {
        SECTOR
    };
    Ok(Blocks {
        logical,
        physical: logical.max(PAGE),
    })
}

fn check_size(path: &Path, size: u64, block: u32) -> Result<(), DiskError> {
    let path = path.to_owned();
    if size == 0 {
        Err(DiskError::Empty { path })
    } else if !size.is_multiple_of(block.into()) {
        Err(DiskError::Size { path, size, block })
    } else {
        Ok(())
    }
}

/// The kernel tells of a close by anybody but this process, which never closes it, and costs nothing until then.
fn watch(file: &File) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify.add_watch(path.as_str(), AddWatchFlags::IN_CLOSE_WRITE)?;
    Ok(inotify)
}

//! Disk images on the host: raw files and block devices, opened, locked, measured and watched.
//!
//! What is read from and written to an image goes through an [`Engine`]; nothing here knows virtio.

mod block_device;
mod changes;
mod durability;
mod engine;
mod error;
mod format;
mod lock;
mod new_file;
mod overlay;
mod patience;
mod reflink;
mod sync;
#[cfg(test)]
mod tests;
mod uring;

pub use durability::{Durability, Flush};
pub use engine::{Engine, EngineKind, Layer, Operation};
pub use error::{DiskError, Holder, NoImage};
pub use overlay::{Commit, Overlay, OverlayError};
pub use reflink::{ReflinkError, reflink, share_data};

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use changes::Changes;

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

/// Where bytes of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which file.
    pub layer: Layer,
    /// Where in that, in bytes.
    pub offset: u64,
    /// How many of the bytes that were asked for are there, one behind the other; at least one.
    pub len: u64,
}

/// An open image. It is locked as long as it is open.
pub struct Image {
    path: PathBuf,
    file: File,
    /// Where the disk's first byte is in the file.
    start: u64,
    overlay: Option<Overlay>,
    sectors: AtomicU64,
    blocks: Blocks,
    options: ImageOptions,
    durability: Durability,
    /// Of an image that is all of the disk.
    changes: Option<Changes>,
}

impl Image {
    /// Opens and locks the image at `path`: alone if it is writable, else together with others who only read.
    ///
    /// # Errors
    /// It cannot be opened like that, is none, is of another format, or is in use.
    pub fn open(path: &Path, options: ImageOptions) -> Result<Self, DiskError> {
        let Opened {
            file,
            is_device,
            size,
            blocks,
        } = Opened::new(path, options, options.raw)?;
        let failed = |source| DiskError::open(path, options, source);
        Ok(Self {
            path: path.to_owned(),
            changes: if is_device {
                changes_of_device(&file, path)
            } else {
                Some(Changes::of_file(&file, path).map_err(failed)?)
            },
            file,
            start: 0,
            overlay: None,
            sectors: AtomicU64::new(size / u64::from(SECTOR)),
            blocks,
            options,
            durability: Durability::default(),
        })
    }

    /// A disk like the image at `base`, which is only read, together with others. What is written goes to the overlay at
    /// `path`, a file that is made if it is not there, and that nobody else has meanwhile.
    ///
    /// # Errors
    /// The base cannot be opened for reading, or the overlay cannot be made, is another base's, or is in use.
    pub fn open_over(base: &Path, path: &Path, options: ImageOptions) -> Result<Self, DiskError> {
        let readonly = ImageOptions {
            readonly: true,
            ..options
        };
        let Opened {
            file, size, blocks, ..
        } = Opened::new(base, readonly, false)?;
        let overlay = Overlay::open(path, file, base, size)?;
        let data = overlay.data_file(path, options.direct);
        let own = data.and_then(|file| Ok((self::blocks(&file, false, options.direct)?, file)));
        let (own, file) = own.map_err(|source| DiskError::open(path, options, source))?;
        let blocks = Blocks {
            logical: blocks.logical.max(own.logical),
            physical: blocks.physical.max(own.physical),
        };
        check_size(base, size, blocks.logical, false)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            start: overlay.data(),
            overlay: Some(overlay),
            sectors: AtomicU64::new(size / u64::from(SECTOR)),
            blocks,
            options,
            durability: Durability::default(),
            // The base is as large as it was when the overlay was made.
            changes: None,
        })
    }

    /// Where it is: the file that is written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file: the one that is written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What the file is an overlay of.
    pub fn base(&self) -> Option<&File> {
        self.overlay.as_ref().map(Overlay::base)
    }

    /// What is to be told of writes and flushes.
    pub fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    /// Where to read `len` bytes at `offset` of the disk, or the first of them.
    #[inline]
    pub fn find(&self, offset: u64, len: u64) -> Place {
        match &self.overlay {
            None => Place {
                layer: Layer::Top,
                offset,
                len,
            },
            Some(overlay) => overlay.find(offset, len),
        }
    }

    /// Where to write, in the [top](Layer::Top) file, what is to be at `offset` of the disk.
    #[inline]
    pub fn position(&self, offset: u64) -> u64 {
        self.start + offset
    }

    /// So many bytes at `offset` of the disk have been written, or made zeros.
    #[inline]
    pub fn wrote(&self, offset: u64, len: u64) {
        if let Some(overlay) = &self.overlay {
            overlay.wrote(offset, len);
        }
    }

    /// For who lets go of a guest that has not flushed: what it has written is found again when the image is opened. That is
    /// so of all but overlays anyway.
    ///
    /// # Errors
    /// The host cannot write it.
    pub fn settle(&self) -> io::Result<()> {
        match &self.overlay {
            Some(overlay) if overlay.has_changed() => self.flush(),
            _ => Ok(()),
        }
    }

    /// What was written before is on the disk when this returns, and is found again when the image is opened.
    ///
    /// # Errors
    /// The host cannot write it.
    pub fn flush(&self) -> io::Result<()> {
        let Some(overlay) = &self.overlay else {
            return self.file.sync_data();
        };
        let mut commit = Commit::default();
        commit.begin(overlay);
        loop {
            self.file.sync_data()?;
            if commit.synced(overlay)? {
                return Ok(());
            }
        }
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
        if self.overlay.is_some() {
            return Ok(false);
        }
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
        self.durability.written_by_others();
        if let Some(changes) = &self.changes {
            changes.clear();
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.path.display())?;
        match &self.overlay {
            None => Ok(()),
            Some(overlay) => write!(f, " over '{}'", overlay.base_path().display()),
        }
    }
}

/// Locks `file`, open for writing, the image at `path`, until it is closed: nobody else may have it.
///
/// # Errors
/// Somebody has.
pub fn lock_alone(file: &File, path: &Path) -> Result<(), DiskError> {
    lock::lock(file, false).map_err(|error| DiskError::lock(path, error))
}

/// A file that is a disk.
struct Opened {
    file: File,
    is_device: bool,
    size: u64,
    blocks: Blocks,
}

impl Opened {
    /// Who says that a file is raw may mean one whose bytes come later: it may be empty.
    fn new(path: &Path, options: ImageOptions, may_be_empty: bool) -> Result<Self, DiskError> {
        let is_device = check_kind(path)?;
        let mut file = open(path, options)?;
        lock::lock(&file, options.readonly).map_err(|error| DiskError::lock(path, error))?;
        if !options.raw {
            format::refuse_foreign(&file, path)?;
        }
        let failed = |source| DiskError::open(path, options, source);
        let blocks = blocks(&file, is_device, options.direct).map_err(failed)?;
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        check_size(path, size, blocks.logical, may_be_empty)?;
        Ok(Self {
            file,
            is_device,
            size,
            blocks,
        })
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

fn check_size(path: &Path, size: u64, block: u32, may_be_empty: bool) -> Result<(), DiskError> {
    let path = path.to_owned();
    if size == 0 && !may_be_empty {
        Err(DiskError::Empty { path })
    } else if !size.is_multiple_of(block.into()) {
        Err(DiskError::Size { path, size, block })
    } else {
        Ok(())
    }
}

/// A host that does not tell may still have the device.
fn changes_of_device(file: &File, path: &Path) -> Option<Changes> {
    let changes = Changes::of_device(file);
    changes
        .inspect_err(|error| {
            tracing::debug!(
                "if '{}' gets another size, nobody will tell: {error}",
                path.display()
            );
        })
        .ok()
}

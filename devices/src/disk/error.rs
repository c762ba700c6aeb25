//! Why an image cannot be a guest's disk: a sentence each, with what its user can do.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use thiserror::Error;

use super::lock::LockError;
use super::{ImageOptions, OverlayError};

/// What is wrong with a disk image.
#[derive(Debug, Error)]
pub enum DiskError {
    /// There is no such file, or it cannot be reached.
    #[error("cannot find the disk image '{path}': {source}; make one with 'truncate -s 1G {path}'", path = path.display())]
    Missing {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be opened at all.
    #[error("cannot open the disk image '{path}': {source}", path = path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be opened for writing.
    #[error(
        "cannot open the disk image '{path}' for writing: {source}; permit it, or add ',readonly' to the disk",
        path = path.display()
    )]
    NotWritable {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file system has no direct I/O.
    #[error("the disk image '{path}' lies where there is no direct I/O: leave out 'cache=direct'", path = path.display())]
    NoDirect {
        /// The image.
        path: PathBuf,
    },
    /// It is no file that could be a disk.
    #[error("the disk image '{path}' is {what}: it must be a regular file or a block device", path = path.display())]
    NoImage {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: NoImage,
    },
    /// It begins like an image of another format.
    #[error(
        "the disk image '{path}' looks like {format}, and posada reads raw images: convert it with 'qemu-img convert \
         -O raw', or add ',format=raw' to the disk if it is raw all the same",
        path = path.display()
    )]
    Foreign {
        /// The image.
        path: PathBuf,
        /// The name of the format.
        format: &'static str,
    },
    /// It has no bytes.
    #[error("the disk image '{path}' is empty: give it a size, as with 'truncate -s 1G {path}'", path = path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// It is no whole number of blocks.
    #[error(
        "the disk image '{path}' has {size} bytes: it must be a multiple of {block}; 'truncate -s %{block} {path}' \
         makes it one",
        path = path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it must be a multiple of, in bytes.
        block: u32,
    },
    /// Somebody else has it.
    #[error(
        "the disk image '{path}' is in use by {holder}: end that first, or give both the disk with ',readonly', or \
         each an overlay of its own with ',overlay=FILE'",
        path = path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// It cannot be locked.
    #[error("cannot lock the disk image '{path}' against other guests: {source}", path = path.display())]
    NoLock {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is what a guest has written over a base, and no whole disk.
    #[error(
        "'{path}' is an overlay: give the disk the image that it lies over, with ',overlay={path}'; or add ',format=raw' \
         if it is a disk all the same",
        path = path.display()
    )]
    IsOverlay {
        /// The overlay.
        path: PathBuf,
    },
    /// The overlay cannot be used.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The engine that was asked for is not there.
    #[error("the host's kernel refuses io_uring: {0}; leave out 'engine=io_uring'")]
    NoUring(io::Error),
}

impl DiskError {
    pub(super) fn lock(path: &Path, error: LockError) -> Self {
        let path = path.to_owned();
        match error {
            LockError::InUse(holder) => Self::InUse { path, holder },
            LockError::Failed(source) => Self::NoLock { path, source },
        }
    }

    pub(super) fn open(path: &Path, options: ImageOptions, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EINVAL) if options.direct => Self::NoDirect { path },
            Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) if !options.readonly => {
                Self::NotWritable { path, source }
            }
            _ => Self::Open { path, source },
        }
    }
}

/// What a file is that is no disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoImage {
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice,
    /// A pipe or a socket.
    PipeOrSocket,
}

impl fmt::Display for NoImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "a directory",
            Self::CharacterDevice => "a character device",
            Self::PipeOrSocket => "a pipe or a socket",
        })
    }
}

/// Who has locked an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This guest: the image was given to it twice.
    ThisGuest,
    /// A process and its name.
    Process(u32, String),
    /// Somebody whom /proc/locks does not name: one in another PID namespace, or one that is ending.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ThisGuest => f.write_str("another disk of this guest"),
            Self::Process(pid, name) => write!(f, "process {pid} ({name})"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}

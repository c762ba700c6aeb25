//! Everything that can keep a snapshot from being taken or used, each a sentence for its user.

use std::io;
use std::path::PathBuf;

use devices::disk::ReflinkError;
use thiserror::Error;

use super::format::FormatError;
use super::frozen::FrozenError;
use super::image::MAX_DIFFS;
use super::memory_file::MemoryFileError;
use super::served::ServedError;
use crate::error::Error as VmError;
use crate::state::LoadError;
use crate::vcpu::RequestError;

/// Why a snapshot could not be taken or used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// There is something at its place.
    #[error("there is a '{path}' already: name another directory, or remove it", path = .0.display())]
    Exists(PathBuf),
    /// Its directory cannot be made.
    #[error("cannot make the snapshot's directory '{path}': {source}", path = path.display())]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A part of it cannot be written.
    #[error("cannot write the snapshot's {what}: {source}")]
    Write {
        /// Which part.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Its state cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its memory cannot be written while the guest runs on.
    #[error(transparent)]
    Frozen(#[from] FrozenError),
    /// Its memory cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// Another process does not serve its memory.
    #[error(transparent)]
    Served(#[from] ServedError),
    /// No diff without something that it is one to.
    #[error(
        "there is no snapshot of this guest to take a diff against: take a full one first, without --diff"
    )]
    NothingBefore,
    /// A long way to restore.
    #[error(
        "{MAX_DIFFS} diffs lead to the last snapshot, and there cannot be more: take a full one, without --diff"
    )]
    TooManyDiffs,
    /// What a diff was taken against is another snapshot now.
    #[error(
        "the snapshot was taken as a diff to '{path}', and that is another snapshot now: put the right one there",
        path = .0.display()
    )]
    Parent(PathBuf),
    /// The host's CPU lacks what the guest may use.
    #[error("{0}")]
    Cpu(String),
    /// A disk is not what the guest remembers.
    #[error(
        "the disk '{path}' {what} since the snapshot was taken, which would confuse its guest: give a copy from then with \
         --disk ID=PATH", path = path.display()
    )]
    Disk {
        /// The image.
        path: PathBuf,
        /// What has happened.
        what: String,
    },
    /// The guest's disk is not one that the snapshot knows.
    #[error(
        "the guest writes to '{path}', and the snapshot was taken with another disk: what has been written cannot be taken back",
        path = .0.display()
    )]
    OtherDisk(PathBuf),
    /// There can be no file for what the guest writes.
    #[error("cannot make room for the guest's own disk: '{path}' cannot be removed: {source}", path = path.display())]
    OwnDisk {
        /// What is in the way.
        path: PathBuf,
        /// Why it stays.
        source: io::Error,
    },
    /// The file system has no copies by reflink of an overlay that is to be several guests'.
    #[error(
        "each guest needs a copy of the overlay '{path}', and beside the guest's files none can share its data: {source}; give \
         each a copy of its own with --disk ID=BASE,overlay=COPY", path = path.display()
    )]
    CopyOverlay {
        /// The overlay.
        path: PathBuf,
        /// Why there is no copy.
        source: io::Error,
    },
    /// An overlay cannot be copied.
    #[error(transparent)]
    Reflink(ReflinkError),
    /// The guest does not come to rest, or has ended.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// The state does not fit.
    #[error("the snapshot does not fit this machine: {0}")]
    Load(#[from] LoadError),
    /// The machine cannot be built, or cannot go on.
    #[error(transparent)]
    Vm(#[from] VmError),
}

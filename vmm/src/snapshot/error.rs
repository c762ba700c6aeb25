//! Everything that can keep a snapshot from being taken or used, each a sentence for its user.

use std::io;
use std::path::PathBuf;

use devices::disk::DiskError;
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
        "the disk '{path}' {what} since the snapshot was taken, which would confuse its guest: {remedy} a copy from then with \
         --disk ID=PATH", path = path.display()
    )]
    Disk {
        /// The image.
        path: PathBuf,
        /// What has happened.
        what: String,
        /// What else there is to do.
        remedy: &'static str,
    },
    /// A running guest's disk has no name any more.
    #[error("the guest's disk '{path}' is not where it was: {source}", path = path.display())]
    DiskGone {
        /// The image.
        path: PathBuf,
        /// Why it cannot be seen.
        source: io::Error,
    },
    /// A disk cannot be copied into the snapshot.
    #[error("cannot copy the guest's disk '{path}' into the snapshot: {source}{remedy}", path = path.display())]
    CopyDisk {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
        /// What the user can do, if anything.
        remedy: &'static str,
    },
    /// A disk is to be put back, and the snapshot does not have it.
    #[error(
        "the disk '{path}' has changed since the snapshot was taken, and the snapshot has no copy of it: take snapshots with \
         --disks, to be able to put disks back", path = .0.display()
    )]
    NoCopy(PathBuf),
    /// A disk is to be put back that somebody uses.
    #[error("it cannot be put back: {0}")]
    DiskInUse(#[from] DiskError),
    /// A disk is to be put back in a guest that knows which of its sectors are its own.
    #[error(
        "the overlay '{path}' cannot be put back while its guest runs: end the guest, and restore the snapshot with --disks",
        path = .0.display()
    )]
    OverlayRuns(PathBuf),
    /// A disk cannot be put back.
    #[error("cannot put the disk '{path}' back from its copy '{copy}': {source}", path = path.display(), copy = copy.display())]
    PutBack {
        /// The image.
        path: PathBuf,
        /// Its copy.
        copy: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest's disk is not one that the snapshot knows.
    #[error(
        "the guest writes to '{path}', and the snapshot was taken with another disk: what has been written cannot be taken back",
        path = .0.display()
    )]
    OtherDisk(PathBuf),
    /// There can be no file for what the guest writes.
    #[error(
        "cannot make the guest's own disk '{path}': {source}; name another place with --disk ID=BASE,overlay=FILE",
        path = path.display()
    )]
    OwnDisk {
        /// Where it was to be.
        path: PathBuf,
        /// Why it is not.
        source: io::Error,
    },
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

//! Snapshots: a running guest frozen to a directory, and machines made from it, at once and any number of times.
//!
//! ```text
//!   DIR/state     what the machine was: configuration, CPUs, devices; and what is in `memory`   (format)
//!   DIR/memory    the guest's memory, sparse, mapped by every machine that is made from it       (memory_file)
//!   DIR/disk-0, ...  copies of the disks that the guest writes to, if they were wanted           (disk_copies)
//!   DIR/working-set  what of it a restored guest uses first, once that has been recorded         (working_set)
//! ```
//!
//! A directory is written beside its place and renamed into it, so that one which is there is whole. docs/snapshots.md
//! describes the format.

mod directory;
mod disk_copies;
mod error;
pub mod format;
pub mod frozen;
mod history;
pub mod image;
mod manifest;
pub mod memory_file;
mod merge;
mod own_disks;
pub mod pages;
pub mod ranges;
mod restore;
mod served;
mod take;
#[cfg(test)]
mod testing;
mod uffd;
mod working_set;
mod write;

pub(crate) use directory::Partial;
pub use error::SnapshotError;
pub use history::History;
pub use manifest::{DiskRecord, MEMORY, Manifest, STATE};
pub use merge::merge;
pub use restore::{MemoryFrom, Prefault, Rewound, Snapshot, rewind};
pub use served::ServedError;
pub use take::{SnapshotOptions, Taken, take, take_changes};

//! What the file `state` says: the machine's configuration, the host it ran on, its disks, what is in `memory`, and its state.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::config::{DiskConfig, VmConfig};
use crate::snapshot::memory_file::Checksums;
use crate::snapshot::ranges::PageRanges;
use crate::state::VmState;
use crate::vcpu::features::CpuFeatures;

/// The name of the state's file in a snapshot's directory.
pub const STATE: &str = "state";
/// The name of the memory's file.
pub const MEMORY: &str = "memory";

/// A snapshot, but for its memory.
#[derive(Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// A number that no other snapshot has.
    pub id: u64,
    /// The version of posada that took it.
    pub posada: String,
    /// When, in seconds since 1970.
    pub taken: u64,
    /// What the machine was built from. Its paths are absolute.
    pub config: VmConfig,
    /// What its guest has seen of a CPU.
    pub cpu: CpuFeatures,
    /// Its writable disks, as they were.
    pub disks: Vec<DiskRecord>,
    /// What is in the file beside.
    pub memory: MemoryRecord,
    /// What the machine was.
    pub vm: VmState,
}

/// What is in the file `memory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// Bytes of the guest's memory.
    pub bytes: u64,
    /// Of what is in the file.
    pub checksums: Checksums,
    /// The pages that are in the file, and where the others are; `None`: all are.
    pub diff: Option<DiffRecord>,
}

impl MemoryRecord {
    /// The pages that are in the file.
    pub fn pages(&self) -> PageRanges {
        match &self.diff {
            Some(diff) => diff.pages.clone(),
            None => PageRanges::all(self.bytes),
        }
    }
}

/// Where the rest of a diff's memory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRecord {
    /// The snapshot that has it, or has it from another one.
    pub parent: PathBuf,
    /// That snapshot's number, lest it is another one by now.
    pub parent_id: u64,
    /// The pages that are in this one's file.
    pub pages: PageRanges,
}

/// An image, or an overlay, that the guest can write, when the snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was written last: seconds and nanoseconds since 1970. A block device does not tell.
    pub modified: Option<(i64, i64)>,
    /// The name of its copy in the snapshot's directory, if there is one.
    #[serde(default)]
    pub copy: Option<String>,
}

impl DiskRecord {
    /// The files that the guest of this configuration writes to, as they are now. An overlay knows its base itself.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn of_all(config: &VmConfig) -> Result<Vec<Self>, SnapshotError> {
        let written = config.disks.iter().filter_map(DiskConfig::written);
        written.map(|path| Self::of(path.to_owned())).collect()
    }

    pub(super) fn of(path: PathBuf) -> Result<Self, SnapshotError> {
        let metadata = fs::metadata(&path).map_err(|source| SnapshotError::DiskGone {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            copy: None,
            path,
            size: metadata.len(),
            modified: metadata
                .is_file()
                .then(|| (metadata.mtime(), metadata.mtime_nsec())),
        })
    }

    /// Whether the image is what it was.
    ///
    /// # Errors
    /// It has been written, has another size, or is gone.
    pub fn check(&self) -> Result<(), SnapshotError> {
        let remedy = match self.copy {
            Some(_) => "put it back with --disks, or give",
            None => "give",
        };
        let changed = |what| SnapshotError::Disk {
            path: self.path.clone(),
            what,
            remedy,
        };
        let now = Self::of(self.path.clone()).map_err(|error| match error {
            SnapshotError::DiskGone { source, .. } => changed(format!("has gone ({source})")),
            other => other,
        })?;
        let what = if now.size != self.size {
            format!("has changed from {} bytes to {}", self.size, now.size)
        } else if now.modified != self.modified {
            "has been written".to_owned()
        } else {
            return Ok(());
        };
        Err(changed(what))
    }
}

/// Seconds since 1970, for the user.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

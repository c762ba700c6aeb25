//! Disks for one of several guests from a snapshot: they share what the snapshot's guest had, and each writes to a file of its
//! own.

use std::path::{Path, PathBuf};
use std::{fs, io};

use devices::disk::{ReflinkError, reflink};

use super::{DiskRecord, Snapshot, SnapshotError};
use crate::config::{Cache, DiskConfig, Overrides, VmConfig};

impl Snapshot {
    /// Has the guest of `config` write to new files in `directory`, but for those disks for which `given` names others.
    ///
    /// An image becomes the base of an overlay: all guests have the same pages of it in the host's cache, which copies by
    /// reflink would not. It stays as it is as long as one of them runs, for they lock it.
    ///
    /// # Errors
    /// A disk was an overlay before, and its file system has no copies by reflink.
    pub fn make_disks_own(
        &self,
        config: &mut VmConfig,
        given: &Overrides,
        directory: &Path,
    ) -> Result<(), SnapshotError> {
        for index in 0..config.disks.len() {
            if !given.replaces_disk(config, index) {
                self.make_own(
                    &mut config.disks[index],
                    directory.join(format!("disk-{index}.overlay")),
                )?;
            }
        }
        Ok(())
    }

    fn make_own(&self, disk: &mut DiskConfig, own: PathBuf) -> Result<(), SnapshotError> {
        let Some(written) = disk.written().map(Path::to_owned) else {
            return Ok(());
        };
        remove_leftover(&own).map_err(|source| SnapshotError::OwnDisk {
            path: own.clone(),
            source,
        })?;
        if disk.overlay.is_some() {
            reflink(&written, &own).map_err(|error| match error {
                ReflinkError::Unsupported { image, source, .. } => {
                    SnapshotError::CopyOverlay { path: image, source }
                }
                other => SnapshotError::Reflink(other),
            })?;
            // Whatever is in the copy was there before: nobody has written it since the snapshot.
            self.records_of(&written).try_for_each(DiskRecord::check)?;
        } else {
            // Where running guests' files are there may be no direct I/O, and the base is in the cache once for all of them.
            disk.cache = Some(Cache::Writeback);
        }
        disk.overlay = Some(own);
        Ok(())
    }
}

/// Removes what a guest of this name has left that was killed.
fn remove_leftover(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! Disks for one of several guests from a snapshot: they share what the snapshot's guest had, and each writes to a file of its
//! own.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{DiskRecord, Snapshot, SnapshotError, disk_copies};
use crate::config::{Cache, DiskConfig, Overrides, VmConfig};

impl Snapshot {
    /// Has the guest of `config` write to new files in `directory`, but for those disks for which `given` names others.
    ///
    /// An image, or the snapshot's copy of it, becomes the base of an overlay: all guests have the same pages of it in the host's
    /// cache, which copies by reflink would not. It stays as it is as long as one of them runs, for they lock it. What was an overlay
    /// already is copied, by reflink where the file system can.
    ///
    /// # Errors
    /// There is no room for a copy, or what was to be copied has changed since the snapshot.
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
        let failed = |source| SnapshotError::OwnDisk {
            path: own.clone(),
            source,
        };
        remove_leftover(&own).map_err(failed)?;
        let copy = self.records_of(&written).find_map(|record| record.copy.as_ref());
        let copy = copy.map(|name| self.directory().join(name));
        if disk.overlay.is_some() {
            disk_copies::copy(copy.as_ref().unwrap_or(&written), &own, true).map_err(failed)?;
            if copy.is_none() {
                // Whatever is in the copy was there before: nobody has written it since the snapshot.
                self.records_of(&written).try_for_each(DiskRecord::check)?;
            }
        } else {
            if let Some(copy) = copy {
                disk.path = copy;
            }
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

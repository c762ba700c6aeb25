//! A snapshot's directory while it is being written: beside its place, into which it is renamed when it is whole.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tracing::debug;

use super::SnapshotError;

/// A guest's memory holds its secrets.
const PRIVATE_DIRECTORY: u32 = 0o700;

/// A directory that is not a snapshot yet. Dropping it removes it.
pub struct Partial {
    path: PathBuf,
    place: PathBuf,
    published: bool,
}

impl Partial {
    /// Begins a directory that is to become `place`.
    ///
    /// # Errors
    /// There is something at `place`, or no directory can be there.
    pub fn begin(place: &Path) -> Result<Self, SnapshotError> {
        let refused = |source| SnapshotError::Directory {
            path: place.to_owned(),
            source,
        };
        if place.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists(place.to_owned()));
        }
        let name = place
            .file_name()
            .ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        partial.push(format!(".partial-{}", std::process::id()));
        let path = parent(place).join(partial);
        // What a crashed process with this number has left.
        let _ = fs::remove_dir_all(&path);
        let mut builder = DirBuilder::new();
        builder.mode(PRIVATE_DIRECTORY).create(&path).map_err(refused)?;
        Ok(Self {
            path,
            place: place.to_owned(),
            published: false,
        })
    }

    /// Where `name` is in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Puts the directory, whose files are on the disk, into its place; returns when that is on the disk too.
    ///
    /// # Errors
    /// Something has come to be at its place, or the disk fails.
    pub fn publish(mut self) -> Result<(), SnapshotError> {
        let refused = |source| SnapshotError::Directory {
            path: self.place.clone(),
            source,
        };
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(refused)?;
        // Never onto something else, be it an empty directory made meanwhile.
        match renameat2(
            AT_FDCWD,
            &self.path,
            AT_FDCWD,
            &self.place,
            RenameFlags::RENAME_NOREPLACE,
        ) {
            Err(nix::Error::EEXIST) => return Err(SnapshotError::Exists(self.place.clone())),
            result => result.map_err(|error| refused(error.into()))?,
        }
        self.published = true;
        File::open(parent(&self.place))
            .and_then(|directory| directory.sync_all())
            .map_err(refused)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            debug!("cannot remove '{}': {error}", self.path.display());
        }
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_there_as_a_whole_or_not_at_all() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().join("s");
        let partial = Partial::begin(&place).unwrap();
        fs::write(partial.file("memory"), "m").unwrap();
        assert!(!place.exists());
        partial.publish().unwrap();
        assert_eq!(fs::read(place.join("memory")).unwrap(), b"m");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let partial = Partial::begin(&base.path().join("s")).unwrap();
        fs::write(partial.file("memory"), "m").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_that_is_there_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().join("s");
        let partial = Partial::begin(&place).unwrap();
        fs::create_dir(&place).unwrap();
        assert!(matches!(partial.publish(), Err(SnapshotError::Exists(_))));
        assert!(matches!(Partial::begin(&place), Err(SnapshotError::Exists(_))));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1);
    }
}

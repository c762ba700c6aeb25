//! A snapshot's directory while it is being written: beside its place, into which it is renamed when it is whole. Likewise what is on its
//! way to be a single file.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tracing::debug;

use super::SnapshotError;
use crate::runtime;

/// A guest's memory holds its secrets.
const PRIVATE_DIRECTORY: u32 = 0o700;

/// What follows the place's name in that of its directory, before a number that nobody else has.
const MARK: &str = ".posada-partial-";

/// A directory that is not a snapshot yet. Dropping it removes it; one that a killed process has left, the next one that begins
/// beside it.
pub struct Partial {
    path: PathBuf,
    place: PathBuf,
    published: bool,
    /// Tells others that it is somebody's.
    _lock: File,
}

impl Partial {
    /// Begins a directory that is to become `place`.
    ///
    /// # Errors
    /// There is something at `place`, or no directory can be there.
    pub fn begin(place: &Path) -> Result<Self, SnapshotError> {
        match place.symlink_metadata() {
            Ok(_) => Err(SnapshotError::Exists(place.to_owned())),
            Err(_) => Self::beside(place),
        }
    }

    /// Begins a directory beside `place`, for what is to be moved there, onto what there may be.
    ///
    /// # Errors
    /// No directory can be there.
    pub fn beside(place: &Path) -> Result<Self, SnapshotError> {
        let refused = |source| SnapshotError::Directory {
            path: place.to_owned(),
            source,
        };
        let name = place
            .file_name()
            .ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
        let mut partial = OsString::from(".");
        partial.push(name);
        // A killed process may have left one that cannot be removed; and others' numbers of processes may be the same.
        let number = getrandom::u32().map_err(io::Error::from).map_err(refused)?;
        partial.push(format!("{MARK}{number}"));
        let path = parent(place).join(partial);
        sweep(parent(place));
        Ok(Self {
            _lock: create(&path).map_err(refused)?,
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
    pub fn publish(self) -> Result<(), SnapshotError> {
        self.publish_with(sync)
    }

    /// [`publish`](Self::publish), where `sync` brings a directory to the disk.
    fn publish_with(mut self, sync: impl Fn(&Path) -> io::Result<()>) -> Result<(), SnapshotError> {
        let refused = |source| SnapshotError::Directory {
            path: self.place.clone(),
            source,
        };
        sync(&self.path).map_err(refused)?;
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
        let synced = sync(parent(&self.place));
        // Who is told that there is no snapshot finds none, unless even that fails.
        self.published = synced.is_ok() || fs::rename(&self.place, &self.path).is_err();
        synced.map_err(refused)
    }

    /// Puts one file of the directory, which is on the disk, into the place, onto what there may be.
    ///
    /// # Errors
    /// The disk fails.
    pub fn put(&self, name: &str) -> io::Result<()> {
        fs::rename(self.file(name), &self.place)?;
        sync(parent(&self.place))
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

/// Makes a directory that is this process's as long as its lock is held.
fn create(path: &Path) -> io::Result<File> {
    loop {
        DirBuilder::new().mode(PRIVATE_DIRECTORY).create(path)?;
        // Who sweeps may have come before the lock.
        if let Some(lock) = runtime::own(path)? {
            return Ok(lock);
        }
    }
}

/// Removes what processes have left here that were killed.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_partial(&entry.file_name())
            && let Err(error) = runtime::remove_if_left(&entry.path())
        {
            debug!("cannot remove '{}': {error}", entry.path().display());
        }
    }
}

fn is_partial(name: &OsStr) -> bool {
    let mark = name
        .to_str()
        .and_then(|name| name.strip_prefix('.')?.rsplit_once(MARK));
    mark.is_some_and(|(_, process)| process.parse::<u32>().is_ok())
}

/// Returns when a directory's names are on the disk.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
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
    fn what_a_killed_process_has_left_goes_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        for name in [
            ".s.posada-partial-1",
            ".t.posada-partial-4294967295",
            ".s.posada-partial-x",
            "s.posada-partial-1",
        ] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        let other = create(&base.path().join(".u.posada-partial-2")).unwrap();
        let partial = Partial::begin(&base.path().join("s")).unwrap();
        let left = fs::read_dir(base.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        let own = partial.path.file_name().unwrap();
        let mut expected = [".s.posada-partial-x", ".u.posada-partial-2", "s.posada-partial-1"]
            .map(OsStr::new)
            .to_vec();
        expected.push(own);
        expected.sort_unstable();
        assert_eq!(left, expected);
        assert!(is_partial(own));
        drop((other, partial));
    }

    #[test]
    fn a_file_is_put_onto_the_one_there_is_and_leaves_nothing_beside_it() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().join("state");
        fs::write(&place, "old").unwrap();
        let [first, second] = [0, 1].map(|_| Partial::beside(&place).unwrap());
        fs::write(first.file("s"), "new").unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"old");
        first.put("s").unwrap();
        drop((first, second));
        assert_eq!(fs::read(&place).unwrap(), b"new");
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
    fn a_snapshot_whose_name_does_not_reach_the_disk_is_not_there() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().join("s");
        let partial = Partial::begin(&place).unwrap();
        let sync = |directory: &Path| match place.exists() {
            true if directory == base.path() => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        };
        let error = partial.publish_with(sync).unwrap_err();
        assert!(matches!(error, SnapshotError::Directory { .. }), "{error}");
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

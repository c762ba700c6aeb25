//! Where a copy comes to be: made under a name of its own beside its place, and put there when all of it is on disk.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::syncfs;

use crate::archive::{self, CopyError, ROOT, cannot};

/// What a copy is made in. Its dot keeps it out of lists.
const PREFIX: &str = ".posada-copy";

/// A place for a copy. Dropping it removes what is not there yet.
pub struct Landing {
    /// The directory that the copy will be in.
    parent: PathBuf,
    /// What it will be called; without a name, what is in it will be in that directory.
    name: Option<OsString>,
    /// Where it is made.
    workshop: PathBuf,
    directory: OwnedFd,
}

impl Landing {
    /// Finds the place as cp(1) does: in `path` under the name that it has, if that is a directory, else as `path`.
    ///
    /// # Errors
    /// There is no such place.
    pub fn prepare(path: &Path, name: Option<&OsStr>) -> Result<Self, CopyError> {
        let (parent, name) = match fs::metadata(path) {
            Ok(found) if found.is_dir() => (path.to_owned(), name.map(OsStr::to_owned)),
            Ok(_) => beside(path),
            Err(error)
                if error.kind() == ErrorKind::NotFound && !path.as_os_str().as_bytes().ends_with(b"/") =>
            {
                beside(path)
            }
            Err(error) => return Err(cannot("copy to", path)(error)),
        };
        if let Some(name) = &name {
            check_replaceable(&parent.join(name))?;
        }
        let (workshop, directory) = open_workshop(&parent).map_err(cannot("make a file in", &parent))?;
        Ok(Self {
            parent,
            name,
            workshop,
            directory,
        })
    }

    /// Makes the copy from an archive.
    ///
    /// # Errors
    /// It is none, or cannot be written.
    pub fn unpack(&self, from: impl Read) -> Result<(), CopyError> {
        archive::unpack(from, self.directory.as_fd())
    }

    /// Makes the copy from a file's bytes. Its mode is that of the file in whose place it comes.
    ///
    /// # Errors
    /// It is to be a directory, or cannot be written.
    pub fn fill(&self, mut from: impl Read) -> Result<(), CopyError> {
        let place = self.place()?;
        let path = self.workshop.join(ROOT);
        let mut file = File::create_new(&path).map_err(cannot("write", &place))?;
        if let Ok(found) = fs::metadata(&place) {
            let mode = Permissions::from_mode(found.permissions().mode() & 0o777);
            file.set_permissions(mode).map_err(cannot("write", &place))?;
        }
        // Who reads tells his errors from those of the file.
        io::copy(&mut from, &mut file).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::InvalidData => CopyError::Stream(error),
            _ => cannot("write", &place)(error),
        })?;
        Ok(())
    }

    fn place(&self) -> Result<PathBuf, CopyError> {
        let name = self.name.as_ref().ok_or_else(|| CopyError::Place {
            path: self.parent.clone(),
            what: "a directory: say what the file is to be called in it",
        })?;
        Ok(self.parent.join(name))
    }

    /// Puts the copy in its place, once it is on disk. A directory that is there already gets what is in it.
    ///
    /// # Errors
    /// Something else is there.
    pub fn finish(self) -> Result<(), CopyError> {
        let target = self
            .name
            .as_ref()
            .map_or_else(|| self.parent.clone(), |name| self.parent.join(name));
        let failed = |error| cannot("put the copy at", &target)(error);
        self.sync().map_err(failed)?;
        let parent = File::open(&self.parent).map_err(failed)?;
        match &self.name {
            Some(name) => put(self.directory.as_fd(), OsStr::new(ROOT), parent.as_fd(), name),
            None => open_directory(self.directory.as_fd(), OsStr::new(ROOT))
                .and_then(|from| merge(from, parent.as_fd())),
        }
        .map_err(failed)?;
        parent.sync_all().map_err(failed)
    }

    fn sync(&self) -> io::Result<()> {
        let root = self.workshop.join(ROOT);
        if fs::symlink_metadata(&root)?.is_file() {
            return File::open(root)?.sync_all();
        }
        // One call for all of a tree.
        Ok(syncfs(&self.directory)?)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Who made this impossible has the rest.
        let _ = fs::remove_dir_all(&self.workshop);
    }
}

/// The directory that `path` is in, and its name there.
fn beside(path: &Path) -> (PathBuf, Option<OsString>) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    (
        parent.unwrap_or(Path::new(".")).to_owned(),
        path.file_name().map(OsStr::to_owned),
    )
}

/// A device is not replaced by a file.
fn check_replaceable(path: &Path) -> Result<(), CopyError> {
    let special = |found: Metadata| !found.is_file() && !found.is_dir() && !found.is_symlink();
    if fs::symlink_metadata(path).is_ok_and(special) {
        return Err(CopyError::Place {
            path: path.to_owned(),
            what: "a socket, a pipe or a device: name a file or a directory",
        });
    }
    Ok(())
}

fn open_workshop(parent: &Path) -> io::Result<(PathBuf, OwnedFd)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}-{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.and_then(|()| Ok((path.clone(), File::open(&path)?.into()))),
        }
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Moves an entry of a directory to another directory, in the place of a file; if there is a directory and it is one, what is in it.
fn put(from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, new: &OsStr) -> io::Result<()> {
    match renameat(from, name, to, new) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => {
            let there = open_directory(to, new)?;
            merge(open_directory(from, name)?, there.as_fd())
        }
        moved => Ok(moved?),
    }
}

fn merge(from: OwnedFd, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut from = Dir::from_fd(from)?;
    let mut names = Vec::new();
    for entry in from.iter() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    // Not while it is read: entries that go may hide others.
    names
        .iter()
        .try_for_each(|name| put(from.as_fd(), name, to, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn land(path: &Path, name: Option<&str>) -> Result<(), CopyError> {
        let landing = Landing::prepare(path, name.map(OsStr::new))?;
        landing.fill(&b"new"[..])?;
        landing.finish()
    }

    #[test]
    fn a_file_goes_into_a_directory_or_where_it_is_told() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        fs::write(home.join("old"), "old").unwrap();
        fs::set_permissions(home.join("old"), Permissions::from_mode(0o640)).unwrap();
        land(home, Some("in")).unwrap();
        land(&home.join("new"), Some("in")).unwrap();
        land(&home.join("old"), None).unwrap();
        assert_eq!(names(home), ["in", "new", "old"]);
        assert_eq!(fs::read(home.join("old")).unwrap(), b"new");
        let mode = fs::metadata(home.join("old")).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o777,
            0o640,
            "it has the mode of the file that it replaces"
        );
    }

    #[test]
    fn a_place_that_is_none_is_refused_and_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        fs::write(home.join("file"), "old").unwrap();
        for (path, name, named) in [
            ("", None, "what the file is to be called"),
            ("missing/file", None, "missing'"),
            ("missing/", Some("name"), "missing/"),
            ("file/", Some("name"), "file/"),
            ("file/below", Some("name"), "file/below"),
        ] {
            let error = land(&home.join(path), name).unwrap_err().to_string();
            assert!(error.contains(named), "{path}: {error}");
        }
        let error = land(Path::new("/dev/null"), None).unwrap_err().to_string();
        assert!(error.contains("device"), "{error}");
        assert_eq!(names(home), ["file"]);
    }

    #[test]
    fn a_copy_that_is_not_finished_was_never_there() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "old").unwrap();
        let landing = Landing::prepare(&home.path().join("file"), None).unwrap();
        landing.fill(&b"half"[..]).unwrap();
        drop(landing);
        assert_eq!(names(home.path()), ["file"]);
        assert_eq!(fs::read(home.path().join("file")).unwrap(), b"old");
    }
}

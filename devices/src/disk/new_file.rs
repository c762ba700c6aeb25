//! Files that are there as a whole or not at all: made beside their place and put there when they are done.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Makes a file at `path` with the permissions `mode` (less the umask), which `fill` fills; it is on the disk when this
/// returns, with its name. What is there already stays, and is an error of the kind `AlreadyExists`.
pub(super) fn create(path: &Path, mode: u32, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let beside = beside(path)?;
    // What a process of the same number has left, which is no more.
    let _ = fs::remove_file(&beside);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    let placed = fill(&file)
        .and_then(|()| file.sync_all())
        .and_then(|()| place(&beside, path));
    if placed.is_err() {
        // What is left of it is in nobody's way.
        let _ = fs::remove_file(&beside);
    }
    placed?;
    directory(path).and_then(File::open)?.sync_all()?;
    Ok(file)
}

/// Gives the file `beside` the name `path`, which no other has. Not every file system has hard links (FAT), and not every
/// one can refuse to replace what is there (NFS).
fn place(beside: &Path, path: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, beside, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL) => fs::hard_link(beside, path).and_then(|()| fs::remove_file(beside)),
        result => Ok(result?),
    }
}

/// A name that no other file of this process has.
fn beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    beside.push(format!(".{}-{count}", process::id()));
    Ok(directory(path)?.join(beside))
}

fn directory(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::ErrorKind::InvalidFilename.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory.as_path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_is_made_once_and_never_replaced() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("file");
        create(&path, 0o600, |mut file| file.write_all(b"first")).unwrap();
        let error = create(&path, 0o600, |mut file| file.write_all(b"second")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(&directory), ["file"]);
    }

    #[test]
    fn a_file_that_cannot_be_filled_is_not_there() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("file");
        let full = |_: &File| Err(io::ErrorKind::StorageFull.into());
        let error = create(&path, 0o600, full).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(names(&directory), [""; 0]);
        assert!(create(Path::new("/"), 0o600, |_| Ok(())).is_err());
    }
}

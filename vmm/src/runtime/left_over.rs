//! Directories whose processes are gone: how they are told from those of the living, and how they go.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tracing::debug;

use super::{base, remains};

/// Removes what guests have left that were killed, and that no guest of their names has taken over. Not before a guest starts, which
/// would wait for it.
pub fn sweep() {
    if let Ok(base) = base() {
        sweep_in(&base);
    }
}

pub(super) fn sweep_in(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Err(error) = clear_if_left(&entry.path())
        {
            debug!("cannot remove '{}': {error}", entry.path().display());
        }
    }
}

/// Takes the lock of a directory that this process has just made, or `None` if somebody has taken it for left over: then it goes.
///
/// # Errors
/// It cannot be opened or locked.
pub(crate) fn own(path: &Path) -> io::Result<Option<File>> {
    let directory = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    // Who sweeps holds it until it has another name.
    directory.lock()?;
    Ok(is_at(&directory, path)?.then_some(directory))
}

/// Removes a directory if it is no living process's.
///
/// # Errors
/// It cannot be opened or removed.
pub(crate) fn remove_if_left(path: &Path) -> io::Result<()> {
    match lock_if_left(path)? {
        Some(lock) => remove(path, lock),
        None => Ok(()),
    }
}

/// Removes a guest's directory if it is no living process's, but for what the guest was to leave.
pub(super) fn clear_if_left(path: &Path) -> io::Result<()> {
    match remains::have_end(path) {
        true => Ok(()),
        false => match lock_if_left(path)? {
            Some(_lock) if remains::end_if_killed(path)? => Ok(()),
            Some(lock) => remove(path, lock),
            None => Ok(()),
        },
    }
}

/// The lock of a directory that is no living process's.
pub(super) fn lock_if_left(path: &Path) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match directory.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        result => result?,
    }
    Ok(is_at(&directory, path)?.then_some(directory))
}

/// Removes a directory whose lock this process has.
pub(super) fn remove(path: &Path, directory: File) -> io::Result<()> {
    // Out of the way of the next guest of its name first.
    let mut aside = OsString::from(format!(".{}-", std::process::id()));
    aside.push(path.file_name().unwrap_or_default());
    let aside = path.with_file_name(aside);
    fs::rename(path, &aside)?;
    drop(directory);
    fs::remove_dir_all(aside)
}

/// Removes what is in a directory, but for files of these names.
pub(super) fn remove_all_but(directory: &Path, kept: &[&str]) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if kept.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

/// Whether an open directory can be found by this path, and has not been removed.
pub(super) fn is_at(directory: &File, path: &Path) -> io::Result<bool> {
    let there = fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let ours = directory.metadata().map(|ours| (ours.dev(), ours.ino()))?;
    Ok(there.is_ok_and(|there| there == ours))
}

//! Makes files of an archive that anybody may have written: nothing is made outside of the directory that is given.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::{ffi::OsStr, io};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::symlinkat;
use tar::{Archive, Entry, EntryType};

use super::{CopyError, MAX_DEPTH, MAX_PATH, PERMISSIONS, ROOT, cannot};
use crate::frame::PIECE;

/// What only the owner can use, while it is being made.
const PRIVATE: Mode = Mode::S_IRWXU;
/// A directory stays its owner's to enter and to change, so that it can be put in place, or removed.
const OWNERS: u32 = 0o700;
/// No symbolic link is followed, wherever it leads.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_RDONLY)
    .union(OFlag::O_CLOEXEC);
const NEW_FILE: OFlag = OFlag::O_CREAT
    .union(OFlag::O_EXCL)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_WRONLY)
    .union(OFlag::O_CLOEXEC);

/// Makes what is in an archive in the directory `into`, which is empty.
///
/// # Errors
/// The archive has something that [`pack`](super::pack) makes none of, or ends early, or a file cannot be made.
pub fn unpack(from: impl Read, into: BorrowedFd<'_>) -> Result<(), CopyError> {
    let mut archive = Archive::new(from);
    let mut unpacker = Unpacker {
        into,
        parent: None,
        buffer: vec![0; PIECE],
    };
    let (mut name, mut target) = (None, None);
    // Raw: the crate would read names of any length.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::GNULongName => name = Some(long_name(&mut entry)?),
            EntryType::GNULongLink => target = Some(long_name(&mut entry)?),
            _ => {
                let name = name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let target = target
                    .take()
                    .or_else(|| entry.link_name_bytes().map(|target| target.into_owned()));
                unpacker.make(entry, &name, &target.unwrap_or_default())?;
            }
        }
    }
    read_end(archive.into_inner())
}

/// Of the two empty blocks that end an archive, the crate reads one, and takes none for an end, too.
fn read_end(mut from: impl Read) -> Result<(), CopyError> {
    let mut block = [0; 512];
    from.read_exact(&mut block)?;
    match block.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(CopyError::Stream(ErrorKind::InvalidData.into())),
    }
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, CopyError> {
    let mut name = Vec::new();
    entry.take(MAX_PATH as u64 + 2).read_to_end(&mut name)?;
    name.pop_if(|last| *last == 0);
    if name.len() > MAX_PATH {
        return Err(refused("a name that is too long:", &name[..MAX_PATH]));
    }
    Ok(name)
}

fn refused(what: &'static str, name: &[u8]) -> CopyError {
    let name = String::from_utf8_lossy(name).into_owned();
    CopyError::Refused { what, name }
}

struct Unpacker<'a> {
    into: BorrowedFd<'a>,
    /// The directory that the last entry was in: most follow others of theirs.
    parent: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn make(&mut self, mut entry: Entry<'_, impl Read>, name: &[u8], target: &[u8]) -> Result<(), CopyError> {
        let header = entry.header();
        let (kind, mode) = (header.entry_type(), header.mode()? & PERMISSIONS);
        let time = TimeSpec::new(i64::try_from(header.mtime()?).unwrap_or(0), 0);
        let size = header.entry_size()?;
        let path = checked(name)?;
        let parent = self.parent_of(path)?;
        let file_name = path.file_name().unwrap_or_default();
        match kind {
            EntryType::Regular => {
                let made = openat(parent, file_name, NEW_FILE, Mode::S_IRUSR | Mode::S_IWUSR);
                let mut file = File::from(made.map_err(cannot("make", path))?);
                self.fill(&mut file, &mut entry, size, path)?;
                set(&file, mode, &time).map_err(cannot("set the mode of", path))
            }
            EntryType::Directory => {
                let directory = enter(parent, file_name).map_err(cannot("make", path))?;
                set(&File::from(directory), mode | OWNERS, &time).map_err(cannot("set the mode of", path))
            }
            EntryType::Symlink => {
                symlinkat(OsStr::from_bytes(target), parent, file_name).map_err(cannot("make", path))?;
                let how = UtimensatFlags::NoFollowSymlink;
                utimensat(parent, file_name, &time, &time, how).map_err(cannot("set the time of", path))
            }
            _ => Err(refused(
                "something that is no file, directory or symbolic link:",
                name,
            )),
        }
    }

    /// The directory that `path` is in. It is made if it is not there: its own entry comes later.
    fn parent_of(&mut self, path: &Path) -> Result<BorrowedFd<'_>, CopyError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent == Path::new("") {
            return Ok(self.into);
        }
        if self.parent.as_ref().is_none_or(|(last, _)| last != parent) {
            let mut directory = self.into.try_clone_to_owned()?;
            for component in parent {
                directory = enter(directory.as_fd(), component).map_err(cannot("make", parent))?;
            }
            self.parent = Some((parent.to_owned(), directory));
        }
        Ok(self
            .parent
            .as_ref()
            .map_or(self.into, |(_, directory)| directory.as_fd()))
    }

    /// Writes all of an entry to its file.
    fn fill(
        &mut self,
        file: &mut File,
        entry: &mut impl Read,
        size: u64,
        path: &Path,
    ) -> Result<(), CopyError> {
        let mut left = size;
        while left > 0 {
            let count = match entry.read(&mut self.buffer) {
                Ok(0) => return Err(CopyError::Stream(ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count?,
            };
            file.write_all(&self.buffer[..count])
                .map_err(cannot("write", path))?;
            left = left.saturating_sub(count as u64);
        }
        Ok(())
    }
}

/// The path that an entry's name stands for: below what is copied and not too deep, each part of it a name.
fn checked(name: &[u8]) -> Result<&Path, CopyError> {
    let path = Path::new(OsStr::from_bytes(name));
    let mut parts = path.components();
    let begins = parts.next() == Some(Component::Normal(OsStr::new(ROOT)));
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    if !begins || !plain || name.contains(&0) || name.len() > MAX_PATH {
        return Err(refused("a file elsewhere:", name));
    }
    match path.components().count() <= MAX_DEPTH {
        true => Ok(path),
        false => Err(refused("too many directories in each other:", name)),
    }
}

/// Opens a directory, which is made if it is not there.
fn enter(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, PRIVATE) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

fn set(file: &File, mode: u32, time: &TimeSpec) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(futimens(file, time, time)?)
}

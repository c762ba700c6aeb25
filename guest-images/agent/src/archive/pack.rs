//! Makes an archive of a file or a tree.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::{CopyError, LONG_LINK, MAX_SHORT, PERMISSIONS, ROOT, cannot};

/// Sockets, pipes and devices, which are not copied.
#[derive(Debug, Default)]
pub struct LeftOut {
    count: u64,
    first: PathBuf,
}

impl LeftOut {
    /// Whether there were any.
    pub fn is_any(&self) -> bool {
        self.count > 0
    }

    fn note(&mut self, path: &Path) {
        if self.count == 0 {
            path.clone_into(&mut self.first);
        }
        self.count += 1;
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.first.display();
        match self.count {
            1 => write!(f, "'{first}' was left out: it is a socket, a pipe or a device"),
            more => write!(
                f,
                "{more} sockets, pipes or devices were left out, '{first}' first"
            ),
        }
    }
}

/// Writes the archive of what is at `path`: what a symbolic link leads to, if it is one.
///
/// # Errors
/// A file cannot be read, or the archive not be written.
pub fn pack(path: &Path, to: impl Write) -> Result<LeftOut, CopyError> {
    let found = fs::metadata(path).map_err(cannot("read", path))?;
    if !found.is_dir() && !found.is_file() {
        let what = "a socket, a pipe or a device, which cannot be copied";
        let path = path.to_owned();
        return Err(CopyError::Place { path, what });
    }
    let mut packer = Packer {
        archive: Builder::new(to),
        left_out: LeftOut::default(),
    };
    packer.add(path, &found, &mut ROOT.as_bytes().to_owned())?;
    packer.archive.into_inner()?.flush()?;
    Ok(packer.left_out)
}

struct Packer<W: Write> {
    archive: Builder<W>,
    left_out: LeftOut,
}

impl<W: Write> Packer<W> {
    /// Adds what is at `path`, which is called `name` in the archive.
    fn add(&mut self, path: &Path, found: &Metadata, name: &mut Vec<u8>) -> Result<(), CopyError> {
        let kind = found.file_type();
        if kind.is_dir() {
            self.add_children(path, name)?;
            self.append(header(EntryType::Directory, found), name, &[], io::empty())
        } else if kind.is_file() {
            self.add_file(path, name)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(cannot("read", path))?;
            let target = target.as_os_str().as_bytes();
            self.append(header(EntryType::Symlink, found), name, target, io::empty())
        } else {
            self.left_out.note(path);
            Ok(())
        }
    }

    fn add_children(&mut self, path: &Path, name: &mut Vec<u8>) -> Result<(), CopyError> {
        let len = name.len();
        for child in fs::read_dir(path).map_err(cannot("read", path))? {
            let child = child.map_err(cannot("read", path))?;
            let found = match child.metadata() {
                // It is gone meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.map_err(cannot("read", &child.path()))?,
            };
            name.push(b'/');
            name.extend_from_slice(child.file_name().as_bytes());
            self.add(&child.path(), &found, name)?;
            name.truncate(len);
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &[u8]) -> Result<(), CopyError> {
        // It may have become a pipe meanwhile, which would be waited for.
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(cannot("read", path))?;
        let found = file.metadata().map_err(cannot("read", path))?;
        let mut header = header(EntryType::Regular, &found);
        header.set_size(found.len());
        let left = found.len();
        self.append(header, name, &[], Content { path, file, left })
    }

    fn append(
        &mut self,
        mut header: Header,
        name: &[u8],
        target: &[u8],
        content: impl Read,
    ) -> Result<(), CopyError> {
        let old = header.as_old_mut();
        self.put_name(&mut old.linkname, EntryType::GNULongLink, target)?;
        self.put_name(&mut old.name, EntryType::GNULongName, name)?;
        header.set_cksum();
        Ok(self.archive.append(&header, content)?)
    }

    /// Puts a name into its field, or one that is too long for it before the entry.
    fn put_name(&mut self, field: &mut [u8; MAX_SHORT], kind: EntryType, name: &[u8]) -> io::Result<()> {
        if let Some(room) = field.get_mut(..name.len()) {
            room.copy_from_slice(name);
            return Ok(());
        }
        field.copy_from_slice(&name[..MAX_SHORT]);
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.as_old_mut().name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
        // With its NUL.
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.archive.append(&header, name.chain(&[0][..]))
    }
}

fn header(kind: EntryType, found: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(found.mode() & PERMISSIONS);
    header.set_mtime(found.mtime().try_into().unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// A file's content, which must be as long as its header says.
struct Content<'a> {
    path: &'a Path,
    file: File,
    left: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(to.len());
        let failed = |error| io::Error::other(cannot("read", self.path)(error));
        match self.file.read(&mut to[..most]) {
            Ok(0) if most > 0 => Err(failed(io::Error::other("it has become shorter meanwhile"))),
            Ok(count) => {
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => Err(failed(error)),
        }
    }
}

//! A private copy of an image that shares its data until one of them is written: FICLONE, ioctl_ficlone(2).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{DiskError, Image, check_kind, lock, new_file};

/// Why there is no copy.
#[derive(Debug, Error)]
pub enum ReflinkError {
    /// The image cannot be copied.
    #[error(transparent)]
    Image(#[from] DiskError),
    /// The file system has no such copies, or the two would be on different ones: an overlay does instead.
    #[error(
        "'{copy}' cannot share its data with '{image}': {source}; use an overlay, or files on one btrfs or XFS",
        copy = copy.display(), image = image.display()
    )]
    Unsupported {
        /// The image.
        image: PathBuf,
        /// Where the copy was to be.
        copy: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is a file already. It stays as it is.
    #[error("'{copy}' is there already: remove it, or name another file for the copy", copy = copy.display())]
    Exists {
        /// Where the copy was to be.
        copy: PathBuf,
    },
    /// The copy cannot be made.
    #[error("cannot make the copy '{copy}': {source}", copy = copy.display())]
    Copy {
        /// Where it was to be.
        copy: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes `copy` a copy of the image at `image`, which no guest writes meanwhile. It takes as long for a large one as for a
/// small one, and is on the disk when this returns.
///
/// # Errors
/// [`ReflinkError::Unsupported`] where an overlay has to do instead; or either file is not what it should be.
pub fn reflink(image: &Path, copy: &Path) -> Result<(), ReflinkError> {
    let no_file = || io::Error::from(io::ErrorKind::Unsupported);
    if check_kind(image)? {
        return Err(unsupported(image, copy, no_file()));
    }
    let file = OpenOptions::new().read(true).open(image);
    let file = file.map_err(|source| DiskError::Open {
        path: image.to_owned(),
        source,
    })?;
    lock::lock(&file, true).map_err(|error| DiskError::lock(image, error))?;
    share(&file, image, copy)
}

impl Image {
    /// As [`reflink`], of an image that is open and not written just now: that of a guest that is paused. Of an overlay it is
    /// one more overlay of the same base.
    ///
    /// # Errors
    /// As for [`reflink`].
    pub fn reflink(&self, copy: &Path) -> Result<(), ReflinkError> {
        self.flush().map_err(|source| ReflinkError::Copy {
            copy: copy.to_owned(),
            source,
        })?;
        share(&self.file, &self.path, copy)
    }
}

/// Has `to`, open for writing, be what `from` is, up to that one's length, until one of them is written.
///
/// # Errors
/// The file system cannot, or they are on different ones. `to` is what it was.
pub fn share_data(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: takes two descriptors, both open, and no memory.
    match unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unsupported(image: &Path, copy: &Path, source: io::Error) -> ReflinkError {
    ReflinkError::Unsupported {
        image: image.to_owned(),
        copy: copy.to_owned(),
        source,
    }
}

fn share(file: &File, image: &Path, copy: &Path) -> Result<(), ReflinkError> {
    let mut refused = false;
    let clone = |new: &File| {
        share_data(file, new).inspect_err(|error| {
            refused = matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::EXDEV | libc::ENOSYS)
            );
        })
    };
    let mode = file
        .metadata()
        .map(|metadata| metadata.permissions().mode() & 0o777);
    let made = mode.and_then(|mode| new_file::create(copy, mode, clone));
    match made {
        Ok(_) => Ok(()),
        Err(source) if refused => Err(unsupported(image, copy, source)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(ReflinkError::Exists {
            copy: copy.to_owned(),
        }),
        Err(source) => Err(ReflinkError::Copy {
            copy: copy.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::disk::{Holder, ImageOptions};

    /// Where the tests' files are may or may not share data: either way the answer is one that a caller can go by.
    #[test]
    fn a_copy_is_the_same_or_is_said_to_be_impossible() {
        let directory = TempDir::new().unwrap();
        let [image, copy] = ["image", "copy"].map(|name| directory.as_path().join(name));
        fs::write(&image, [5; 8192]).unwrap();
        match reflink(&image, &copy) {
            Ok(()) => {
                File::options()
                    .write(true)
                    .open(&image)
                    .unwrap()
                    .write_all_at(&[6], 0)
                    .unwrap();
                assert_eq!(fs::read(&copy).unwrap(), [5; 8192]);
            }
            Err(error) => {
                assert!(matches!(error, ReflinkError::Unsupported { .. }), "{error}");
                assert!(!copy.exists());
            }
        }
    }

    #[test]
    fn what_is_written_by_a_guest_is_not_copied() {
        let directory = TempDir::new().unwrap();
        let [image, copy] = ["image", "copy"].map(|name| directory.as_path().join(name));
        fs::write(&image, [5; 8192]).unwrap();
        let _open = Image::open(&image, ImageOptions::default()).unwrap();
        let error = reflink(&image, &copy).unwrap_err();
        let is_in_use = matches!(
            error,
            ReflinkError::Image(DiskError::InUse {
                holder: Holder::ThisGuest,
                ..
            })
        );
        assert!(is_in_use, "{error}");
    }

    #[test]
    fn nothing_is_replaced() {
        let directory = TempDir::new().unwrap();
        let [image, copy] = ["image", "copy"].map(|name| directory.as_path().join(name));
        fs::write(&image, [5; 8192]).unwrap();
        fs::write(&copy, [7; 10]).unwrap();
        let error = reflink(&image, &copy).unwrap_err();
        let stays = matches!(
            error,
            ReflinkError::Exists { .. } | ReflinkError::Unsupported { .. }
        );
        assert!(stays, "{error}");
        assert_eq!(fs::read(&copy).unwrap(), [7; 10]);
    }
}

//! The API's socket: whose its name is, while it is taken and when it goes.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::Failure;

/// The API's socket. Dropping it removes its name.
pub struct ApiSocket {
    path: PathBuf,
    /// Device and inode of what has the name as long as it is this socket's.
    identity: (u64, u64),
    listener: UnixListener,
}

impl ApiSocket {
    /// Listens at `path`, in the place of a socket that nobody listens at any more.
    ///
    /// # Errors
    /// Somebody does, or there can be no socket.
    pub fn bind(path: &Path) -> Result<Self, Failure> {
        Self::try_bind(path).map_err(|error| {
            Failure::Other(format!(
                "cannot listen at the API's socket '{}': {error}; give another --api-sock",
                path.display()
            ))
        })
    }

    fn try_bind(path: &Path) -> io::Result<Self> {
        let _claim = Claim::on(path)?;
        if is_stale(path) {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self {
            path: path.to_owned(),
            identity: identity(&fs::symlink_metadata(path)?),
            listener,
        })
    }

    /// What listens.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    fn remove(&self) -> io::Result<()> {
        let _claim = Claim::on(&self.path)?;
        match identity(&fs::symlink_metadata(&self.path)?) == self.identity {
            true => fs::remove_file(&self.path),
            false => Ok(()),
        }
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        match self.remove() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!("cannot remove '{}': {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// The right to take a socket's name or to remove it, held for the few system calls that this takes: a locked file beside it.
struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Claim {
    fn on(socket: &Path) -> io::Result<Self> {
        let mut path = OsString::from(socket);
        path.push(".lock");
        let path = PathBuf::from(path);
        loop {
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            let lock = options.open(&path)?;
            lock.lock()?;
            // Who had it may have removed it meanwhile.
            let there = fs::symlink_metadata(&path).map(|there| identity(&there));
            if there.is_ok_and(|there| lock.metadata().is_ok_and(|ours| identity(&ours) == there)) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove '{}': {error}", self.path.display());
        }
    }
}

fn identity(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Whether this is a socket whose process has ended.
fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn of_several_at_once_one_has_the_name_of_a_socket_that_was_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let barrier = Barrier::new(4);
            let bind = || {
                barrier.wait();
                ApiSocket::try_bind(&path)
            };
            let bound: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(bind)).collect();
                threads
                    .into_iter()
                    .filter_map(|thread| thread.join().unwrap().ok())
                    .collect()
            });
            assert_eq!(bound.len(), 1);
            UnixStream::connect(&path).unwrap();
            drop(bound);
            assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_name_that_another_has_taken_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api.sock");
        let first = ApiSocket::try_bind(&path).unwrap();
        assert!(ApiSocket::try_bind(&path).is_err());
        fs::rename(&path, place.path().join("elsewhere")).unwrap();
        let second = ApiSocket::try_bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
        drop(second);
        assert!(!path.exists());
    }
}

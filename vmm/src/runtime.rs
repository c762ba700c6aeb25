//! Where running guests are found by name: a directory each, under `$XDG_RUNTIME_DIR/posada` or, for root, `/run/posada`.
//!
//! A directory belongs to the process that holds its lock (flock(2)). The kernel lets go of the lock however a process
//! ends, so what a killed guest has left is recognised, and is the next one's of that name, or [swept](sweep) away. What a guest
//! [leaves](remains) on purpose stays until then, or until it is removed.

mod left_over;
pub mod remains;

use std::env;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::unistd::geteuid;
use thiserror::Error;
use tracing::debug;

use left_over::{is_at, lock_if_left, remove_all_but};

pub use left_over::sweep;
pub(crate) use left_over::{own, remove_if_left};

/// A guest's control socket, in its directory.
pub const SOCKET: &str = "control.sock";
/// The socket of a guest's socket device that is not elsewhere.
const VSOCK: &str = "vsock.sock";
/// The user's alone: who can reach a guest's socket can do anything to the guest.
const PRIVATE: u32 = 0o700;
/// A sweep holds a directory for two system calls.
const SWEEP: Duration = Duration::from_millis(5);
/// Guests without a name of their own that there can be at a time.
const MAX_NUMBER: u32 = 100_000;

/// Why a guest has no place among the running ones.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// There is one already.
    #[error("there is a running guest named '{0}': end it, or give this one another --name")]
    Taken(String),
    /// Not even a number was free.
    #[error("{MAX_NUMBER} guests named '{0}' are running: give this one a --name")]
    AllTaken(String),
    /// No directory can be there.
    #[error("cannot keep a running guest's files in '{path}': {source}", path = path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No such guest.
    #[error("there is no running guest named '{0}'")]
    Unknown(String),
    /// It has not ended.
    #[error("the guest '{0}' runs: end it first, or have 'posada rm -f {0}' do so")]
    Runs(String),
    /// It has ended, and it is not known how.
    #[error(
        "the guest '{name}' has ended, and what it has left is of another version of posada ({source}): see it with that one, or have 'posada rm {name}' remove it"
    )]
    Foreign {
        /// Its name.
        name: String,
        /// What is wrong with its record.
        source: io::Error,
    },
    /// Something of it cannot be removed.
    #[error("cannot remove '{path}': {source}", path = path.display())]
    Stays {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nowhere to look.
    #[error("there is no telling where running guests are: set XDG_RUNTIME_DIR to a directory of yours")]
    Nowhere,
}

/// The directory of a running guest, this process's own until it is dropped, which removes it.
#[derive(Debug)]
pub struct GuestDirectory {
    name: String,
    path: PathBuf,
    _lock: File,
}

impl GuestDirectory {
    /// Takes the directory of `name`. Without `exactly`, a number is added if there is a guest of that name.
    ///
    /// # Errors
    /// The name is taken, or there is no place for such directories.
    pub fn claim(name: &str, exactly: bool) -> Result<Self, RuntimeError> {
        let base = base()?;
        let refused = |source| RuntimeError::Refused {
            path: base.clone(),
            source,
        };
        let numbered = (2..MAX_NUMBER).map(|number| format!("{name}-{number}"));
        let candidates = std::iter::once(name.to_owned()).chain(numbered);
        for candidate in candidates.take(if exactly { 1 } else { usize::MAX }) {
            if let Some(directory) = Self::try_claim(&base, candidate).map_err(refused)? {
                return Ok(directory);
            }
        }
        if !exactly {
            return Err(RuntimeError::AllTaken(name.to_owned()));
        }
        // It may be a sweep that has it, which takes no longer than this.
        thread::sleep(SWEEP);
        let free = Self::try_claim(&base, name.to_owned()).map_err(refused)?;
        free.ok_or_else(|| RuntimeError::Taken(name.to_owned()))
    }

    /// Takes one directory, or `None` if it is another's. The guest's start waits for it: no system call more than needed.
    fn try_claim(base: &Path, name: String) -> io::Result<Option<Self>> {
        let path = base.join(&name);
        loop {
            let is_new = create(base, &path)?;
            let lock = match File::open(&path) {
                // Its owner has removed it in between.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                result => result?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // What was locked may have been removed by its last owner, and be nobody's way to find this guest.
            if !is_at(&lock, &path)? {
                continue;
            }
            if !is_new {
                remove_all_but(&path, &[])?;
            }
            return Ok(Some(Self {
                name,
                path,
                _lock: lock,
            }));
        }
    }

    /// The guest's name, with the number that it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the guest's control socket is.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for GuestDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            debug!("cannot remove '{}': {error}", self.path.display());
        }
    }
}

/// The names of the guests that there are directories of. Their processes may have ended.
///
/// # Errors
/// There is no telling where they are, or they cannot be read.
pub fn names() -> Result<Vec<String>, RuntimeError> {
    let base = base()?;
    let entries = match fs::read_dir(&base) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|source| RuntimeError::Refused { path: base, source })?,
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        // What is being removed has a dot before its name, which no guest's has.
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// The directory of the running guest `name`.
///
/// # Errors
/// There is no such guest.
pub fn directory_of(name: &str) -> Result<PathBuf, RuntimeError> {
    let path = path_of(name)?;
    match path.join(SOCKET).exists() {
        true => Ok(path),
        false => Err(RuntimeError::Unknown(name.to_owned())),
    }
}

/// When a process began that is to be the guest `name`, by which it is told from another one of that name: its socket is there, though it
/// may not listen yet. `None` if there is no such process.
pub fn begun(name: &str) -> Option<SystemTime> {
    let path = directory_of(name).ok()?;
    let made = fs::symlink_metadata(path.join(SOCKET)).and_then(|socket| socket.modified());
    match lock_if_left(&path) {
        Ok(Some(_)) => None,
        // Who has too many files open can still see that it is there.
        Ok(None) | Err(_) => made.ok(),
    }
}

/// Where the guest `name` has its directory if there is one.
fn path_of(name: &str) -> Result<PathBuf, RuntimeError> {
    // Another place is no guest's.
    match name.is_empty() || name.starts_with('.') || name.contains('/') {
        true => Err(RuntimeError::Unknown(name.to_owned())),
        false => Ok(base()?.join(name)),
    }
}

/// Waits until the process is gone whose guest has this directory.
pub fn wait_until_gone(directory: &Path) {
    // Its lock is held for as long as the process lives; without the directory there is none.
    let _ = File::open(directory).and_then(|directory| directory.lock_shared());
}

/// The control socket of the running guest `name`.
///
/// # Errors
/// There is no such guest.
pub fn socket_of(name: &str) -> Result<PathBuf, RuntimeError> {
    Ok(directory_of(name)?.join(SOCKET))
}

/// Where the socket device's socket of the guest `name` is, if its user has named no other place.
///
/// # Errors
/// There is no telling where guests' directories are.
pub fn vsock_of(name: &str) -> Result<PathBuf, RuntimeError> {
    Ok(base()?.join(name).join(VSOCK))
}

/// The directory of all guests' directories, which is made if there is none.
///
/// # Errors
/// There is no telling where, or no directory can be there.
pub fn place() -> Result<PathBuf, RuntimeError> {
    let base = base()?;
    let made = DirBuilder::new().recursive(true).mode(PRIVATE).create(&base);
    match made {
        Ok(()) => Ok(base),
        Err(source) => Err(RuntimeError::Refused { path: base, source }),
    }
}

fn base() -> Result<PathBuf, RuntimeError> {
    match env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => Ok(PathBuf::from(directory).join("posada")),
        None if geteuid().is_root() => Ok("/run/posada".into()),
        None => Err(RuntimeError::Nowhere),
    }
}

/// Makes a guest's directory, and `base` if it is the first; false if it is there.
fn create(base: &Path, path: &Path) -> io::Result<bool> {
    let one = || DirBuilder::new().mode(PRIVATE).create(path);
    let made = one().or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            return Err(error);
        }
        DirBuilder::new().recursive(true).mode(PRIVATE).create(base)?;
        one()
    });
    match made {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::left_over::sweep_in;
    use super::*;

    fn claim(base: &Path, name: &str) -> Option<GuestDirectory> {
        GuestDirectory::try_claim(base, name.to_owned()).unwrap()
    }

    #[test]
    fn a_name_is_one_guests_until_it_is_gone() {
        let base = tempfile::tempdir().unwrap();
        let first = claim(base.path(), "web").unwrap();
        assert!(claim(base.path(), "web").is_none());
        drop(first);
        assert!(!base.path().join("web").exists());
        assert!(claim(base.path(), "web").is_some());
    }

    #[test]
    fn the_first_guest_makes_the_place_for_all() {
        let home = tempfile::tempdir().unwrap();
        let base = home.path().join("run/posada");
        let guest = claim(&base, "web").unwrap();
        assert_eq!(base.metadata().unwrap().mode() & 0o777, PRIVATE);
        assert!(guest.path().starts_with(&base));
    }

    #[test]
    fn a_sweep_removes_what_no_guest_has_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let [first, second] = ["web", "db"].map(|name| claim(base.path(), name).unwrap());
        for left in ["killed", ".1-swept-by-who-was-killed"] {
            fs::create_dir(base.path().join(left)).unwrap();
            fs::write(base.path().join(left).join("console.log"), "said").unwrap();
        }
        fs::write(base.path().join("a file"), "").unwrap();
        sweep_in(base.path());
        let left = fs::read_dir(base.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a file", "db", "web"]);
        drop((first, second));
    }

    #[test]
    fn what_a_crashed_guest_has_left_is_the_next_ones() {
        let base = tempfile::tempdir().unwrap();
        let left = base.path().join("web");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(SOCKET), "left over").unwrap();
        let next = claim(base.path(), "web").unwrap();
        assert!(!next.socket().exists());
    }
}

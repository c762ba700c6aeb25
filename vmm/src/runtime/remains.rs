//! What a guest in the background leaves when it ends: what its console printed, posada's messages, and what it was and how it ended.

use std::fs;
use std::io::{self, ErrorKind};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::left_over::{clear_if_left, lock_if_left, remove, remove_all_but};
use super::{GuestDirectory, RuntimeError, path_of};
use crate::console::End;
use crate::control::GuestInfo;

/// What its console prints.
pub const CONSOLE: &str = "console.log";
/// posada's messages.
pub const MESSAGES: &str = "posada.log";
/// What it is, of a guest that is to leave something, and then how it ended.
const RECORD: &str = "guest.json";
/// Files that stay.
const KEPT: [&str; 3] = [CONSOLE, MESSAGES, RECORD];

/// How a guest has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ending {
    /// It did not want to.
    pub crashed: bool,
    /// What is said of it behind the guest's name; of a crash, why it was one.
    pub why: String,
    /// The exit status of its process, if that could tell.
    pub status: Option<u8>,
    /// When, in seconds since 1970 (UTC), if its process could tell.
    pub at: Option<u64>,
}

impl Ending {
    /// Now, and like this.
    pub fn now(end: &End) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            crashed: end.is_crash(),
            why: end.why(),
            status: Some(end.status()),
            at: since_1970.ok().map(|time| time.as_secs()),
        }
    }

    fn killed() -> Self {
        Self {
            crashed: true,
            why: "its process was killed".to_owned(),
            status: None,
            at: None,
        }
    }
}

impl GuestDirectory {
    /// Has what this guest prints stay should its process be killed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn will_stay(&self, guest: &GuestInfo) -> io::Result<()> {
        write(self.path(), guest)
    }

    /// Gives the directory up, but for what stays of a guest that has ended.
    ///
    /// # Errors
    /// It cannot be written or removed.
    pub fn stay(self, guest: &GuestInfo) -> io::Result<()> {
        // Its lock goes with the process, which is what others wait for.
        let directory = ManuallyDrop::new(self);
        remove_all_but(directory.path(), &KEPT)?;
        write(directory.path(), guest)
    }
}

/// What has stayed of the guest `name`, which does not run.
///
/// # Errors
/// Nothing, or [what this posada does not understand](RuntimeError::Foreign).
pub fn of(name: &str) -> Result<GuestInfo, RuntimeError> {
    let path = path_of(name)?;
    let unknown = |_| RuntimeError::Unknown(name.to_owned());
    clear_if_left(&path).map_err(unknown)?;
    let runs = || RuntimeError::Runs(name.to_owned());
    match read(&path) {
        Ok(guest) if guest.end.is_some() => Ok(guest),
        Ok(_) => Err(runs()),
        Err(source) if source.kind() == ErrorKind::InvalidData => match lock_if_left(&path) {
            Ok(Some(_)) => Err(RuntimeError::Foreign {
                name: name.to_owned(),
                source,
            }),
            _ => Err(runs()),
        },
        Err(error) => Err(unknown(error)),
    }
}

/// Whether the guest `name` has ended and left something.
pub fn are_there(name: &str) -> bool {
    matches!(of(name), Ok(_) | Err(RuntimeError::Foreign { .. }))
}

/// The directory of the guest `name`, whether it runs or has left something.
///
/// # Errors
/// There is none.
pub fn directory_of(name: &str) -> Result<PathBuf, RuntimeError> {
    super::directory_of(name).or_else(|error| match are_there(name) {
        true => path_of(name),
        false => Err(error),
    })
}

/// Removes what has stayed of the guest `name`.
///
/// # Errors
/// There is nothing, it cannot be removed, or the guest runs.
pub fn discard(name: &str) -> Result<(), RuntimeError> {
    let path = path_of(name)?;
    let removed = match lock_if_left(&path) {
        Ok(Some(lock)) => remove(&path, lock),
        Ok(None) => return Err(RuntimeError::Runs(name.to_owned())),
        Err(error) => Err(error),
    };
    removed.map_err(|source| match source.kind() {
        ErrorKind::NotFound => RuntimeError::Unknown(name.to_owned()),
        _ => RuntimeError::Stays { path, source },
    })
}

/// Whether a guest has ended and left this directory.
pub(super) fn have_end(path: &Path) -> bool {
    read(path).is_ok_and(|guest| guest.end.is_some())
}

/// Of a directory that is no living process's, keeps what is to stay; false if nothing is. What another version of posada has left is
/// kept as it is.
pub(super) fn end_if_killed(path: &Path) -> io::Result<bool> {
    let mut guest = match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(true),
        result => result?,
    };
    if guest.end.is_none() {
        guest.end = Some(Ending::killed());
        remove_all_but(path, &KEPT)?;
        write(path, &guest)?;
    }
    Ok(true)
}

fn read(path: &Path) -> io::Result<GuestInfo> {
    let text = fs::read(path.join(RECORD))?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Writes it as a whole: somebody may be reading.
fn write(path: &Path, guest: &GuestInfo) -> io::Result<()> {
    let new = path.join(".guest.json");
    fs::write(&new, serde_json::to_vec(guest)?)?;
    fs::rename(new, path.join(RECORD))
}

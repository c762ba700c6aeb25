//! Sockets between guest and host as their user describes them: `--vsock PATH,cid=N` or a `[vsock]` table.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::words::{self, Word, WordError};
use crate::runtime::{self, RuntimeError};

/// For the help text.
pub const SYNTAX: &str = "[PATH][,cid=N]";
const WORDS: &str = "cid";
/// The first CID that is a guest's: 0 to 2 are reserved or the host's (virtio 1.3 §5.10.4).
const FIRST_CID: u32 = 3;
/// The last: 2^32 - 1 stands for any (§5.10.4).
const LAST_CID: u32 = u32::MAX - 1;

/// Sockets between guest and host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VsockConfig {
    /// The Unix socket that host programs connect to, and the start of the names of those that the guest connects to; `None`: one
    /// in the guest's own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The guest's address.
    pub cid: Option<u32>,
}

/// What is wrong with such a description.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum VsockConfigError {
    /// A CID that no guest can have.
    #[error("a cid of {0}: a guest's is {FIRST_CID} to {LAST_CID}")]
    Cid(u32),
    /// Nowhere.
    #[error(
        "the path is empty: give the path of a Unix socket that posada shall make, or none for one of its own"
    )]
    NoPath,
}

impl FromStr for VsockConfig {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut vsock = Self::default();
        let words: Vec<Word> = if text.is_empty() {
            Vec::new()
        } else if text.starts_with("cid=") {
            words::list(text)?
        } else {
            let (path, words) = words::split(text, "the path of a Unix socket")?;
            vsock.path = Some(path.into());
            words
        };
        for word in words {
            match word.key() {
                "cid" => vsock.cid = Some(word.value()?),
                _ => return Err(word.unknown(WORDS)),
            }
        }
        Ok(vsock)
    }
}

impl VsockConfig {
    /// Checks all that can be checked without the host.
    pub fn check(&self) -> Result<(), VsockConfigError> {
        if self.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(VsockConfigError::NoPath);
        }
        if !(FIRST_CID..=LAST_CID).contains(&self.cid()) {
            return Err(VsockConfigError::Cid(self.cid()));
        }
        Ok(())
    }

    /// Where the socket of the guest with this name is.
    ///
    /// # Errors
    /// It is to be in the guest's own directory, and there is no telling where those are.
    pub fn socket(&self, guest: &str) -> Result<Cow<'_, Path>, RuntimeError> {
        match &self.path {
            Some(path) => Ok(path.into()),
            None => runtime::vsock_of(guest).map(Into::into),
        }
    }

    /// The guest's address.
    pub fn cid(&self) -> u32 {
        self.cid.unwrap_or(FIRST_CID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_and_table_say_the_same_things() {
        let vsock: VsockConfig = "/run/v.sock,cid=52".parse().unwrap();
        let table = "path = '/run/v.sock'\ncid = 52\n";
        assert_eq!(toml::from_str::<VsockConfig>(table).unwrap(), vsock);
        vsock.check().unwrap();
    }

    #[test]
    fn a_path_is_enough() {
        let vsock: VsockConfig = "v.sock".parse().unwrap();
        vsock.check().unwrap();
        assert_eq!(vsock.cid(), 3);
    }

    #[test]
    fn not_even_a_path_is_needed() {
        for (text, table, cid) in [("", "", 3), ("cid=9", "cid = 9", 9)] {
            let vsock: VsockConfig = text.parse().unwrap();
            assert_eq!(toml::from_str::<VsockConfig>(table).unwrap(), vsock);
            vsock.check().unwrap();
            assert_eq!((&vsock.path, vsock.cid()), (&None, cid));
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            (",cid=4", "the path of a Unix socket"),
            ("v,uid=3", "'uid'"),
            ("v,cid", "cid=..."),
            ("v,cid=host", "cid: "),
            ("v,cid=4294967296", "cid: "),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for cid in [0, 1, 2, u32::MAX] {
            let vsock: VsockConfig = format!("v,cid={cid}").parse().unwrap();
            assert_eq!(vsock.check(), Err(VsockConfigError::Cid(cid)));
        }
        let nowhere = toml::from_str::<VsockConfig>("path = ''").unwrap();
        assert_eq!(nowhere.check(), Err(VsockConfigError::NoPath));
    }
}

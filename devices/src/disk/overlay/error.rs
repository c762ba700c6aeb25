//! Why a file cannot be the overlay of a disk: a sentence each, with what its user can do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::header::{Base, VERSION};
use crate::disk::Holder;

/// What is wrong with an overlay.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// It cannot be made.
    #[error("cannot make the overlay '{path}': {source}", path = path.display())]
    Create {
        /// The overlay.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be opened or read.
    #[error("cannot open the overlay '{path}': {source}", path = path.display())]
    Open {
        /// The overlay.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "'{path}' is there, and is no overlay: name one, or a file that is not there, and posada makes it",
        path = path.display()
    )]
    NoOverlay {
        /// The file.
        path: PathBuf,
    },
    /// It has another version.
    #[error(
        "the overlay '{path}' is of format version {version}, and this posada knows version {VERSION}: use the posada \
         that made it",
        path = path.display()
    )]
    Version {
        /// The overlay.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Its header is not as it was written, or it is shorter or longer.
    #[error(
        "the overlay '{path}' is damaged ({what}): restore it from a copy, or remove it to begin again from its base",
        path = path.display()
    )]
    Damaged {
        /// The overlay.
        path: PathBuf,
        /// What of it.
        what: &'static str,
    },
    /// It was made for another base.
    #[error(
        "the overlay '{path}' belongs to '{belongs}' and not to '{base}': give the disk that base, or another overlay",
        path = path.display(), belongs = belongs.display(), base = base.display()
    )]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// Its base.
        belongs: PathBuf,
        /// The base that was given.
        base: PathBuf,
    },
    /// Its base is not what it was.
    #[error(
        "the base '{base}' has changed since the overlay '{path}' was made: it had {was} and has {is}; restore the base \
         from a copy that keeps its time (cp -p), or remove the overlay to begin again from it",
        path = path.display(), base = is.path.display(), was = Facts(was), is = Facts(is)
    )]
    BaseChanged {
        /// The overlay.
        path: PathBuf,
        /// The base when the overlay was made.
        was: Box<Base>,
        /// The base now.
        is: Box<Base>,
    },
    /// Somebody else has it.
    #[error(
        "the overlay '{path}' is in use by {holder}: end that first, or give each guest an overlay of its own",
        path = path.display()
    )]
    InUse {
        /// The overlay.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// It cannot be locked.
    #[error("cannot lock the overlay '{path}' against other guests: {source}", path = path.display())]
    NoLock {
        /// The overlay.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What of a base can change.
struct Facts<'a>(&'a Base);

impl std::fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Base { size, modified, .. } = self.0;
        write!(f, "{size} bytes of time {}.{:09}", modified.0, modified.1)
    }
}

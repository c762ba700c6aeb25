//! Why something was not copied, each a sentence.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why something was not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A file of this side.
    #[error("cannot {doing} '{path}': {source}", path = shown(path))]
    Cannot {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A place where nothing can be copied to.
    #[error("'{path}' is {what}", path = shown(path))]
    Place {
        /// It.
        path: PathBuf,
        /// What it is, and what to do.
        what: &'static str,
    },
    /// Something that a copy does not have, which the other side has made up.
    #[error("the copy was given up: it has {what} '{name}'", name = shown(Path::new(name)))]
    Refused {
        /// What it is.
        what: &'static str,
        /// What it is called.
        name: String,
    },
    /// The other side.
    #[error(transparent)]
    Stream(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Stream)
    }
}

/// For errors with a file of this side.
pub fn cannot<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> CopyError {
    move |source| CopyError::Cannot {
        doing,
        path: path.to_owned(),
        source: source.into(),
    }
}

/// A name as it may go to a terminal, whoever has chosen it.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

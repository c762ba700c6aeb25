//! Why a program has failed: a sentence for the console.

use alloc::format;
use alloc::string::String;
use core::fmt;

use bare_guest::arguments::BadWord;

/// A reason.
pub struct Failure(String);

/// What programs and their parts return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A reason in words.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BadWord<'_>> for Failure {
    fn from(word: BadWord<'_>) -> Self {
        Self(format!("{word}"))
    }
}

impl From<virtio_drivers::Error> for Failure {
    fn from(error: virtio_drivers::Error) -> Self {
        Self(format!("{error}"))
    }
}

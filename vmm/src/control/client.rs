//! The side that asks: the posada command.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use thiserror::Error;

use super::{Answer, Request};
use crate::runtime::{self, RuntimeError};

/// An answer is a line of a few hundred bytes; what is longer comes from something else.
const MAX_ANSWER: u64 = 1 << 20;

/// Why a guest did not do what it was asked for.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It is not there.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// It does not answer.
    #[error("the guest '{name}' does not answer: {source}")]
    Silent {
        /// Its name.
        name: String,
        /// What came instead.
        source: io::Error,
    },
    /// It said why not.
    #[error("{name}: {why}")]
    Failed {
        /// Its name.
        name: String,
        /// Its sentence.
        why: String,
    },
}

/// Asks the running guest `name`, and waits until it has done it.
///
/// # Errors
/// It is not there, or cannot.
pub fn ask(name: &str, request: &Request) -> Result<Answer, ControlError> {
    let path = runtime::socket_of(name)?;
    let silent = |source| ControlError::Silent {
        name: name.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => RuntimeError::Unknown(name.to_owned()).into(),
        _ => silent(error),
    })?;
    let mut line = serde_json::to_string(request).map_err(|error| silent(error.into()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(silent)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream.take(MAX_ANSWER));
    reader.read_line(&mut answer).map_err(silent)?;
    match serde_json::from_str(&answer).map_err(|error| silent(error.into()))? {
        Answer::Failed(why) => Err(ControlError::Failed {
            name: name.to_owned(),
            why,
        }),
        done => Ok(done),
    }
}

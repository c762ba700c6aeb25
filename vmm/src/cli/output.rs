//! What a command prints: on standard output, which may be a full disk, or a pipe that nobody reads any more.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use super::Failure;

/// Prints this, now. Who has closed the pipe has seen enough.
///
/// # Errors
/// It cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    print_by(|stdout| stdout.write_all(text.as_bytes()))
}

/// Prints what `write` writes, likewise.
///
/// # Errors
/// As for [`print`].
pub fn print_by(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line for scripts.
///
/// # Errors
/// As for [`print`].
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Other(error.to_string()))?;
    print(&format!("{text}\n"))
}

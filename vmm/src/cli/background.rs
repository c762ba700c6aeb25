//! Guests in the background: a posada process each, that says on its standard output when its guest runs.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::Failure;

/// What such a process prints when its guest runs. From then on its messages go to a file of the guest's.
pub const READY: &str = "ready";

/// A process whose guest may not run yet.
pub struct Starting(Child);

impl Starting {
    /// Starts posada with these arguments, apart from this terminal and its signals.
    ///
    /// # Errors
    /// The host has no room for another process.
    pub fn begin(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let spawn = || {
            Command::new(env::current_exe()?)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .spawn()
        };
        let child =
            spawn().map_err(|error: io::Error| Failure::Other(format!("cannot start a process: {error}")))?;
        Ok(Self(child))
    }

    /// Waits until the guest runs.
    ///
    /// # Errors
    /// It does not; what its process had to say.
    pub fn wait(mut self) -> Result<(), Failure> {
        let mut line = String::new();
        if let Some(stdout) = self.0.stdout.take() {
            // What cannot be read is as good as the end.
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        if line.trim_end() == READY {
            return Ok(());
        }
        let mut message = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            let _ = stderr.read_to_string(&mut message);
        }
        let message = message.trim_end().trim_start_matches("posada: ");
        Err(Failure::Other(match (message, self.0.wait()) {
            ("", Ok(status)) => format!("the guest's process ended before its guest ran ({status})"),
            ("", Err(error)) => format!("the guest's process is lost: {error}"),
            (message, _) => message.to_owned(),
        }))
    }
}

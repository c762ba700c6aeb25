//! Guests in the background: a posada process each, that says on its standard output how far it is.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::Failure;

/// What such a process prints when its guest could run. Then it waits for [`GO`], so that of many guests the first ones do not keep
/// the last ones from starting.
const READY: &str = "ready";
/// What lets the guest run: the end of standard input does not.
const GO: &str = "go";
/// What the process prints when its guest runs. From then on its messages go to a file of the guest's.
pub const RUNS: &str = "runs";

/// A process whose guest does not run yet.
pub struct Starting {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Starting {
    /// Starts posada with these arguments, apart from this terminal and its signals.
    ///
    /// # Errors
    /// The host has no room for another process.
    pub fn begin(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let spawn = || {
            let mut child = Command::new(env::current_exe()?)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .spawn()?;
            let piped = || io::Error::other("it has no standard input and output");
            Ok(Self {
                stdin: child.stdin.take().ok_or_else(piped)?,
                stdout: BufReader::new(child.stdout.take().ok_or_else(piped)?),
                child,
            })
        };
        spawn().map_err(|error: io::Error| Failure::Other(format!("cannot start a process: {error}")))
    }

    /// Waits until the guest could run.
    ///
    /// # Errors
    /// It could not; what its process had to say.
    pub fn wait_until_ready(mut self) -> Result<Self, Failure> {
        match self.says(READY) {
            true => Ok(self),
            false => Err(self.why_not()),
        }
    }

    /// Lets the guest run.
    pub fn go(&mut self) {
        // Fails when the process has ended, which the next wait tells.
        let _ = writeln!(self.stdin, "{GO}");
    }

    /// Waits until the guest runs; returns its process's number.
    ///
    /// # Errors
    /// It does not; what its process had to say.
    pub fn wait_until_it_runs(mut self) -> Result<u32, Failure> {
        match self.says(RUNS) {
            true => Ok(self.child.id()),
            false => Err(self.why_not()),
        }
    }

    fn says(&mut self, word: &str) -> bool {
        let mut line = String::new();
        // What cannot be read is as good as the end.
        self.stdout.read_line(&mut line).is_ok() && line.trim_end() == word
    }

    fn why_not(mut self) -> Failure {
        let mut message = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut message);
        }
        let message = message.trim_end().trim_start_matches("posada: ");
        Failure::Other(match (message, self.child.wait()) {
            ("", Ok(status)) => format!("the guest's process ended before its guest ran ({status})"),
            ("", Err(error)) => format!("the guest's process is lost: {error}"),
            (message, _) => message.to_owned(),
        })
    }
}

/// The other end of it: says that the guest could run, and waits until it may.
///
/// # Errors
/// Who started this process is gone.
pub fn wait_to_go() -> Result<(), Failure> {
    println!("{READY}");
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(_) if line.trim_end() == GO => Ok(()),
        _ => Err(Failure::Other("who started this guest has ended".to_owned())),
    }
}

//! Guests in the background: a posada process each, that says on its standard output how far it is.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Serialize;

use super::{FAILURE, Failure};

/// What such a process prints when its guest could run. Then it waits for [`GO`], so that of many guests the first ones do not keep
/// the last ones from starting.
const READY: &str = "ready";
/// What lets the guest run: the end of standard input does not.
const GO: &str = "go";
/// What the process prints when its guest runs, and the guest's name. From then on its messages go to a file of the guest's.
pub const RUNS: &str = "runs";

/// A guest that runs in a process of its own.
#[derive(Debug, Serialize)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
}

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
            Some(_) => Ok(self),
            None => Err(self.why_not()),
        }
    }

    /// Lets the guest run.
    pub fn go(&mut self) {
        // Fails when the process has ended, which the next wait tells.
        let _ = writeln!(self.stdin, "{GO}");
    }

    /// Waits until the guest runs.
    ///
    /// # Errors
    /// It does not; what its process had to say.
    pub fn wait_until_it_runs(mut self) -> Result<Started, Failure> {
        match self.says(RUNS) {
            Some(name) => Ok(Started {
                name,
                pid: self.child.id(),
            }),
            None => Err(self.why_not()),
        }
    }

    /// What follows `word` in the next line, if it begins so.
    fn says(&mut self, word: &str) -> Option<String> {
        let mut line = String::new();
        // What cannot be read is as good as the end.
        self.stdout.read_line(&mut line).ok()?;
        line.strip_prefix(word).map(|rest| rest.trim().to_owned())
    }

    fn why_not(mut self) -> Failure {
        let mut message = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut message);
        }
        let said = message.trim_end().trim_start_matches("posada: ");
        let ended = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return Failure::Other(format!("the guest's process is lost: {error}")),
        };
        let message = match said {
            "" => format!("the guest's process ended before its guest ran ({ended})"),
            said => said.to_owned(),
        };
        let status = ended.code().and_then(|code| u8::try_from(code).ok());
        Failure::Elsewhere {
            message,
            status: status.filter(|&status| status != 0).unwrap_or(FAILURE),
        }
    }
}

/// The other end of it: says that the guest could run, and waits until it may.
///
/// # Errors
/// Who started this process is gone.
pub fn wait_to_go() -> Result<(), Failure> {
    // Fails when who started this process has ended, which the next line tells.
    let _ = writeln!(io::stdout(), "{READY}");
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(_) if line.trim_end() == GO => Ok(()),
        _ => Err(Failure::Other("who started this guest has ended".to_owned())),
    }
}

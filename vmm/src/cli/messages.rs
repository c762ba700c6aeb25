//! What posada has to say besides its output: on standard error, or in a guest's bounded file once that runs in the background.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::unistd::{dup2_stderr, dup2_stdout};
use tracing::Level;
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::format::FmtSpan;
use vmm::console::LogWriter;

use super::Failure;

/// Where messages go when nobody is at this process.
static KEPT: OnceLock<Mutex<LogWriter>> = OnceLock::new();

/// From now on messages go to this file, which keeps the last of them; so does what else is printed.
///
/// # Errors
/// The file cannot take the place of standard output and error.
pub fn keep_in(file: File) -> io::Result<()> {
    dup2_stdout(&file)?;
    dup2_stderr(&file)?;
    KEPT.get_or_init(|| Mutex::new(LogWriter::new(file)));
    Ok(())
}

/// Takes messages.
struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match KEPT.get() {
            Some(log) => log.lock().unwrap_or_else(PoisonError::into_inner).write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the user. Who has closed standard error, or filled its disk, is told by the exit status alone.
pub fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(Messages, "{message}");
}

/// What has gone wrong with some of several guests. It does not keep the others from what they are asked for.
#[derive(Default)]
pub struct Failures(Option<Failure>);

impl Failures {
    /// Adds how it went with one. All failures are told, the last one by who gets the result.
    pub fn take(&mut self, done: Result<(), Failure>) {
        if let Err(failure) = done
            && let Some(earlier) = self.0.replace(failure)
        {
            say(format_args!("posada: {earlier}"));
        }
    }

    /// Whether all went well.
    ///
    /// # Errors
    /// The last failure.
    pub fn result(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Starts the log, which tells the more the oftener `--verbose` was given.
pub fn start_log(verbose: u8) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    // How long each step took.
    let spans = match level {
        Level::DEBUG => FmtSpan::CLOSE,
        _ => FmtSpan::NONE,
    };
    tracing_subscriber::fmt()
        .event_format(format().with_ansi(false).with_target(false).without_time())
        .with_span_events(spans)
        .with_max_level(level)
        // A log that cannot be written is not worth a panic, which is what telling of it would end in.
        .log_internal_errors(false)
        .with_writer(|| Messages)
        .with_ansi(false)
        .init();
}

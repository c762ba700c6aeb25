//! What is left of a posada process that has ended: its exit status and all that it printed.

use std::process::ExitStatus;
use std::thread;

use crate::terminal::Settings;

/// A posada process that has ended. A test that fails shows it.
#[derive(Debug)]
pub struct Ended {
    pub(crate) what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// How it left the terminal that it ran on.
    pub terminal: Option<Settings>,
    /// All of its standard output: the guest's console. On a terminal, standard error is among it.
    pub stdout: Vec<u8>,
    /// All of its standard error: posada's own messages.
    pub stderr: Vec<u8>,
}

impl Ended {
    /// The guest's console as text.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// posada's own messages.
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The guest's console as numbers of 8 bytes, as [`crate::Script`] prints what it reads.
    pub fn numbers(&self) -> Vec<u64> {
        self.stdout
            .chunks(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("whole numbers")))
            .collect()
    }

    /// Checks the exit status.
    #[track_caller]
    pub fn expect_status(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit status ({})", self.status);
        self
    }

    /// Checks the exit status and all that was printed, on standard output and on standard error.
    #[track_caller]
    pub fn expect_said(self, code: i32, output: &str, error: &str) {
        let ended = self.expect_status(code);
        let said = (ended.console(), ended.messages());
        assert_eq!((said.0.as_str(), said.1.as_str()), (output, error));
    }

    /// Checks that posada refused its work in good manner: this exit status, nothing on standard output, and
    /// on standard error one line, which names every one of `named`.
    #[track_caller]
    pub fn expect_refusal(self, code: i32, named: &[&str]) {
        let ended = self.expect_status(code);
        let messages = ended.messages();
        assert_eq!(ended.console(), "", "nothing was to be printed");
        assert_eq!(messages.matches('\n').count(), 1, "one line says it: {messages}");
        let sentence = messages.strip_prefix("posada: ").expect("posada gives its name");
        for name in named {
            assert!(sentence.contains(name), "'{name}' is not named in: {messages}");
        }
        ended.expect_no_panic();
    }

    /// Checks that nothing that was printed is a panic or a backtrace of posada's.
    #[track_caller]
    pub fn expect_no_panic(&self) {
        let messages = self.messages();
        for trace in ["panicked at", "RUST_BACKTRACE", "stack backtrace", ".rs:"] {
            assert!(!messages.contains(trace), "'{trace}' in: {messages}");
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", transcript(&self.what, &self.stdout, &self.stderr));
            eprintln!("--- it ended: {}", self.status);
        }
    }
}

/// All that a process printed, for a person who wonders why a test failed.
pub(crate) fn transcript(what: &str, stdout: &[u8], stderr: &[u8]) -> String {
    const LAST: usize = 40_000;
    let stdout = &stdout[stdout.len().saturating_sub(LAST)..];
    format!(
        "--- {what}\n--- standard output:\n{}\n--- standard error:\n{}",
        String::from_utf8_lossy(stdout),
        String::from_utf8_lossy(stderr)
    )
}

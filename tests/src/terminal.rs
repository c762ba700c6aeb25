//! A pseudo-terminal to run posada on: what a person would type on and look at.

use std::fs::File;
use std::process::Stdio;

use guest_agent::request::Size;
use guest_agent::terminal;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::Running;

/// A pseudo-terminal, seen from the person's side.
pub struct Terminal {
    master: File,
    /// The side that programs run on, until one does.
    slave: Option<File>,
}

/// What can be set on a terminal, comparable.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings(String);

impl Terminal {
    pub(crate) fn open() -> Self {
        let (master, slave) = terminal::open().expect("a pseudo-terminal");
        Self {
            master: master.into(),
            slave: Some(slave),
        }
    }

    /// The side that a program runs on.
    pub(crate) fn stdio(&self) -> Stdio {
        let slave = self.slave.as_ref().expect("nothing runs on this terminal yet");
        slave.try_clone().expect("a file descriptor").into()
    }

    /// Gives up this process's hold of the program's side: with the program's end the terminal's output ends.
    pub(crate) fn hand_over(&mut self) {
        self.slave = None;
    }

    /// The side of the person at it.
    pub(crate) fn person(&self) -> File {
        self.master.try_clone().expect("a file descriptor")
    }

    /// Sets it as a shell has it while a program of its own runs: by lines, with echo and with keys for signals.
    fn cook(&self) {
        let mut settings = tcgetattr(&self.master).expect("a terminal has settings");
        settings
            .local_flags
            .insert(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(&self.master, SetArg::TCSANOW, &settings).expect("a terminal can be set");
    }

    /// Makes it this large, in characters. It begins without a size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Size { rows, cols: columns };
        terminal::resize(&self.master, size).expect("a terminal can be resized");
    }

    /// How the terminal is set now.
    pub fn settings(&self) -> Settings {
        let Termios {
            input_flags,
            output_flags,
            control_flags,
            local_flags,
            control_chars,
            ..
        } = tcgetattr(&self.master).expect("a terminal has settings");
        Settings(format!(
            "{input_flags:?} {output_flags:?} {control_flags:?} {local_flags:?} {control_chars:?}"
        ))
    }
}

impl Running {
    /// Stops the process, gives its terminal to another job, and has it back, as a shell does it for `fg`; waits until the terminal is
    /// set as it was.
    ///
    /// # Panics
    /// If it does not run on a terminal, or not in time.
    pub fn leave_and_return(&mut self) {
        let before = self.terminal().settings();
        self.signal(Signal::SIGSTOP);
        self.terminal().cook();
        assert!(self.terminal().settings() != before);
        self.signal(Signal::SIGCONT);
        self.wait_until("the terminal being as it was", |running| {
            running.terminal().settings() == before
        });
    }
}

//! `posada attach`: a running guest's console on this terminal.

use std::io::{self, IsTerminal};
use std::process;

use clap::Args;
use vmm::console::{Attachment, Left};
use vmm::control::{self, Request};

use super::guests::tell;
use super::{Failure, SIGNALLED, completions, say};

pub const EXAMPLES: &str = "\
Examples:
  posada attach web
  echo 'uptime' | posada attach web     until the guest ends, or Ctrl-C

What the console has printed last comes first. Ctrl-A d leaves the guest, Ctrl-A h shows the other keys. Any number of
people can be at one console.";

/// Shows a console and types there.
#[derive(Args)]
pub struct Attach {
    /// The running guest
    #[arg(add = completions::guests())]
    name: String,
}

impl Attach {
    /// Until the guest ends, or who is there leaves.
    pub fn execute(self) -> Result<(), Failure> {
        let (stream, first) = control::attach(&self.name)?;
        let left = Attachment::new(stream, first)?.attend()?;
        if left == Left::EndGuest {
            tell(&self.name, &Request::Kill)?;
        }
        self.report(left);
        match left {
            Left::Signal(signal) => process::exit((SIGNALLED + signal as u8).into()),
            Left::GuestEnded | Left::Detached | Left::EndGuest => Ok(()),
        }
    }

    /// Says to a person what the terminal is again about.
    fn report(&self, left: Left) {
        let what = match left {
            Left::GuestEnded => "has ended",
            Left::EndGuest => "was ended",
            Left::Detached | Left::Signal(_) => "goes on",
        };
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            say(format_args!("\nposada: {} {what}", self.name));
        }
    }
}

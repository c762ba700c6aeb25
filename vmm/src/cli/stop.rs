//! `posada stop`: guests shut down by themselves, or are ended when that takes too long.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vmm::control::{ControlError, Request};
use vmm::lifecycle::Phase;
use vmm::runtime;

use super::guests::{inspect, tell};
use super::{Failure, completions, say};

pub const EXAMPLES: &str = "\
Examples:
  posada stop web
  posada stop web-1 web-2 --timeout 120     both at the same time
  posada stop web --timeout 0               like 'posada kill'

A guest hears of it by its power button, which takes ACPI and somebody who listens: init, systemd-logind, acpid.";

/// How often a terminal is told what is waited for; nothing is said before.
const TICK: Duration = Duration::from_secs(1);

/// Asks guests to shut down.
#[derive(Args)]
pub struct Stop {
    /// The running guests; one that is paused goes on for it
    #[arg(required = true, value_name = "NAME", add = completions::guests())]
    names: Vec<String>,
    /// How long they may take; those that are still there then are ended at once
    #[arg(short, long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u32,
}

impl Stop {
    /// Asks all of them, and returns when their processes are gone.
    pub fn execute(self) -> Result<(), Failure> {
        let directory_of = |name: String| runtime::directory_of(&name).map(|directory| (name, directory));
        let guests: Result<Vec<_>, _> = self.names.into_iter().map(directory_of).collect();
        let mut waiting = Waiting::new(Duration::from_secs(self.timeout.into()));
        let mut asked = Ok(());
        for (name, directory) in guests.map_err(ControlError::from)? {
            match unless_gone(&name, press(&name)) {
                Ok(()) => waiting.add(name, directory),
                failed => asked = failed,
            }
        }
        waiting.wait_in_time();
        for name in &waiting.names {
            say(format_args!(
                "posada: {name} has not shut down within {} s, and is ended",
                self.timeout
            ));
            unless_gone(name, tell(name, &Request::Kill))?;
        }
        waiting.wait();
        asked
    }
}

/// Has the guest shut down. One that has not been started has nothing to do for that.
fn press(name: &str) -> Result<(), Failure> {
    if inspect(name)?.state == Phase::Created {
        return tell(name, &Request::Kill);
    }
    tell(name, &Request::PowerButton)?;
    tell(name, &Request::Resume)
}

/// A guest that could not be asked because it has just ended is what is wanted.
fn unless_gone(name: &str, asked: Result<(), Failure>) -> Result<(), Failure> {
    asked.or_else(|failure| runtime::directory_of(name).map_or(Ok(()), |_| Err(failure)))
}

/// Guests that are to end.
struct Waiting {
    names: Vec<String>,
    start: Instant,
    timeout: Duration,
    gone: Receiver<String>,
    sender: Sender<String>,
}

impl Waiting {
    fn new(timeout: Duration) -> Self {
        let (sender, gone) = mpsc::channel();
        Self {
            names: Vec::new(),
            start: Instant::now(),
            timeout,
            gone,
            sender,
        }
    }

    /// Waits for this one, too, on a thread of its own: the lock that tells of its process knows no deadline.
    fn add(&mut self, name: String, directory: PathBuf) {
        self.names.push(name.clone());
        let sender = self.sender.clone();
        thread::spawn(move || {
            runtime::wait_until_gone(&directory);
            // Fails when nobody waits any more.
            let _ = sender.send(name);
        });
    }

    /// Until all are gone, or the time is over.
    fn wait_in_time(&mut self) {
        let mut told = false;
        while !self.names.is_empty() {
            let left = self.timeout.saturating_sub(self.start.elapsed());
            match self.gone.recv_timeout(left.min(TICK)) {
                Ok(name) => self.names.retain(|waiting| *waiting != name),
                Err(_) if left <= TICK => break,
                Err(_) => {
                    told = true;
                    self.tell();
                }
            }
        }
        if told {
            self.clear_line();
        }
    }

    /// Until all are gone.
    fn wait(&mut self) {
        while !self.names.is_empty()
            && let Ok(name) = self.gone.recv()
        {
            self.names.retain(|waiting| *waiting != name);
        }
    }

    /// Shows a person what is waited for, in a line that is written anew.
    fn tell(&self) {
        self.clear_line();
        if io::stderr().is_terminal() {
            let names = self.names.join(", ");
            let (passed, all) = (self.start.elapsed().as_secs(), self.timeout.as_secs());
            // A person who has closed the terminal does not want to know.
            let _ = write!(io::stderr(), "posada: {names} shutting down, {passed} of {all} s");
        }
    }

    fn clear_line(&self) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

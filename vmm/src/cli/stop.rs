//! `posada stop`: guests shut down by themselves, or are ended when that takes too long.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vmm::control::{ControlError, Request};
use vmm::lifecycle::Phase;
use vmm::runtime;

use super::guests::{inspect, tell};
use super::messages::Failures;
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
        let mut failures = Failures::default();
        let asked = Waiting::begin(guests.map_err(ControlError::from)?, press);
        let late = asked.wait_in_time(Duration::from_secs(self.timeout.into()), &mut failures);
        for (name, _) in &late {
            say(format_args!(
                "posada: {name} has not shut down within {} s, and is ended",
                self.timeout
            ));
        }
        Waiting::begin(late, |name| tell(name, &Request::Kill)).wait(&mut failures);
        failures.result()
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

/// A guest's name and directory.
type Guest = (String, PathBuf);

/// Guests that are asked to end.
struct Waiting {
    guests: Vec<Guest>,
    start: Instant,
    /// Whose process is gone, or why it could not be asked.
    done: Receiver<(String, Result<(), Failure>)>,
}

impl Waiting {
    /// Asks each on a thread of its own: one that is at something else holds up only its answer, and the lock that tells of a process
    /// knows no deadline.
    fn begin(guests: Vec<Guest>, ask: fn(&str) -> Result<(), Failure>) -> Self {
        let (sender, done) = mpsc::channel();
        for (name, directory) in guests.clone() {
            let sender = sender.clone();
            thread::spawn(move || {
                let asked = unless_gone(&name, ask(&name));
                if asked.is_ok() {
                    runtime::wait_until_gone(&directory);
                }
                // Fails when nobody waits any more.
                let _ = sender.send((name, asked));
            });
        }
        Self {
            guests,
            start: Instant::now(),
            done,
        }
    }

    /// Until all are gone, or the time is over; returns those that are still there.
    fn wait_in_time(mut self, timeout: Duration, failures: &mut Failures) -> Vec<Guest> {
        let mut told = false;
        while !self.guests.is_empty() {
            let left = timeout.saturating_sub(self.start.elapsed());
            match self.done.recv_timeout(left.min(TICK)) {
                Ok((name, asked)) => {
                    self.guests.retain(|(waiting, _)| *waiting != name);
                    failures.take(asked);
                }
                Err(_) if left <= TICK => break,
                Err(_) => {
                    told = true;
                    self.tell(timeout);
                }
            }
        }
        if told {
            clear_line();
        }
        self.guests
    }

    /// Until all are gone.
    fn wait(self, failures: &mut Failures) {
        for (_, asked) in self.done {
            failures.take(asked);
        }
    }

    /// Shows a person what is waited for, in a line that is written anew.
    fn tell(&self, timeout: Duration) {
        clear_line();
        if io::stderr().is_terminal() {
            let names: Vec<_> = self.guests.iter().map(|(name, _)| name.as_str()).collect();
            let (passed, all) = (self.start.elapsed().as_secs(), timeout.as_secs());
            // A person who has closed the terminal does not want to know.
            let _ = write!(
                io::stderr(),
                "posada: {} shutting down, {passed} of {all} s",
                names.join(", ")
            );
        }
    }
}

fn clear_line() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

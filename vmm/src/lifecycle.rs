//! The life of a machine: `Created → Running ⇄ Paused → Stopped`.
//!
//! | from    | to      | by                                                                     |
//! |---------|---------|------------------------------------------------------------------------|
//! | Created | Running | [`Lifecycle::start`], before the vCPU threads are let loose            |
//! | Created | Paused  | [`Lifecycle::pause`], for a machine that is made from a snapshot       |
//! | Running | Paused  | [`Lifecycle::pause`], when all vCPUs are out of the guest              |
//! | Paused  | Running | [`Lifecycle::start`], before they go on                                |
//! | any     | Stopped | [`Lifecycle::stop`], by a vCPU whose guest has ended, or by the user   |
//!
//! `Stopped` is for good and remembers the first reason. This is the one place that changes the state.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Why a machine has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest switched its machine off.
    PowerOff,
    /// The guest reset its machine in an orderly way.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The guest cannot go on: which vCPU, what and where.
    Crash(String),
    /// Nobody serves the guest's memory any more: why.
    MemoryLost(String),
    /// The user ended it.
    Ended,
}

/// Where in its life a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has been built and does not run yet.
    Created,
    /// It runs.
    Running,
    /// It rests.
    Paused,
    /// It has ended.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

#[derive(Debug)]
enum State {
    Created,
    Running,
    Paused,
    Stopped(Stop),
}

/// The state of one machine, shared by its threads.
pub struct Lifecycle {
    state: Mutex<State>,
    stopped: EventFd,
}

impl Lifecycle {
    /// A machine that has been built and does not run yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State::Created),
            stopped: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The machine starts to run, or goes on. A machine that has been stopped stays so.
    pub fn start(&self) {
        self.enter(State::Running);
    }

    /// The machine rests. A machine that has been stopped stays so.
    pub fn pause(&self) {
        self.enter(State::Paused);
    }

    fn enter(&self, next: State) {
        let mut state = self.lock();
        if !matches!(*state, State::Stopped(_)) {
            *state = next;
        }
    }

    /// The machine stops for good. Of several reasons the first counts.
    pub fn stop(&self, why: Stop) {
        let mut state = self.lock();
        if !matches!(*state, State::Stopped(_)) {
            *state = State::Stopped(why);
            // Fails only when the counter is full, and then it is already readable.
            let _ = self.stopped.write(1);
        }
    }

    /// Where in its life the machine is.
    pub fn phase(&self) -> Phase {
        match *self.lock() {
            State::Created => Phase::Created,
            State::Running => Phase::Running,
            State::Paused => Phase::Paused,
            State::Stopped(_) => Phase::Stopped,
        }
    }

    /// Whether the machine has stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(*self.lock(), State::Stopped(_))
    }

    /// Why it has stopped, or `None` while it has not.
    pub fn stop_reason(&self) -> Option<Stop> {
        match &*self.lock() {
            State::Stopped(why) => Some(why.clone()),
            State::Created | State::Running | State::Paused => None,
        }
    }

    /// Becomes readable when the machine has stopped, and stays so.
    pub fn stopped(&self) -> &EventFd {
        &self.stopped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_counts_and_is_announced_once() {
        let lifecycle = Lifecycle::new().unwrap();
        lifecycle.start();
        assert!(!lifecycle.is_stopped());
        assert!(lifecycle.stopped().read().is_err(), "nothing to read yet");
        lifecycle.stop(Stop::PowerOff);
        lifecycle.stop(Stop::Ended);
        assert_eq!(lifecycle.stop_reason(), Some(Stop::PowerOff));
        assert_eq!(lifecycle.stopped().read().unwrap(), 1);
    }

    #[test]
    fn a_stopped_machine_does_not_start_or_pause() {
        let lifecycle = Lifecycle::new().unwrap();
        lifecycle.stop(Stop::Ended);
        lifecycle.start();
        lifecycle.pause();
        assert!(lifecycle.is_stopped());
    }
}

//! A guest in the foreground: its console on this terminal, until one of the two ends.
//!
//! One event loop on the main thread waits for five things: keys or piped input, what others [type](Hub), room in the guest's
//! serial port, signals, and the machine's stop. Output does not pass here: the serial port writes it itself.

mod attachment;
mod escape;
mod hub;
mod input;
mod log;
mod output;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tracing::{debug, warn};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Doing, Error};
use crate::lifecycle::Stop;
use crate::vm::RunningVm;
use escape::Command;
use input::ConsoleInput;
use output::ConsoleOutput;
pub use terminal::{Printed, RawTerminal, size};

pub use attachment::{Attachment, Left};
pub use hub::{Hub, Keyboard, Seen, Watcher};
pub use log::{LogReader, LogWriter};

/// The signals that end a guest in good order.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

const STDIN: u32 = 0;
const ROOM: u32 = 1;
const SIGNALS: u32 = 2;
const STOPPED: u32 = 3;
const TYPED: u32 = 4;

/// How a guest in the foreground ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine stopped.
    Stopped(Stop),
    /// A signal told posada to end.
    Signal(Signal),
}

/// Exit status of a process whose guest crashed.
const CRASHED: u8 = 3;
/// A process that a signal ended has this plus the signal's number, as shells have it.
pub const SIGNALLED: u8 = 128;

impl End {
    /// Whether the guest did not want to.
    pub fn is_crash(&self) -> bool {
        matches!(
            self,
            Self::Stopped(Stop::Panic | Stop::Crash(_) | Stop::MemoryLost(_))
        )
    }

    /// What is said of it behind the guest's name; of a crash, why it was one.
    pub fn why(&self) -> String {
        match self {
            Self::Stopped(Stop::PowerOff) => "powered off".to_owned(),
            Self::Stopped(Stop::Reset) => "reset its machine".to_owned(),
            Self::Stopped(Stop::Panic) => "its kernel panicked".to_owned(),
            Self::Stopped(Stop::Crash(what) | Stop::MemoryLost(what)) => what.clone(),
            Self::Stopped(Stop::Ended) => "was ended".to_owned(),
            Self::Signal(signal) => format!("was ended by {signal}"),
        }
    }

    /// The exit status of the guest's process.
    pub fn status(&self) -> u8 {
        match self {
            _ if self.is_crash() => CRASHED,
            Self::Stopped(_) => 0,
            Self::Signal(signal) => SIGNALLED + *signal as u8,
        }
    }
}

/// Keeps the signals that end a guest from killing this thread and all that it will start. To be called
/// before there are other threads; [`attend`] then reads them.
pub fn block_signals() -> Result<(), Error> {
    watched_signals().thread_block().doing("block signals")
}

/// Where a guest's console prints: standard output.
pub fn output() -> Result<impl Write + Send + use<>, Error> {
    ConsoleOutput::stdout().doing("copy standard output")
}

/// Waits until `event` is readable, or for a signal that ends the guest, which is returned.
pub fn wait_for(event: &EventFd) -> Result<Option<Signal>, Error> {
    let ending = ENDING.into_iter().collect();
    let signals = SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .doing("open a signalfd")?;
    loop {
        // SAFETY: the borrow is of `event`, which outlives it.
        let event = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        let mut files = [event, signals.as_fd()].map(|file| PollFd::new(file, PollFlags::POLLIN));
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(io::Error::from(error)).doing("wait for events"),
        }
        if let Ok(Some(info)) = signals.read_signal() {
            return Ok(Some(
                Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM),
            ));
        }
        if files[0].any().unwrap_or(false) {
            return Ok(None);
        }
    }
}

fn watched_signals() -> SigSet {
    ENDING.into_iter().chain([Signal::SIGCONT]).collect()
}

/// Connects the guest's console with this process's standard input and waits until the guest ends or a signal
/// ends it. The terminal is raw meanwhile.
pub fn attend(vm: &RunningVm) -> Result<End, Error> {
    let signals = SignalFd::with_flags(&watched_signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .doing("open a signalfd")?;
    let terminal = RawTerminal::enter(Printed::Processed).doing("put the terminal into raw mode")?;
    let mut manager = EventManager::new()
        .map_err(events_error)
        .doing("open an event loop")?;
    let id = manager.add_subscriber(Foreground {
        vm,
        signals,
        input: ConsoleInput::new(terminal.is_some()),
        stdin: Stdin::Unwatched,
        end: None,
        terminal,
    });
    loop {
        manager.run().map_err(events_error).doing("wait for events")?;
        let foreground = manager
            .subscriber_mut(id)
            .map_err(events_error)
            .doing("wait for events")?;
        if let Some(end) = foreground.end.take() {
            return Ok(end);
        }
    }
}

fn events_error(error: event_manager::Error) -> io::Error {
    io::Error::other(format!("{error:?}"))
}

/// Whether the event loop tells when there is something to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stdin {
    Watched,
    Unwatched,
    /// A regular file: epoll refuses it, and reading it never blocks.
    AlwaysReady,
}

struct Foreground<'a> {
    vm: &'a RunningVm,
    signals: SignalFd,
    input: ConsoleInput,
    stdin: Stdin,
    end: Option<End>,
    terminal: Option<RawTerminal>,
}

impl Foreground<'_> {
    fn read_stdin(&mut self) {
        match self.input.read(io::stdin().as_fd()) {
            Ok(None) => {}
            Ok(Some(Command::End)) => self.end = Some(End::Stopped(Stop::Ended)),
            // Without a terminal to show it on, help is of no use to anybody.
            Ok(Some(Command::Help)) => drop(io::stderr().write_all(self.input.help().as_bytes())),
            // The keys for it are the guest's here.
            Ok(Some(Command::Detach)) => {}
            Err(error) => warn!("standard input is lost: {error}"),
        }
    }

    fn read_signal(&mut self) {
        let Ok(Some(info)) = self.signals.read_signal() else {
            return;
        };
        match Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM) {
            Signal::SIGCONT => {
                if let Some(Err(error)) = self.terminal.as_ref().map(RawTerminal::resume) {
                    warn!("cannot put the terminal back into raw mode: {error}");
                }
            }
            signal => self.end = Some(End::Signal(signal)),
        }
    }

    /// Moves input on as far as it goes, and watches standard input only while more of it is wanted.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        // Before piped input, which may have no end.
        self.vm.console().feed(self.vm.serial());
        self.input.feed(self.vm.serial());
        while self.stdin == Stdin::AlwaysReady && self.input.wants_more() {
            self.read_stdin();
            self.input.feed(self.vm.serial());
        }
        let watch = Events::with_data(&io::stdin(), STDIN, EventSet::IN);
        match (self.stdin, self.input.wants_more()) {
            (Stdin::Unwatched, true) => match ops.add(watch) {
                Ok(()) => self.stdin = Stdin::Watched,
                Err(_) => {
                    self.stdin = Stdin::AlwaysReady;
                    self.pump(ops);
                }
            },
            (Stdin::Watched, false) => match ops.remove(watch) {
                Ok(()) => self.stdin = Stdin::Unwatched,
                Err(error) => warn!("standard input stays watched: {error:?}"),
            },
            _ => {}
        }
    }
}

impl MutEventSubscriber for Foreground<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        let fds = [
            Events::with_data_raw(self.vm.room().as_raw_fd(), ROOM, EventSet::IN),
            Events::with_data_raw(self.signals.as_raw_fd(), SIGNALS, EventSet::IN),
            Events::with_data_raw(self.vm.stopped().as_raw_fd(), STOPPED, EventSet::IN),
            Events::with_data_raw(self.vm.console().arrived().as_raw_fd(), TYPED, EventSet::IN),
        ];
        for events in fds {
            if let Err(error) = ops.add(events) {
                warn!("cannot wait for event {}: {error:?}", events.data());
            }
        }
        self.pump(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            STDIN => self.read_stdin(),
            ROOM => {
                // Outside of the message: its arguments are not evaluated when it is not wanted.
                let times = self.vm.room().read();
                debug!("the guest has room for input: {times:?}");
            }
            TYPED => drop(self.vm.console().arrived().read()),
            SIGNALS => self.read_signal(),
            _ => self.end = self.vm.stop_reason().map(End::Stopped),
        }
        self.pump(ops);
    }
}

/// Whether messages go to a person.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

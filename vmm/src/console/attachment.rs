//! A terminal, or pipes, at the console of a guest that another process runs.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{read, write};
use tracing::warn;

use super::escape::{Command, EscapeFilter};
use super::terminal::{Printed, RawTerminal};
use super::watched_signals;
use crate::error::{Doing, Error};

/// As much is moved at once: what a pipe that is ready takes without waiting (PIPE_BUF).
const CHUNK: usize = 4096;

/// Why somebody has left a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The guest has ended.
    GuestEnded,
    /// He wanted to, or nobody sees the output any more.
    Detached,
    /// He wants the guest to end.
    EndGuest,
    /// A signal told this process to end.
    Signal(Signal),
}

/// Somebody at a console.
pub struct Attachment {
    stream: UnixStream,
    /// On its way to standard output.
    output: Vec<u8>,
    /// On its way to the guest.
    typed: Vec<u8>,
    /// Whether there may be more input.
    listens: bool,
    /// Set where a person types.
    keys: Option<EscapeFilter>,
}

/// What can be done without waiting.
struct Ready {
    signal: bool,
    input: bool,
    output: bool,
    readable: bool,
    writable: bool,
}

impl Attachment {
    /// By a stream that carries what the console prints and what is typed, of which these bytes have come.
    ///
    /// # Errors
    /// The stream cannot be made non-blocking.
    pub fn new(stream: UnixStream, first: Vec<u8>) -> Result<Self, Error> {
        stream.set_nonblocking(true).doing("make a stream non-blocking")?;
        Ok(Self {
            stream,
            output: first,
            typed: Vec::new(),
            listens: true,
            keys: None,
        })
    }

    /// Connects the console with standard input and output until one of the two sides leaves. The terminal is raw meanwhile.
    ///
    /// # Errors
    /// The terminal cannot be set, or standard output fails.
    pub fn attend(mut self) -> Result<Left, Error> {
        let terminal = RawTerminal::enter(Printed::Processed).doing("put the terminal into raw mode")?;
        let signals = terminal.as_ref().map(|_| signals()).transpose()?;
        self.keys = terminal.as_ref().map(|_| EscapeFilter::for_attached());
        loop {
            let ready = self.wait(signals.as_ref()).doing("wait for the console")?;
            if ready.signal
                && let (Some(signals), Some(terminal)) = (&signals, &terminal)
                && let Some(signal) = heed(signals, terminal)
            {
                return Ok(Left::Signal(signal));
            }
            if ready.input
                && let Some(left) = self.read_input().doing("read standard input")?
            {
                return Ok(left);
            }
            if ready.writable {
                self.send();
            }
            if ready.output && !self.print().doing("write to standard output")? {
                return Ok(Left::Detached);
            }
            if ready.readable && !self.receive() {
                return Ok(Left::GuestEnded);
            }
        }
    }

    /// Waits for what can be done next. Output is taken when the last has been printed: who is slow is told so by the guest's side.
    fn wait(&self, signals: Option<&SignalFd>) -> io::Result<Ready> {
        let when = |wanted: bool, what: PollFlags| if wanted { what } else { PollFlags::empty() };
        // A person's keys get through to this process even if nothing gets through to the guest.
        let wants_input = self.listens && (self.typed.is_empty() || self.keys.is_some());
        let stream = when(self.output.is_empty(), PollFlags::POLLIN)
            | when(!self.typed.is_empty(), PollFlags::POLLOUT);
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let mut files = vec![
            PollFd::new(self.stream.as_fd(), stream),
            // Its hang-up is told whatever is wanted.
            PollFd::new(stdout.as_fd(), when(!self.output.is_empty(), PollFlags::POLLOUT)),
        ];
        if wants_input {
            files.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        if let Some(signals) = signals {
            files.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is = |index: usize| files.get(index).and_then(PollFd::any).unwrap_or(false);
        let stream = files[0].revents().unwrap_or(PollFlags::empty());
        Ok(Ready {
            readable: self.output.is_empty() && !(stream - PollFlags::POLLOUT).is_empty(),
            writable: stream.intersects(PollFlags::POLLOUT),
            output: is(1),
            input: wants_input && is(2),
            signal: is(if wants_input { 3 } else { 2 }),
        })
    }

    fn read_input(&mut self) -> io::Result<Option<Left>> {
        let mut chunk = [0; CHUNK];
        let length = match read(io::stdin(), &mut chunk) {
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(None),
            result => result?,
        };
        if length == 0 {
            self.listens = false;
            self.close_if_typed();
        }
        let Some(keys) = &mut self.keys else {
            self.typed.extend_from_slice(&chunk[..length]);
            return Ok(None);
        };
        let mut typed = Vec::new();
        let command = keys.filter(&chunk[..length], &mut typed);
        // A person who types a page to a guest that does not listen has no use for all of it.
        if self.typed.len() < CHUNK {
            self.typed.append(&mut typed);
        }
        Ok(match command {
            Some(Command::Detach) => Some(Left::Detached),
            Some(Command::End) => Some(Left::EndGuest),
            Some(Command::Help) => {
                // Without a terminal to show it on, help is of no use to anybody.
                let _ = io::stderr().write_all(keys.help().as_bytes());
                None
            }
            None => None,
        })
    }

    /// Sends what has been typed, as far as it goes. A guest that has ended takes nothing, which reading tells.
    fn send(&mut self) {
        match self.stream.write(&self.typed) {
            Ok(sent) => drop(self.typed.drain(..sent)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.typed.clear(),
        }
        self.close_if_typed();
    }

    /// Tells the guest's side when there will be no more input.
    fn close_if_typed(&self) {
        if !self.listens && self.typed.is_empty() {
            // Fails when the other side is gone.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Prints some of the output; false when nobody sees it any more.
    fn print(&mut self) -> io::Result<bool> {
        let some = &self.output[..self.output.len().min(CHUNK)];
        match write(io::stdout(), some) {
            Ok(0) if some.is_empty() => Ok(false),
            Ok(written) => {
                self.output.drain(..written);
                Ok(true)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(true),
            Err(Errno::EPIPE | Errno::EIO) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes what has come; false at the end.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(length) => {
                self.output.extend_from_slice(&chunk[..length]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}

fn signals() -> Result<SignalFd, Error> {
    let watched = watched_signals();
    watched.thread_block().doing("block signals")?;
    SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).doing("open a signalfd")
}

/// The signal that ends this process, if it is one.
fn heed(signals: &SignalFd, terminal: &RawTerminal) -> Option<Signal> {
    let info = signals.read_signal().ok()??;
    let signal = Signal::try_from(info.ssi_signo as i32).unwrap_or(Signal::SIGTERM);
    if signal != Signal::SIGCONT {
        return Some(signal);
    }
    if let Err(error) = terminal.resume() {
        warn!("cannot put the terminal back into raw mode: {error}");
    }
    None
}

//! Carries what goes between this process and a command in a guest: one loop that waits for all of it, and never for one thing alone.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use guest_agent::frame::{Frame, Malformed, Outgoing, PIECE, Standard, WINDOW};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{dup2_stdin, read};
use tracing::warn;
use vmm::console::RawTerminal;

use super::sink::Sink;
use super::{PASSED, terminal_size};
use crate::cli::agent::{Agent, failure, lost};
use crate::cli::{Failure, SIGNALLED};

/// So many signals of one kind end posada itself: the command, or its guest, does not listen.
const PERSISTENT: u32 = 3;

/// A command that runs.
pub struct Session {
    agent: Agent,
    signals: SignalFd,
    /// This process's, if it is the command's.
    terminal: Option<RawTerminal>,
    outgoing: Outgoing,
    /// Whether there may be more on standard input for the command.
    has_input: bool,
    /// Bytes of it that are on their way.
    under_way: usize,
    output: Sink,
    error: Sink,
    /// How often each of [`PASSED`] has come.
    signalled: [u32; PASSED.len()],
    buffer: Vec<u8>,
}

/// What an agent has said.
enum Heard {
    /// Nothing more.
    Nothing,
    /// Something that has been seen to.
    Something,
    /// That the command has ended, with this exit status.
    End(u8),
}

/// What can be done without waiting.
struct Ready {
    stream: bool,
    signal: bool,
    input: bool,
    output: bool,
    error: bool,
}

impl Session {
    /// The command that the agent has been asked for.
    ///
    /// # Errors
    /// The stream to the agent cannot be used.
    pub fn new(agent: Agent, signals: SignalFd, terminal: Option<RawTerminal>) -> Result<Self, Failure> {
        let prepared = agent.stream.set_nonblocking(true);
        prepared.map_err(|error| agent.lost(&error))?;
        Ok(Self {
            agent,
            signals,
            terminal,
            outgoing: Outgoing::default(),
            has_input: true,
            under_way: 0,
            output: Sink::stdout(),
            error: Sink::stderr(),
            signalled: [0; PASSED.len()],
            buffer: vec![0; PIECE],
        })
    }

    /// Goes on until the command has ended; returns its exit status.
    ///
    /// # Errors
    /// The agent is gone, could not run it, or says what it should not.
    pub fn carry_on(mut self) -> Result<u8, Failure> {
        loop {
            // One after the other: who reads the output slowly is not to find it all here.
            while self.output.is_empty() && self.error.is_empty() {
                match self.hear()? {
                    Heard::Nothing => break,
                    Heard::Something => {}
                    Heard::End(status) => return Ok(status),
                }
            }
            let ready = self
                .wait()
                .map_err(|error| Failure::Other(format!("cannot wait: {error}")))?;
            if ready.signal
                && let Some(status) = self.pass_signals()
            {
                return Ok(status);
            }
            if ready.input {
                self.pass_input();
            }
            self.print(&ready)?;
            if self.outgoing.flush(&mut self.agent.stream).is_err() {
                // What the agent has said last is still to be heard, and then that it is gone.
                self.outgoing = Outgoing::default();
                self.has_input = false;
            }
            if ready.stream {
                self.receive().map_err(|error| self.agent.lost(&error))?;
            }
        }
    }

    fn hear(&mut self) -> Result<Heard, Failure> {
        let malformed = |error: Malformed| lost(&self.agent.guest, &error.into());
        let frame = match self.agent.incoming.take() {
            Ok(None) => return Ok(Heard::Nothing),
            Ok(Some(frame)) => frame,
            Err(error) => return Err(malformed(error)),
        };
        match frame {
            Frame::Output(bytes) => self.output.put(bytes).map_err(malformed)?,
            Frame::Error(bytes) => self.error.put(bytes).map_err(malformed)?,
            Frame::Taken(bytes) => {
                let left = self.under_way.checked_sub(bytes as usize);
                self.under_way = left.ok_or_else(|| malformed(Malformed))?;
            }
            Frame::Closed(Standard::Input) => self.close_input(),
            Frame::Exit(status) => return Ok(Heard::End(status)),
            Frame::Failed(json) => return Err(failure(json)),
            _ => return Err(malformed(Malformed)),
        }
        Ok(Heard::Something)
    }

    fn receive(&mut self) -> io::Result<()> {
        match self.agent.incoming.fill(&mut self.agent.stream) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            filled => filled.map(drop),
        }
    }

    /// The command reads no more: whoever writes it here is to learn that as he would in a pipe of one machine.
    fn close_input(&mut self) {
        self.has_input = false;
        if let Ok(nothing) = File::open("/dev/null") {
            // If it fails, he learns it when this process ends.
            let _ = dup2_stdin(nothing);
        }
    }

    fn pass_input(&mut self) {
        let most = PIECE.min(WINDOW - self.under_way);
        match read(io::stdin(), &mut self.buffer[..most]) {
            Ok(count @ 1..) => {
                self.under_way += count;
                self.outgoing.add(Frame::Input(&self.buffer[..count]));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // An input that cannot be read has ended.
            Ok(0) | Err(_) => {
                self.has_input = false;
                self.outgoing.add(Frame::InputEnd);
            }
        }
    }

    /// Passes signals on; returns an exit status if one has come too often.
    fn pass_signals(&mut self) -> Option<u8> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = Signal::try_from(info.ssi_signo.cast_signed()).ok()?;
            let Some(place) = PASSED.iter().position(|passed| *passed == signal) else {
                self.see_to_terminal(signal);
                continue;
            };
            self.signalled[place] += 1;
            if self.signalled[place] == PERSISTENT {
                return Some(SIGNALLED + signal as u8);
            }
            self.outgoing.add(Frame::Signal(signal as u8));
        }
        None
    }

    /// The terminal has another size, or is this process's again and may have got one meanwhile.
    fn see_to_terminal(&mut self, signal: Signal) {
        if signal == Signal::SIGCONT
            && let Some(Err(error)) = self.terminal.as_ref().map(RawTerminal::resume)
        {
            warn!("cannot put the terminal back into raw mode: {error}");
        }
        if let Some(size) = terminal_size() {
            self.outgoing.add(Frame::Window(size));
        }
    }

    fn print(&mut self, ready: &Ready) -> Result<(), Failure> {
        let sinks = [
            (ready.output, &mut self.output, Standard::Output),
            (ready.error, &mut self.error, Standard::Error),
        ];
        for (_, sink, standard) in sinks.into_iter().filter(|(ready, ..)| *ready) {
            let printed = sink
                .print()
                .map_err(|error| Failure::Other(format!("cannot print what the command prints: {error}")))?;
            if !printed {
                self.outgoing.add(Frame::Closed(standard));
            }
        }
        Ok(())
    }

    /// Waits until something can be done.
    fn wait(&self) -> io::Result<Ready> {
        let (reads, writes) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let printed = self.output.is_empty() && self.error.is_empty();
        let takes_input = self.has_input && self.under_way < WINDOW && self.outgoing.len() < PIECE;
        let mut of_stream = PollFlags::empty();
        of_stream.set(reads, printed);
        of_stream.set(writes, !self.outgoing.is_empty());
        let stdin = io::stdin();
        let wanted: [(BorrowedFd<'_>, PollFlags, bool); 5] = [
            (self.agent.stream.as_fd(), of_stream, !of_stream.is_empty()),
            (self.signals.as_fd(), reads, true),
            (stdin.as_fd(), reads, takes_input),
            (self.output.as_fd(), writes, !self.output.is_empty()),
            (self.error.as_fd(), writes, !self.error.is_empty()),
        ];
        let wanted = wanted.into_iter().enumerate().filter(|(_, (.., wanted))| *wanted);
        let (places, mut files): (Vec<_>, Vec<_>) = wanted
            .map(|(place, (file, flags, _))| (place, PollFd::new(file, flags)))
            .unzip();
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = |wanted: usize| {
            let at = places.iter().position(|place| *place == wanted);
            at.and_then(|at| files[at].revents())
                .unwrap_or(PollFlags::empty())
        };
        Ok(Ready {
            stream: printed && !(events(0) - writes).is_empty(),
            signal: !events(1).is_empty(),
            input: !events(2).is_empty(),
            output: !events(3).is_empty(),
            error: !events(4).is_empty(),
        })
    }
}

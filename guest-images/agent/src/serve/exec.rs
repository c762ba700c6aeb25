//! Carries what goes between a command and who has it run: one loop that waits for all of it, and never for one thing alone.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::child::{Child, MAX_LEFT};
use crate::frame::{Carrier, Frame, Incoming, Malformed, Outgoing, PIECE, Standard, WINDOW, send_json};
use crate::request::Command;

/// Output that may wait to be sent; then the command has to.
const MAX_WAITING: usize = 2 * PIECE;
/// Input that is taken is told of in such portions, so that keys that are pressed need no answer each.
const PORTION: u32 = WINDOW as u32 / 4;
/// What ends the input of a terminal (POSIX.1-2017 §11.1.9, EOF).
const END_OF_FILE: u8 = 4;

/// Runs a command to its end.
pub fn run(mut stream: &File, incoming: &mut Incoming, command: &Command) -> io::Result<()> {
    let child = match Child::start(command) {
        Ok(child) => child,
        Err(failed) => return send_json(&mut stream, &failed, |json| Frame::Failed(json)),
    };
    let mut work = Work {
        child,
        outgoing: Outgoing::default(),
        waiting: Vec::new(),
        in_line: false,
        input_ends: false,
        taken: 0,
        status: None,
        left: MAX_LEFT,
        buffer: vec![0; PIECE],
    };
    let outcome = wait_never(stream).and_then(|()| work.carry_on(stream, incoming));
    match (outcome, work.status) {
        (Ok(()), Some(status)) => {
            work.outgoing.add(Frame::Exit(status));
            fcntl(stream, FcntlArg::F_SETFL(OFlag::empty()))?;
            work.outgoing.flush(&mut stream)
        }
        (Err(error), Some(_)) => Err(error),
        (outcome, None) => {
            work.child.hang_up();
            work.child.leave();
            outcome
        }
    }
}

fn wait_never(stream: &File) -> io::Result<()> {
    fcntl(stream, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

struct Work {
    child: Child,
    outgoing: Outgoing,
    /// Input that the command has not taken yet: at most [`WINDOW`] bytes.
    waiting: Vec<u8>,
    /// Whether the last of the input has begun a line and not ended it.
    in_line: bool,
    /// Whether there will be no more input.
    input_ends: bool,
    /// Bytes that the command has taken and nobody has been told of.
    taken: u32,
    /// How it has ended.
    status: Option<u8>,
    /// How much of its output is still read when it has.
    left: usize,
    buffer: Vec<u8>,
}

/// What can be done without waiting.
#[derive(Default)]
struct Ready {
    stream: bool,
    ended: bool,
    input: bool,
    output: bool,
    error: bool,
}

impl Work {
    /// Goes on until the command has ended and all of its output is on its way, or the other side is gone.
    fn carry_on(&mut self, mut stream: &File, incoming: &mut Incoming) -> io::Result<()> {
        loop {
            // What came with the last read may be several frames; what came with the request is there already.
            while let Some(frame) = incoming.take()? {
                self.hear(frame)?;
            }
            let has_room = self.outgoing.len() < MAX_WAITING;
            let ready = self.wait(stream, has_room)?;
            if ready.stream && would_wait(incoming.fill(&mut stream))? == Some(0) {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if ready.input {
                self.feed();
            }
            let read = self.read(&ready)?;
            self.outgoing.flush(&mut stream)?;
            if self.status.is_some() && has_room && !read {
                return Ok(());
            }
            if ready.ended {
                self.status = self.child.status()?;
            }
        }
    }

    fn hear(&mut self, frame: Frame<'_>) -> io::Result<()> {
        match frame {
            Frame::Input(bytes) if self.waiting.len() + bytes.len() <= WINDOW && !self.input_ends => {
                if self.child.input.is_some() {
                    self.waiting.extend_from_slice(bytes);
                    self.in_line = !matches!(bytes.last(), Some(b'\n' | b'\r' | &END_OF_FILE));
                    self.feed();
                }
            }
            Frame::InputEnd => {
                if self.child.has_terminal {
                    // Behind half a line it only has that read.
                    let times = if self.in_line { 2 } else { 1 };
                    self.waiting.extend_from_slice(&[END_OF_FILE; 2][..times]);
                }
                self.input_ends = true;
                self.feed();
            }
            Frame::Window(size) => self.child.resize(size),
            Frame::Signal(number) => {
                let signal = Signal::try_from(i32::from(number)).map_err(|_| Malformed)?;
                if self.status.is_none() {
                    self.child.signal(signal);
                }
            }
            // A terminal that nobody looks at is hung up. How the command ends is still told.
            Frame::Closed(_) if self.child.has_terminal => {
                if self.status.is_none() {
                    self.waiting.clear();
                    self.child.hang_up();
                }
            }
            Frame::Closed(Standard::Output) => self.child.output = None,
            Frame::Closed(Standard::Error) => self.child.error = None,
            _ => return Err(Malformed.into()),
        }
        Ok(())
    }

    /// Gives the command as much of its input as it takes.
    fn feed(&mut self) {
        let Some(input) = &mut self.child.input else {
            return;
        };
        match would_wait(input.write(&self.waiting)) {
            Ok(count) => {
                let count = count.unwrap_or(0);
                self.waiting.drain(..count);
                // At most the window's.
                self.taken += count as u32;
                if self.taken >= PORTION && !self.input_ends {
                    self.outgoing.add(Frame::Taken(self.taken));
                    self.taken = 0;
                }
                if self.waiting.is_empty() && self.input_ends && !self.child.has_terminal {
                    self.child.input = None;
                }
            }
            // It has closed its input.
            Err(_) => {
                self.child.input = None;
                self.waiting.clear();
                self.outgoing.add(Frame::Closed(Standard::Input));
            }
        }
    }

    /// Takes what the command has printed; false if there was nothing.
    fn read(&mut self, ready: &Ready) -> io::Result<bool> {
        let Self {
            child,
            buffer,
            outgoing,
            left,
            status,
            ..
        } = self;
        let mut some = false;
        let streams: [(bool, &mut Option<File>, Carrier); 2] = [
            (ready.output, &mut child.output, |bytes| Frame::Output(bytes)),
            (ready.error, &mut child.error, |bytes| Frame::Error(bytes)),
        ];
        for (ready, stream, frame) in streams {
            let Some(from) = stream.as_mut().filter(|_| ready) else {
                continue;
            };
            match would_wait(from.read(buffer)) {
                // The end; of a terminal that nobody has any more, EIO.
                Ok(Some(0)) | Err(_) => *stream = None,
                Ok(None) => {}
                Ok(Some(count)) => {
                    outgoing.add(frame(&buffer[..count]));
                    if status.is_some() {
                        *left = left.saturating_sub(count);
                    }
                    some = *left > 0;
                }
            }
        }
        Ok(some)
    }

    /// Waits until something can be done. When the command has ended, only for room for what it has left.
    fn wait(&self, stream: &File, has_room: bool) -> io::Result<Ready> {
        let (reads, writes) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let mut of_stream = reads;
        of_stream.set(writes, !self.outgoing.is_empty());
        let running = self.status.is_none();
        let wanted: [(Option<BorrowedFd<'_>>, PollFlags, bool); 5] = [
            (Some(stream.as_fd()), of_stream, true),
            (Some(self.child.ended.as_fd()), reads, running),
            (
                self.child.input.as_ref().map(AsFd::as_fd),
                writes,
                !self.waiting.is_empty(),
            ),
            (self.child.output.as_ref().map(AsFd::as_fd), reads, has_room),
            (self.child.error.as_ref().map(AsFd::as_fd), reads, has_room),
        ];
        let mut files = Vec::with_capacity(wanted.len());
        let mut places = [None; 5];
        for (place, (file, flags, wanted)) in places.iter_mut().zip(wanted) {
            if let Some(file) = file.filter(|_| wanted) {
                *place = Some(files.len());
                files.push(PollFd::new(file, flags));
            }
        }
        let timeout = if running || !has_room {
            PollTimeout::NONE
        } else {
            PollTimeout::ZERO
        };
        match poll(&mut files, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = |place: usize| {
            places[place]
                .and_then(|at| files[at].revents())
                .unwrap_or(PollFlags::empty())
        };
        let is_ready = |place| !events(place).is_empty();
        Ok(Ready {
            stream: !(events(0) - writes).is_empty(),
            ended: is_ready(1),
            input: is_ready(2),
            output: is_ready(3),
            error: is_ready(4),
        })
    }
}

/// `None` where there was nothing to be done yet.
fn would_wait(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        outcome => outcome.map(Some),
    }
}

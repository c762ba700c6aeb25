//! Where a command's output goes. Whoever reads it slowly holds the command back, and never this process, which has signals to pass.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use guest_agent::frame::Malformed;
use nix::unistd::write;

/// A pipe that has room at all takes so much at once (PIPE_BUF in linux/limits.h; pipe(7)).
const AT_ONCE: usize = 4096;

/// More than may be on its way when an agent is told that nobody reads any more.
const MAX_LOST: usize = 16 << 20;

/// A standard stream of this process's, and what is to go there.
pub struct Sink {
    stream: Box<dyn AsFd>,
    at_once: usize,
    waiting: Vec<u8>,
    written: usize,
    closed: bool,
    /// Bytes that have come since.
    lost: usize,
}

impl Sink {
    /// Standard output.
    pub fn stdout() -> Self {
        Self::new(Box::new(io::stdout()))
    }

    /// Standard error.
    pub fn stderr() -> Self {
        Self::new(Box::new(io::stderr()))
    }

    fn new(stream: Box<dyn AsFd>) -> Self {
        let copy = stream.as_fd().try_clone_to_owned().map(File::from);
        let is_file = copy
            .and_then(|file| file.metadata())
            .is_ok_and(|found| found.is_file());
        Self {
            stream,
            at_once: if is_file { usize::MAX } else { AT_ONCE },
            waiting: Vec::new(),
            written: 0,
            closed: false,
            lost: 0,
        }
    }

    /// Adds bytes. If nobody reads them any more, they are dropped.
    ///
    /// # Errors
    /// They go on coming from an agent that has been told.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        if !self.closed {
            self.waiting.extend_from_slice(bytes);
            return Ok(());
        }
        self.lost = self.lost.saturating_add(bytes.len());
        if self.lost > MAX_LOST {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// To be waited for until it can be written to.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Writes as much as goes without waiting, once there is room; returns whether somebody still reads.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(&mut self) -> io::Result<bool> {
        let left = &self.waiting[self.written..];
        match write(&self.stream, &left[..left.len().min(self.at_once)]).map_err(io::Error::from) {
            Ok(count) => self.written += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => return Err(error),
        }
        if self.closed || self.written == self.waiting.len() {
            self.waiting.clear();
            self.written = 0;
        }
        Ok(!self.closed)
    }
}

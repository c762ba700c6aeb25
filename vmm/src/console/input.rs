//! What comes in on standard input and has not reached the guest yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use devices::serial::SerialPort;
use nix::errno::Errno;
use nix::unistd::read;

use super::escape::{Command, EscapeFilter};

/// As much is read at once; while any of it waits for the guest, nothing more is read.
const CHUNK: usize = 4096;

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// More may come.
    Open,
    /// The input has ended.
    Ended,
}

/// The way from standard input to the guest's serial port.
pub struct ConsoleInput {
    /// Set where a person types: only then are there keys for the VMM.
    keys: Option<EscapeFilter>,
    waiting: Vec<u8>,
    source: Source,
}

impl ConsoleInput {
    /// With `interactive` the VMM's own keys are taken out of what is read.
    pub fn new(interactive: bool) -> Self {
        Self {
            keys: interactive.then(EscapeFilter::default),
            waiting: Vec::new(),
            source: Source::Open,
        }
    }

    /// Whether to read more now: bytes that wait for the guest come first, except where a person types, whose
    /// keys for the VMM must get through even to a guest that does not listen.
    pub fn wants_more(&self) -> bool {
        self.source == Source::Open && (self.waiting.is_empty() || self.keys.is_some())
    }

    /// What is shown to who asks for the VMM's own keys.
    pub fn help(&self) -> &'static str {
        self.keys.as_ref().map_or("", EscapeFilter::help)
    }

    /// Reads once from `fd`, which must be readable, and returns a command if one was typed.
    pub fn read(&mut self, fd: BorrowedFd<'_>) -> io::Result<Option<Command>> {
        let mut chunk = [0; CHUNK];
        let len = match read(fd.as_fd(), &mut chunk) {
            Ok(len) => len,
            Err(Errno::EINTR | Errno::EAGAIN) => return Ok(None),
            Err(errno) => {
                self.source = Source::Ended;
                return Err(errno.into());
            }
        };
        if len == 0 {
            self.source = Source::Ended;
        }
        Ok(self.accept(&chunk[..len]))
    }

    fn accept(&mut self, bytes: &[u8]) -> Option<Command> {
        match &mut self.keys {
            // A person who types a page to a guest that does not listen has no use for all of it.
            Some(keys) if self.waiting.len() >= CHUNK => keys.filter(bytes, &mut Vec::new()),
            Some(keys) => keys.filter(bytes, &mut self.waiting),
            None => {
                self.waiting.extend_from_slice(bytes);
                None
            }
        }
    }

    /// Hands the guest as much as it takes.
    pub fn feed(&mut self, serial: &SerialPort) {
        let taken = serial.feed(&self.waiting);
        self.waiting.drain(..taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_input_is_taken_as_it_is_and_one_chunk_at_a_time() {
        let mut input = ConsoleInput::new(false);
        assert!(input.wants_more());
        assert_eq!(input.accept(b"\x01x"), None);
        assert_eq!(input.waiting, b"\x01x");
        assert!(!input.wants_more(), "what waits goes first");
    }

    #[test]
    fn typed_commands_get_through_to_a_deaf_guest() {
        let mut input = ConsoleInput::new(true);
        assert_eq!(input.accept(&[b'a'; CHUNK]), None);
        assert!(input.wants_more());
        assert_eq!(input.accept(b"more\x01x"), Some(Command::End));
        assert_eq!(
            input.waiting.len(),
            CHUNK,
            "a deaf guest does not make the VMM grow"
        );
    }

    #[test]
    fn the_end_of_the_input_is_no_error_and_for_good() {
        let (reader, writer) = io::pipe().unwrap();
        let mut input = ConsoleInput::new(false);
        drop(writer);
        assert_eq!(input.read(reader.as_fd()).unwrap(), None);
        assert!(!input.wants_more());
    }
}

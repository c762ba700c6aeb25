//! The guest's console output, on its way to standard output.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Standard output as the guest's console has it: unbuffered, and patient where another process has made the pipe or
/// terminal that they share non-blocking.
pub struct ConsoleOutput(File);

impl ConsoleOutput {
    /// Standard output, under a descriptor of its own.
    pub fn stdout() -> io::Result<Self> {
        let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self(descriptor.into()))
    }

    fn wait_for_room(&self) -> io::Result<()> {
        let mut file = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        poll(&mut file, PollTimeout::NONE)?;
        Ok(())
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for_room()?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::thread;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn nothing_is_lost_on_a_pipe_that_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n / 7) as u8).collect();
        let mut output = ConsoleOutput(OwnedFd::from(writer).into());
        let mut got = Vec::new();
        thread::scope(|scope| {
            let sent = &sent;
            scope.spawn(move || output.write_all(sent).unwrap());
            reader.read_to_end(&mut got).unwrap();
        });
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    }
}

//! What a guest has sent and a host program has not read yet, beyond what its socket holds.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, send};

use super::super::Chain;

/// Bytes to be sent. It takes memory only while there are some.
#[derive(Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that are still to be sent.
    pub fn len(&self) -> u32 {
        // At most what the guest has credit for.
        (self.bytes.len() - self.sent) as u32
    }

    /// Adds `len` bytes from `offset` on of what the driver wrote, which has that many.
    pub fn add_from(&mut self, chain: &Chain, offset: u32, len: u32) {
        self.forget_sent();
        let start = self.bytes.len();
        self.bytes.resize(start + len as usize, 0);
        chain.read(offset, &mut self.bytes[start..]);
    }

    /// Adds bytes of posada's own.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends what the socket takes; returns how much that was.
    pub fn flush(&mut self, socket: &UnixStream) -> io::Result<u32> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let count = match send(socket.as_raw_fd(), &self.bytes[self.sent..], flags) {
            Ok(count) => count,
            Err(error) if would_block(&error.into()) => 0,
            Err(error) => return Err(error.into()),
        };
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.clear();
        }
        Ok(count as u32)
    }

    /// Drops everything, and the memory that it took.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn forget_sent(&mut self) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
    }
}

/// Whether a call on a socket is to be tried again later.
pub fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

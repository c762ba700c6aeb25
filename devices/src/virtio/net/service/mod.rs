//! A service of the host's on a guest's network: what the guest sends to its address is answered here and goes no further.
//!
//! It lives on the worker of the network's queues and is heard by nobody but this guest. What it says waits here until the
//! guest has buffers for it.

mod stack;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use libc::iovec;

use super::frames::Frames;
use super::stream::append;
use super::{HEADER, pieces};
use stack::{LONGEST, START, Stack};

pub use stack::MAX_REQUEST;

/// Turns requests into responses, each on a TCP connection of its own.
pub trait Responder: Send + Sync {
    /// The response to a request, of which so much has come: at most [`MAX_REQUEST`] bytes. `None` if that is not all of it.
    fn respond(&self, request: &[u8]) -> Option<Vec<u8>>;
}

/// A service, and where the guest finds it.
#[derive(Clone)]
pub struct Service {
    /// Its address, whatever network the guest is in.
    pub address: Ipv4Addr,
    /// Its TCP port.
    pub port: u16,
    /// What answers.
    pub responder: Arc<dyn Responder>,
}

/// A network's frames, but for those that are a service's.
pub struct Served<F> {
    frames: F,
    stack: Stack,
    /// A frame for the service.
    frame: Vec<u8>,
}

impl<F> Served<F> {
    pub fn new(frames: F, service: &Service) -> Self {
        Self {
            frames,
            stack: Stack::new(service.clone()),
            frame: Vec::with_capacity(LONGEST),
        }
    }
}

impl<F: Frames> Served<F> {
    /// The service's next frame, if it is its turn: a frame of the network's that has begun to come is first.
    fn next(&self) -> Option<&[u8]> {
        self.stack.next().filter(|_| !self.frames.is_amid())
    }
}

impl<F: AsRawFd> AsRawFd for Served<F> {
    fn as_raw_fd(&self) -> RawFd {
        self.frames.as_raw_fd()
    }
}

impl<F: Frames> Frames for Served<F> {
    const GONE: &str = F::GONE;

    fn next_len(&mut self, largest: usize) -> io::Result<usize> {
        match self.next() {
            Some(frame) => Ok(HEADER + frame.len()),
            None => self.frames.next_len(largest),
        }
    }

    unsafe fn receive(&mut self, room: &[iovec]) -> io::Result<usize> {
        let Some(frame) = self.next() else {
            // SAFETY: the caller vouches for `room`.
            return unsafe { self.frames.receive(room) };
        };
        // §5.1.6.4.1: a header of zeros leaves nothing to the driver.
        // SAFETY: as above.
        let len = unsafe { write(room, 0, &[0; HEADER]) + write(room, HEADER, frame) };
        self.stack.forward();
        Ok(len)
    }

    unsafe fn send(&mut self, frame: &[iovec]) -> io::Result<()> {
        // SAFETY: the caller vouches for `frame`.
        unsafe { read(frame, START, &mut self.frame) };
        if !self.stack.is_addressed(&self.frame) {
            // SAFETY: as above.
            return unsafe { self.frames.send(frame) };
        }
        // What is left out of a longer one, no window of the service's has room for.
        // SAFETY: as above.
        unsafe { read(frame, LONGEST, &mut self.frame) };
        self.stack.take(&mut self.frame);
        Ok(())
    }

    fn is_readable(&self) -> bool {
        self.next().is_some() || self.frames.is_readable()
    }

    fn has_backlog(&self) -> bool {
        self.frames.has_backlog()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.frames.flush()
    }
}

/// Copies at most `most` bytes of a frame behind its header out of memory that others may be writing to.
///
/// # Safety
/// The buffers are readable ranges of memory that stays mapped during the call.
unsafe fn read(frame: &[iovec], most: usize, to: &mut Vec<u8>) {
    to.clear();
    for piece in pieces(frame, HEADER, most) {
        // SAFETY: a piece lies in `frame`, which the caller vouches for; bytes are copied and no reference to them is made.
        unsafe { append(to, piece) };
    }
}

/// Copies as much as there is room for to the buffers from `offset` on. Returns how much that was.
///
/// # Safety
/// The buffers are writable ranges of memory that stays mapped during the call.
unsafe fn write(room: &[iovec], offset: usize, data: &[u8]) -> usize {
    let mut written = 0;
    for piece in pieces(room, offset, data.len()) {
        let rest = &data[written..][..piece.iov_len];
        // SAFETY: a piece lies in `room`, which the caller vouches for, and no Rust reference to guest memory is made.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), piece.iov_base.cast(), rest.len()) };
        written += piece.iov_len;
    }
    written
}

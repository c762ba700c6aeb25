//! Where frames come from and go to on the host.

use std::io;
use std::os::fd::AsRawFd;

use libc::iovec;

use super::syscall;

/// A non-blocking source and sink of frames, each with a header of [`HEADER`](super::HEADER) bytes before it. Readable
/// when a frame has come, writable when one can go.
///
/// [`WouldBlock`](io::ErrorKind::WouldBlock) means later, with the same arguments as far as they have to do with frames.
pub trait Frames: AsRawFd + Send + Sized {
    /// What has happened when the host's end is gone, for the user.
    const GONE: &str;

    /// Bytes that the next frame takes with its header: `largest`, if that is not known before it is received.
    fn next_len(&mut self, largest: usize) -> io::Result<usize>;

    /// Receives a frame and its header. Returns how many bytes that were; of a frame that is longer than `room`, the
    /// rest is lost. The last field of the header, which only some drivers want, is left to the caller.
    ///
    /// # Safety
    /// The buffers lie in guest memory that stays mapped during the call, and together hold at least a header.
    unsafe fn receive(&mut self, room: &[iovec]) -> io::Result<usize>;

    /// Sends a frame, whose header comes before it.
    ///
    /// # Safety
    /// The buffers lie in guest memory that stays mapped during the call, and together hold at least a header.
    unsafe fn send(&mut self, frame: &[iovec]) -> io::Result<()>;

    /// Whether a part of a frame lies in the buffers that [`receive`](Self::receive) was given: it is to be called with the same
    /// ones, and nothing else may be written there, until the rest has come.
    fn is_amid(&self) -> bool {
        false
    }

    /// Whether a frame may have come.
    fn is_readable(&self) -> bool {
        syscall::is_readable(self)
    }

    /// Whether a part of a frame that was sent has still to go.
    fn has_backlog(&self) -> bool {
        false
    }

    /// Lets go what [`has_backlog`](Self::has_backlog) tells of.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

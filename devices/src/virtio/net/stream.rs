//! Frames over a stream socket, each after its length: 32 bits, big-endian, as QEMU's socket networks have it and passt
//! speaks it. There are no headers of virtio-net on it, so there are no offloads either.
//!
//! A frame goes straight between socket and guest memory. The call that receives one takes the length of the next
//! along, so that each costs one call. What a full socket does not take of a frame is kept here.

use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::{c_void, iovec};

use super::frames::Frames;
use super::{HEADER, MAX_FRAME, MIN_FRAME, pieces, syscall};

const PREFIX: usize = size_of::<u32>();

/// The host's end of a stream of frames, and where in the stream the workers have come to.
pub struct FrameSocket {
    socket: UnixStream,
    position: Mutex<Position>,
}

impl FrameSocket {
    /// Frames over this socket.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            position: Mutex::default(),
        })
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the stream, which may be the middle of a frame.
#[derive(Default)]
struct Position {
    /// The length of the next frame, as far as it has come.
    prefix: [u8; PREFIX],
    prefix_got: usize,
    /// The length of the frame that is being received, and how much of it has come.
    frame: Option<usize>,
    got: usize,
    /// What is still to come of a frame that nobody wants.
    skip: usize,
    /// What is still to go of a frame that counts as sent.
    unsent: Vec<u8>,
}

/// The stream in the hands of a worker. When that ends, the position goes back to where the next one finds it.
pub struct FrameStream {
    end: Arc<FrameSocket>,
    at: Position,
    /// The arguments of one call.
    buffers: Vec<iovec>,
}

// SAFETY: the pointers in `buffers` are used only during the call that put them there; all else is Send by itself.
unsafe impl Send for FrameStream {}

impl FrameStream {
    /// Goes on where the last one was. One at a time.
    pub fn of(end: &Arc<FrameSocket>) -> Self {
        let mut at = mem::take(&mut *end.position());
        at.unsent.reserve(PREFIX + MAX_FRAME);
        Self {
            end: end.clone(),
            at,
            buffers: Vec::with_capacity(libc::UIO_MAXIOV as usize + 1),
        }
    }

    fn skip(&mut self) -> io::Result<()> {
        let mut nowhere = [0; 4096];
        while self.at.skip > 0 {
            let len = self.at.skip.min(nowhere.len());
            self.at.skip -= ended((&self.end.socket).read(&mut nowhere[..len])?)?;
        }
        Ok(())
    }

    fn read_prefix(&mut self) -> io::Result<()> {
        while self.at.prefix_got < PREFIX {
            let rest = &mut self.at.prefix[self.at.prefix_got..];
            self.at.prefix_got += ended((&self.end.socket).read(rest)?)?;
        }
        Ok(())
    }

    /// Receives what is still missing of the first `take` bytes of a frame of `len`, and if that is all of it, the next length.
    unsafe fn read_frame(&mut self, room: &[iovec], take: usize, len: usize) -> io::Result<()> {
        while self.at.got < take {
            self.buffers.clear();
            self.buffers
                .extend(pieces(room, HEADER + self.at.got, take - self.at.got));
            if take == len {
                self.buffers.push(iovec {
                    iov_base: self.at.prefix.as_mut_ptr().cast(),
                    iov_len: PREFIX,
                });
            }
            // SAFETY: the caller vouches for `room`, and `prefix` is ours.
            let got = ended(unsafe { syscall::read(&self.end.socket, &self.buffers) }?)?;
            let of_frame = got.min(take - self.at.got);
            self.at.got += of_frame;
            self.at.prefix_got = got - of_frame;
        }
        Ok(())
    }
}

fn ended(len: usize) -> io::Result<usize> {
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(len)
}

impl Drop for FrameStream {
    fn drop(&mut self) {
        // The memory that a frame was being received into goes with the queue.
        if let Some(len) = self.at.frame.take() {
            self.at.skip = len - self.at.got;
        }
        *self.end.position() = mem::take(&mut self.at);
    }
}

impl AsRawFd for FrameStream {
    fn as_raw_fd(&self) -> RawFd {
        self.end.socket.as_raw_fd()
    }
}

impl Frames for FrameStream {
    const GONE: &str = "passt has ended";

    fn next_len(&mut self, _largest: usize) -> io::Result<usize> {
        if let Some(len) = self.at.frame {
            return Ok(HEADER + len);
        }
        self.skip()?;
        self.read_prefix()?;
        let len = u32::from_be_bytes(self.at.prefix) as usize;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            let what = format!("a frame of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        (self.at.prefix_got, self.at.got) = (0, 0);
        self.at.frame = Some(len);
        Ok(HEADER + len)
    }

    unsafe fn receive(&mut self, room: &[iovec]) -> io::Result<usize> {
        let len = self.next_len(0)? - HEADER;
        let capacity: usize = room.iter().map(|buffer| buffer.iov_len).sum();
        let take = len.min(capacity.saturating_sub(HEADER));
        // SAFETY: the caller vouches for `room`.
        unsafe { self.read_frame(room, take, len) }?;
        for piece in pieces(room, 0, HEADER) {
            // SAFETY: a piece lies in `room`, which the caller vouches for.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
        self.at.frame = None;
        self.at.skip = len - take;
        Ok(HEADER + take)
    }

    unsafe fn send(&mut self, frame: &[iovec]) -> io::Result<()> {
        self.flush()?;
        let len = frame.iter().map(|buffer| buffer.iov_len).sum::<usize>() - HEADER;
        // The frames that come here are at most MAX_FRAME long.
        let mut prefix = (len as u32).to_be_bytes();
        self.buffers.clear();
        self.buffers.push(iovec {
            iov_base: prefix.as_mut_ptr().cast(),
            iov_len: PREFIX,
        });
        self.buffers.extend(pieces(frame, HEADER, len));
        // SAFETY: the caller vouches for `frame`, and `prefix` lives until the end of this function.
        let sent = unsafe { send(&self.end.socket, &self.buffers) }?;
        for piece in pieces(&self.buffers, sent, PREFIX + len - sent) {
            // SAFETY: as above. The bytes may change under the copy, but no reference to them is kept: they are copied one by one.
            unsafe { append(&mut self.at.unsent, piece) };
        }
        Ok(())
    }

    fn is_amid(&self) -> bool {
        self.at.frame.is_some() && self.at.got > 0
    }

    fn has_backlog(&self) -> bool {
        !self.at.unsent.is_empty()
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.at.unsent.is_empty() {
            let all = [iovec {
                iov_base: self.at.unsent.as_mut_ptr().cast(),
                iov_len: self.at.unsent.len(),
            }];
            // SAFETY: the buffer is `unsent`, as a whole.
            let sent = unsafe { send(&self.end.socket, &all) }?;
            self.at.unsent.drain(..sent);
        }
        Ok(())
    }
}

/// writev(2) that raises no SIGPIPE.
unsafe fn send(socket: &UnixStream, buffers: &[iovec]) -> io::Result<usize> {
    // SAFETY: a msghdr is plain data, for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = buffers.as_ptr().cast_mut();
    message.msg_iovlen = buffers.len();
    // SAFETY: the caller vouches for the buffers; sendmsg does not write to them, nor to the list of them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Appends a range of memory that others may be writing to.
///
/// # Safety
/// It stays mapped during the call.
pub(super) unsafe fn append(to: &mut Vec<u8>, from: iovec) {
    to.reserve(from.iov_len);
    let end = to.spare_capacity_mut().as_mut_ptr().cast::<c_void>();
    // SAFETY: the caller vouches for `from`, and there is room for as many bytes behind the end of `to`, which are then
    // initialized.
    unsafe {
        std::ptr::copy_nonoverlapping(from.iov_base.cast_const(), end, from.iov_len);
        to.set_len(to.len() + from.iov_len);
    }
}

//! Moves a stream's bytes straight between a Unix socket and the buffers of a chain, without ever waiting.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use libc::{MSG_DONTWAIT, MSG_NOSIGNAL, iovec, msghdr};

use super::super::Chain;

/// Buffers moved by one system call. Linux has two in a packet; what is left of more is moved by the next call.
const MAX_PIECES: usize = 64;

type Pieces = [iovec; MAX_PIECES];
const NO_PIECES: Pieces = [iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
}; MAX_PIECES];

/// Sends up to `len` bytes, from `offset` on of what the driver wrote; returns how many the socket took.
pub fn send(socket: &UnixStream, chain: &Chain, offset: u32, len: u32) -> io::Result<u32> {
    let mut pieces = NO_PIECES;
    let message = message(&mut pieces, chain.readable(), offset, len);
    // SAFETY: the pieces are parts of the chain's buffers: guest memory, which the queue keeps mapped and no Rust reference
    // is made to. The kernel only reads them, and the message.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) };
    count(sent)
}

/// Receives up to `len` bytes to `offset` of what the driver wants written; returns how many came, 0 at the stream's end.
pub fn receive(socket: &UnixStream, chain: &Chain, offset: u32, len: u32) -> io::Result<u32> {
    let mut pieces = NO_PIECES;
    let mut message = message(&mut pieces, chain.writable(), offset, len);
    // SAFETY: as in `send`; these buffers are for the device to write.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, MSG_DONTWAIT) };
    count(received)
}

fn count(result: isize) -> io::Result<u32> {
    // A chain has less than 4 GiB.
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A message of `len` bytes from `offset` on of `buffers`, or of those that the first [`MAX_PIECES`] have. It points to
/// `pieces`.
fn message(pieces: &mut Pieces, buffers: &[iovec], offset: u32, len: u32) -> msghdr {
    let (mut skip, mut left, mut count) = (offset as usize, len as usize, 0);
    for buffer in buffers {
        if left == 0 || count == MAX_PIECES {
            break;
        }
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let piece = (buffer.iov_len - skip).min(left);
        pieces[count] = iovec {
            iov_base: buffer.iov_base.wrapping_byte_add(skip),
            iov_len: piece,
        };
        (skip, left, count) = (0, left - piece, count + 1);
    }
    // SAFETY: a message of zeros has no address, no buffers and no control data.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (pieces.as_mut_ptr(), count);
    message
}

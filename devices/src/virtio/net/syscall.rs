//! The system calls between a file and guest memory.

use std::io;
use std::os::fd::AsRawFd;

use libc::iovec;

/// Reads into these buffers.
///
/// # Safety
/// They are writable ranges of memory that stays mapped during the call and that no Rust reference is made to: guest memory, as walked by
/// a [`Chain`](crate::virtio::Chain) of a queue that lives.
#[inline]
pub unsafe fn read(file: &impl AsRawFd, buffers: &[iovec]) -> io::Result<usize> {
    let count = i32::try_from(buffers.len()).unwrap_or(i32::MAX);
    // SAFETY: the caller vouches for the buffers, of which there are `count`. The kernel refuses more than IOV_MAX.
    returned(unsafe { libc::readv(file.as_raw_fd(), buffers.as_ptr(), count) })
}

/// Writes these buffers.
///
/// # Safety
/// They are readable ranges of memory that stays mapped during the call.
#[inline]
pub unsafe fn write(file: &impl AsRawFd, buffers: &[iovec]) -> io::Result<usize> {
    let count = i32::try_from(buffers.len()).unwrap_or(i32::MAX);
    // SAFETY: as in `read`.
    returned(unsafe { libc::writev(file.as_raw_fd(), buffers.as_ptr(), count) })
}

/// Whether a read of the file would find something, be it its end.
#[inline]
pub fn is_readable(file: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: poll reads and writes one pollfd, and does not wait.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}

fn returned(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

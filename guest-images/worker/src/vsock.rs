//! Stream sockets of the family AF_VSOCK, which the standard library does not know: vsock(7).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Connects to a port of the host's.
pub fn connect(port: u32) -> io::Result<File> {
    let socket = socket()?;
    let (address, len) = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address is a sockaddr_vm of the size that is given.
    succeeded(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket.into())
}

/// A socket that listens at a port of the guest's.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    const BACKLOG: libc::c_int = 16;
    let socket = socket()?;
    let (address, len) = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: as above.
    succeeded(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: listen takes integers.
    succeeded(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// The next stream of a socket that listens.
pub fn accept(listener: &OwnedFd) -> io::Result<File> {
    // SAFETY: accept4 is told that nobody wants the address, and returns a new descriptor or -1.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC,
        )
    };
    owned(fd).map(File::from)
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes integers and returns a new descriptor or -1.
    owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

fn address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    // SAFETY: zeros are a valid sockaddr_vm.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    (address, size_of::<libc::sockaddr_vm>() as libc::socklen_t)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    match fd {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the descriptor is new and nobody else's.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

fn succeeded(done: libc::c_int) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! How posada comes to the process that serves a guest's memory, and what that is told.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use serde::Serialize;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::ServedError;
use crate::memory::GuestMemory;
use crate::snapshot::ranges::PAGE_SIZE;

/// Where a region of guest memory is, as Firecracker has it.
#[derive(Serialize)]
pub(super) struct Mapping {
    /// In posada's address space, in which faults are told of.
    base_host_virt_addr: u64,
    pub(super) size: u64,
    /// In the snapshot's memory file.
    pub(super) offset: u64,
    page_size: u64,
    /// The same, in bytes in spite of its name, for handlers that know only this one.
    page_size_kib: u64,
}

/// Where the regions of `memory` are.
pub(super) fn mappings(memory: &GuestMemory) -> Vec<Mapping> {
    let regions = memory.iter().scan(0, |next, region| {
        let offset = *next;
        *next += region.len();
        Some(Mapping {
            base_host_virt_addr: region.as_ptr() as u64,
            size: region.len(),
            offset,
            page_size: PAGE_SIZE,
            page_size_kib: PAGE_SIZE,
        })
    });
    regions.collect()
}

/// Connects to the process that listens at `path`. One that does not accept, and whose queue is full, is waited for no longer than
/// `limit`, which also is what a message to it may take.
pub(super) fn connect(path: &Path, limit: Duration) -> Result<UnixStream, ServedError> {
    let unreachable = |source| ServedError::Unreachable {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(unreachable)?.file_type().is_socket() {
        return Err(ServedError::NotASocket(path.to_owned()));
    }
    match connect_within(path, limit) {
        // SO_SNDTIMEO (unix(7), socket(7)) has run out.
        Err(Errno::EAGAIN) => Err(ServedError::Mute {
            path: path.to_owned(),
            limit,
        }),
        result => result.map_err(|errno| unreachable(errno.into())),
    }
}

fn connect_within(path: &Path, limit: Duration) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let limit = TimeVal::new(limit.as_secs() as i64, limit.subsec_micros().into());
    socket::setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    let address = UnixAddr::new(path)?;
    loop {
        match socket::connect(socket.as_raw_fd(), &address) {
            Err(Errno::EINTR) => {}
            result => return result.map(|()| socket.into()),
        }
    }
}

/// The process that listened at the other end of `connection`.
pub(super) fn peer(connection: &UnixStream) -> Option<OwnedFd> {
    let peer = socket::getsockopt(connection, sockopt::PeerCredentials).ok()?;
    if peer.pid() <= 0 {
        return None;
    }
    // SAFETY: takes numbers and no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, peer.pid(), 0) };
    // SAFETY: where it is none, the kernel has just opened it for this process.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

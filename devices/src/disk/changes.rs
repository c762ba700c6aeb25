//! How the kernel tells that an image may have another size. Until then it costs nothing.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// A descriptor that becomes readable then.
pub(super) enum Changes {
    /// Somebody else who had opened the file for writing has closed it.
    Closes(Inotify),
    /// The kernel has said something new about the device: a "uevent" (Linux, lib/kobject_uevent.c), as udev hears them.
    Uevents(OwnedFd),
}

impl Changes {
    /// Of a regular file, which is at `path`. The kernel tells of a close by anybody but this process, which never closes it.
    pub(super) fn of_file(file: &File, path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        inotify
            .add_watch(same.as_str(), AddWatchFlags::IN_CLOSE_WRITE)
            // There may be no procfs in a jail. At worst, another file has taken the path, and its size is asked for in vain.
            .or_else(|_| inotify.add_watch(path, AddWatchFlags::IN_CLOSE_WRITE))?;
        Ok(Self::Closes(inotify))
    }

    /// Of a block device. The kernel tells nothing in the network namespaces of other user namespaces than the first, and none
    /// of these calls fails there.
    pub(super) fn of_device(file: &File) -> io::Result<Self> {
        /// The group to which the kernel sends; udev sends to another one.
        const KERNEL: u32 = 1;
        let message = message(&sysfs_path(file)?);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        // Before anything can come: other devices' messages, and KVM's for each guest, are not to wake anybody.
        accept_only(&socket, &message)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Self::Uevents(socket))
    }

    /// Takes note of the changes so far.
    pub(super) fn clear(&self) {
        match self {
            // Fails only when there is nothing to read.
            Self::Closes(inotify) => drop(inotify.read_events()),
            // What the message says further does not matter, and is cut off.
            Self::Uevents(socket) => while recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).is_ok() {},
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Closes(inotify) => inotify.as_fd(),
            Self::Uevents(socket) => socket.as_fd(),
        }
    }
}

/// Where sysfs has the device, from its root on: `/devices/virtual/block/loop0`.
fn sysfs_path(device: &File) -> io::Result<PathBuf> {
    const ROOT: &str = "/sys";
    let number = device.metadata()?.rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let path = fs::canonicalize(format!("{ROOT}/dev/block/{major}:{minor}"))?;
    let path = path.strip_prefix(ROOT).map_err(io::Error::other)?;
    Ok(Path::new("/").join(path))
}

/// How the kernel's message about a change of this device begins.
fn message(device: &Path) -> Vec<u8> {
    let device = device.as_os_str().as_encoded_bytes();
    [b"change@", device, b"\0"].concat()
}

/// Has the socket drop every message that does not begin so.
fn accept_only(socket: &OwnedFd, beginning: &[u8]) -> io::Result<()> {
    let mut filter = filter(beginning);
    let program = libc::sock_fprog {
        len: filter.len().try_into().map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the option is a sock_fprog of the size that is given, whose `filter` has as many instructions as its `len` says; the
    // kernel copies them.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A classic BPF program (Linux, Documentation/networking/filter.rst) that takes what begins so, byte for byte. A load beyond the end
/// of a message drops it.
fn filter(beginning: &[u8]) -> Vec<libc::sock_filter> {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const SKIP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const DROP: u32 = 0;
    const TAKE_ALL: u32 = u32::MAX;
    let instruction = |code: u32, jt, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    let compare = |(at, byte): (u32, &u8)| {
        [
            instruction(LOAD_BYTE, 0, at),
            instruction(SKIP_IF_EQUAL, 1, (*byte).into()),
            instruction(RETURN, 0, DROP),
        ]
    };
    let compares = (0..).zip(beginning).flat_map(compare);
    compares.chain([instruction(RETURN, 0, TAKE_ALL)]).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn only_messages_about_the_device_are_taken() {
        let (there, here) = UnixDatagram::pair().unwrap();
        let here = OwnedFd::from(here);
        accept_only(&here, &message(Path::new("/devices/virtual/block/loop1"))).unwrap();
        let wanted = b"change@/devices/virtual/block/loop1\0ACTION=change\0";
        let others: [&[u8]; 5] = [
            b"change@/devices/virtual/block/loop10\0ACTION=change\0",
            b"change@/devices/virtual/block/loop2\0ACTION=change\0",
            b"remove@/devices/virtual/block/loop1\0ACTION=remove\0",
            b"change@/devices/virtual/block/loop1",
            b"c",
        ];
        for message in others {
            there.send(message).unwrap();
        }
        there.send(wanted).unwrap();
        let here = UnixDatagram::from(here);
        let mut bytes = [0; 100];
        let count = here.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], wanted);
        here.set_nonblocking(true).unwrap();
        assert!(here.recv(&mut bytes).is_err(), "nothing else has come");
    }
}

//! A tap of a network namespace of its own, both of its ends without a VM: the file, and a packet socket on the interface.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

use posada_tests::network::EXPERIMENTAL;

/// The tap's name.
pub const NAME: &str = "bench0";
/// `struct virtio_net_hdr_v1` (virtio 1.3 §5.1.6), which precedes each frame in the file.
pub const HEADER: usize = 12;

/// Moves the calling thread, and what it starts, into a new network namespace with a tap in it.
///
/// # Errors
/// Without the privilege to, or without iproute2.
pub fn enter_namespace() -> io::Result<()> {
    // SAFETY: it concerns the calling thread's view of the network alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // IPv6 would send frames of its own, which the floor's echo takes for pings. A kernel without it has no such file.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    for command in [
        format!("tuntap add {NAME} mode tap vnet_hdr"),
        format!("link set {NAME} up"),
    ] {
        let status = Command::new("ip").args(command.split(' ')).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ip {command} failed")));
        }
    }
    Ok(())
}

/// The file that stands for the tap, as posada opens it.
pub struct Tap(File);

impl Tap {
    /// Attaches to the tap.
    pub fn attach() -> Self {
        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .expect("the host has taps");
        // SAFETY: zero is a value of every field, and the name has a NUL behind it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let header = HEADER as libc::c_int;
        // SAFETY: the first takes an ifreq, the second an int; both live through the calls.
        let done = unsafe {
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) == 0
                && libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) == 0
        };
        assert!(done, "the tap cannot be attached: {}", io::Error::last_os_error());
        Self(tap)
    }

    /// Sends a frame, its header before it, to the host.
    pub fn write(&mut self, frame: &[u8]) {
        let written = self.0.write(frame).expect("the tap takes frames");
        assert_eq!(written, frame.len());
    }

    /// Waits for a frame from the host; returns its length with the header.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        self.0.read(into).expect("the tap gives frames")
    }
}

/// A packet socket on the tap's interface, for frames of [`EXPERIMENTAL`].
pub struct Packets(OwnedFd);

impl Packets {
    /// Opens it.
    pub fn open() -> Self {
        let protocol = libc::c_int::from(EXPERIMENTAL.to_be());
        // SAFETY: it takes three integers and returns a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        assert!(fd >= 0, "no packet socket: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.bind();
        let patience = libc::timeval {
            tv_sec: Duration::from_secs(5).as_secs() as libc::time_t,
            tv_usec: 0,
        };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience);
        // Frames go to the tap at once, past the queueing discipline.
        socket.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32);
        socket
    }

    fn bind(&self) {
        let name = std::ffi::CString::new(NAME).expect("the name has no NUL");
        // SAFETY: zero is a value of every field; the name is a C string.
        let (mut address, index) = unsafe {
            (
                std::mem::zeroed::<libc::sockaddr_ll>(),
                libc::if_nametoindex(name.as_ptr()),
            )
        };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EXPERIMENTAL.to_be();
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives through the call and is as long as is said.
        let bound = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "bind: {}", io::Error::last_os_error());
    }

    fn set<T>(&self, level: i32, option: i32, value: &T) {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: the value lives through the call and is as long as is said.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        assert_eq!(set, 0, "setsockopt: {}", io::Error::last_os_error());
    }

    /// Sends a frame; `false` if the tap has no room for it now.
    pub fn send(&self, frame: &[u8]) -> bool {
        // SAFETY: the frame lives through the call and is as long as is said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        sent == frame.len() as isize
    }

    /// Waits for a frame from the tap; returns its length.
    pub fn receive(&self, into: &mut [u8]) -> usize {
        // SAFETY: the buffer lives through the call and is as long as is said.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
        usize::try_from(got).unwrap_or_else(|_| panic!("no frame came: {}", io::Error::last_os_error()))
    }
}

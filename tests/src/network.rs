//! A network namespace for a test, with taps in it and raw sockets on them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use crate::posada;

/// How long a frame may take.
const DEADLINE: Duration = Duration::from_secs(60);
/// The protocol for experiments (IEEE Std 802) that the bare guest speaks.
pub const EXPERIMENTAL: u16 = 0x88b5;
/// Bytes of a frame's addresses and protocol.
pub const FRAME_HEADER: usize = 14;

/// Puts this test's thread, and what it starts from now on, into a network namespace of its own, with nothing but a loopback
/// interface. Its kernel sends nothing by itself, so that frames can be counted.
///
/// # Panics
/// If the test does not run as root.
pub fn isolate() {
    // Cargo may build it first, and then wants the network that there is.
    posada::binary();
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!("this test needs root, as it makes a network namespace: {error}");
    }
    ip("link set lo up");
    // /proc/sys/net shows the namespace of whoever opens it.
    for which in ["all", "default"] {
        let setting = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        // A kernel without IPv6 has no such file.
        let _ = fs::write(setting, "1");
    }
}

/// [Isolates](isolate) this test and gives it the tap `t0`, on which the host is 10.9.0.1.
///
/// # Panics
/// As [`isolate`].
pub fn isolate_with_tap() {
    isolate();
    make_tap("t0");
    ip("address add 10.9.0.1/24 dev t0");
}

/// `ip` with these arguments.
#[track_caller]
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("ip runs (Debian's package iproute2)");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {messages}");
}

/// Whether this namespace has an interface of this name.
pub fn has_interface(name: &str) -> bool {
    interface_index(name) != 0
}

/// How many interfaces this namespace has.
pub fn interfaces() -> usize {
    const HEADINGS: usize = 2;
    let list = fs::read_to_string("/proc/thread-self/net/dev").expect("the kernel tells of interfaces");
    list.lines().skip(HEADINGS).count()
}

fn interface_index(name: &str) -> u32 {
    let name = CString::new(name).expect("a name has no NUL");
    // SAFETY: if_nametoindex reads a string that ends in NUL.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Makes a tap that is up.
pub fn make_tap(name: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("link set {name} up"));
}

/// A raw socket on an interface: frames of the experimental protocol, as its wire has them.
pub struct Wire(OwnedFd);

impl Wire {
    /// Listens and sends on the interface `name`.
    pub fn on(name: &str) -> Self {
        // SAFETY: socket takes integers and returns a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "a raw socket: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and nobody else's.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let size: libc::c_int = 64 << 20;
        // SAFETY: the option is an int, which lives until the call returns.
        unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                size_of_val(&size) as u32,
            )
        };
        // SAFETY: zeros are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EXPERIMENTAL.to_be();
        address.sll_ifindex = interface_index(name) as i32;
        // SAFETY: the address is a sockaddr_ll of the size that is given.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
        assert_eq!(bound, 0, "bind to {name}: {}", io::Error::last_os_error());
        socket
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        let fd = self.0.as_raw_fd();
        loop {
            // SAFETY: send reads as many bytes as `frame` has.
            let sent = unsafe { libc::send(fd, frame.as_ptr().cast(), frame.len(), 0) };
            if sent == frame.len() as isize {
                return;
            }
            let error = io::Error::last_os_error();
            // The interface's queue is full.
            assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
            std::thread::yield_now();
        }
    }

    /// The next frame that another has sent.
    ///
    /// # Panics
    /// If none comes in time.
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        let until = Instant::now() + DEADLINE;
        let mut frame = vec![0; 70_000];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(left).expect("a minute fits"));
            assert_eq!(ready, Ok(1), "no frame came in time");
            // SAFETY: zeros are a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut len = size_of_val(&from) as u32;
            let fd = self.0.as_raw_fd();
            let (data, from_at) = (frame.as_mut_ptr().cast(), (&raw mut from).cast());
            // SAFETY: recvfrom writes at most as many bytes as it is told that `frame` and `from` have.
            let got = unsafe { libc::recvfrom(fd, data, frame.len(), 0, from_at, &raw mut len) };
            assert!(got >= 0, "receive: {}", io::Error::last_os_error());
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                frame.truncate(got as usize);
                return frame;
            }
        }
    }
}

/// A frame of the experimental protocol to everybody, of `len` bytes.
pub fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(EXPERIMENTAL.to_be_bytes());
    frame.extend((FRAME_HEADER..len).map(|n| n as u8));
    frame
}

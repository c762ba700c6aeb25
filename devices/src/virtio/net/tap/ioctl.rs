//! The kernel's calls on taps and on network interfaces (Linux, Documentation/networking/tuntap.rst, netdevice(7)).

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::ifreq;

/// The name of a network interface as the kernel has it.
#[derive(Clone, Copy)]
pub struct InterfaceName([c_char; libc::IFNAMSIZ]);

impl InterfaceName {
    /// `None` for a name of more bytes than the kernel takes, of none, or with a NUL.
    pub fn new(name: &str) -> Option<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return None;
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        Some(Self(bytes))
    }

    /// Whether this network namespace has an interface of this name.
    pub fn exists(&self) -> bool {
        // SAFETY: the last byte is NUL, as the name is shorter than the array.
        let name = unsafe { CStr::from_ptr(self.0.as_ptr()) };
        // SAFETY: if_nametoindex reads a string that ends in NUL.
        unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
    }

    fn request(&self) -> ifreq {
        // SAFETY: an ifreq is an array of bytes and a union of plain data, for which zeros are valid.
        let mut request: ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.0;
        request
    }
}

/// TUNSETIFF: makes the open file a queue of the interface `name`, which the kernel creates if it is not there.
pub fn attach(file: &File, name: &InterfaceName, flags: c_int) -> io::Result<()> {
    let mut request = name.request();
    // All flags of TUNSETIFF fit 16 bits; IFF_VNET_HDR and the like do not use the sign.
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// TUNSETQUEUE: turns one queue of a tap with several on or off.
pub fn set_queue(file: &File, on: bool) -> io::Result<()> {
    // SAFETY: zeros are a valid ifreq, see above.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    let flag = if on {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    request.ifr_ifru.ifru_flags = flag as i16;
    // SAFETY: TUNSETQUEUE reads an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// TUNSETVNETHDRSZ: bytes of the header before each frame.
pub fn set_header_size(file: &File, bytes: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// TUNSETOFFLOAD: what whoever reads the tap can make of a frame by itself: TUN_F_*.
pub fn set_offloads(file: &File, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
}

/// Sets how many bytes a frame of the interface carries.
pub fn set_mtu(name: &InterfaceName, mtu: u16) -> io::Result<()> {
    let mut request = name.request();
    request.ifr_ifru.ifru_mtu = mtu.into();
    on_interface(libc::SIOCSIFMTU, &mut request)
}

/// Whether the interface is up, which is up to whoever administers it.
pub fn is_up(name: &InterfaceName) -> io::Result<bool> {
    Ok(flags(name)? & libc::IFF_UP as i16 != 0)
}

/// `ip link set NAME up`.
pub fn set_up(name: &InterfaceName) -> io::Result<()> {
    let mut request = name.request();
    request.ifr_ifru.ifru_flags = flags(name)? | libc::IFF_UP as i16;
    on_interface(libc::SIOCSIFFLAGS, &mut request)
}

fn flags(name: &InterfaceName) -> io::Result<i16> {
    let mut request = name.request();
    on_interface(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled this field, which any bytes are valid for.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// Calls for an interface go to any socket (netdevice(7)).
fn on_interface(call: c_ulong, request: &mut ifreq) -> io::Result<()> {
    // SAFETY: socket takes integers and returns a new descriptor or -1.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: each of the SIOC calls above reads or writes an ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call, request) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

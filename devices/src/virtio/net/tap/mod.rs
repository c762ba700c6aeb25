//! The host's end of a network on a tap: each open file is one of its queues, and each read or write a frame with the
//! header of virtio-net before it (§5.1.6), which the guest and the kernel's tap driver share.

mod holder;
mod ioctl;

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::iovec;
use thiserror::Error;
use tracing::{info, warn};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};

use super::frames::Frames;
use super::{HEADER, syscall};
use ioctl::InterfaceName;

const DEVICE: &str = "/dev/net/tun";
/// What the guest's receiver can do with a frame, in virtio's terms and the tap's.
const OFFLOADS: [(u32, c_uint); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];
/// The kernel knows the two of these only together, and only since Linux 6.2.
const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Why a tap could not be opened.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has no such name.
    #[error("'{0}' is no name of a tap: use 1 to 15 characters")]
    Name(String),
    /// The kernel has no taps, or posada may not use them.
    #[error("tap '{name}': cannot open {DEVICE}: {source}; {remedy}", remedy = open_remedy(source))]
    Open {
        /// The tap.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// There is no such tap and posada may not make one.
    #[error(
        "there is no tap '{0}' and creating one is not permitted: as root, run 'ip tuntap add {0} mode tap user USER && ip link set {0} up'"
    )]
    Missing(String),
    /// The tap belongs to another user.
    #[error(
        "tap '{0}' may not be used: it belongs to another user; as root, make one with 'ip tuntap add NAME mode tap user USER'"
    )]
    Foreign(String),
    /// There is an interface of that name, and it is something else.
    #[error("'{0}' is a network interface but no tap; name a tap, or one that does not exist yet")]
    NotATap(String),
    /// The tap has one queue, the guest wants several.
    #[error(
        "tap '{0}' has a single queue: make it with 'ip tuntap add {0} mode tap multi_queue', or leave out queues="
    )]
    SingleQueue(String),
    /// Somebody else has it open.
    #[error("tap '{name}' is in use{}; name another one", .holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default())]
    Busy {
        /// The tap.
        name: String,
        /// Process id and name, where /proc tells.
        holder: Option<String>,
    },
    /// The kernel refused something else.
    #[error("tap '{name}': cannot {what}: {source}")]
    Refused {
        /// The tap.
        name: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn open_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "run posada as root or give your user access to it",
        _ => "the host's kernel needs the module 'tun' (modprobe tun)",
    }
}

/// A tap, with a queue for each pair of the guest's.
pub struct Tap {
    queues: Vec<Arc<TapQueue>>,
    knows_uso: bool,
}

/// One queue of a tap.
pub struct TapQueue {
    file: File,
    enabled: AtomicBool,
    ioctls: Ioctls,
}

/// What a queue's file is told while it is in use.
#[derive(Clone, Copy)]
struct Ioctls {
    set_offloads: fn(&File, c_uint) -> io::Result<()>,
    set_queue: fn(&File, bool) -> io::Result<()>,
}

/// The tap driver's.
const TAP: Ioctls = Ioctls {
    set_offloads: ioctl::set_offloads,
    set_queue: ioctl::set_queue,
};

impl Tap {
    /// Opens the tap `name`, with several queues if `queues` is more than 1, and creates it if it is not there; a new
    /// one is up and has the `mtu`, if there is one, and goes when it is closed.
    ///
    /// # Errors
    /// Each says whose name it is about, why it failed and what to do.
    pub fn open(name: &str, queues: u16, mtu: Option<u16>) -> Result<Self, TapError> {
        let interface = InterfaceName::new(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let exists = interface.exists();
        let queues = attach(name, &interface, queues, exists)?;
        let refused = |what| {
            move |source| TapError::Refused {
                name: name.to_owned(),
                what,
                source,
            }
        };
        for queue in &queues {
            ioctl::set_header_size(&queue.file, HEADER as c_int)
                .map_err(refused("set the size of its header"))?;
        }
        if !exists {
            info!("tap '{name}' did not exist and was created; it goes when the guest ends");
            if let Some(mtu) = mtu {
                ioctl::set_mtu(&interface, mtu).map_err(refused("set its MTU"))?;
            }
            ioctl::set_up(&interface).map_err(refused("set it up"))?;
        } else if !ioctl::is_up(&interface).map_err(refused("ask whether it is up"))? {
            warn!("tap '{name}' is down: no frame passes it until 'ip link set {name} up'");
        }
        let knows_uso = ioctl::set_offloads(&queues[0].file, libc::TUN_F_CSUM | USO).is_ok();
        Ok(Self {
            queues: queues.into_iter().map(Arc::new).collect(),
            knows_uso,
        })
    }

    /// A stand-in for tests: sockets that keep frames apart and do not wait, which take any offload and are never off.
    #[cfg(any(test, feature = "testing"))]
    pub fn on_sockets(sockets: impl IntoIterator<Item = std::os::fd::OwnedFd>) -> Self {
        let queue = |socket: std::os::fd::OwnedFd| TapQueue {
            file: socket.into(),
            enabled: AtomicBool::new(true),
            ioctls: Ioctls {
                set_offloads: |_, _| Ok(()),
                set_queue: |_, _| Ok(()),
            },
        };
        Self {
            queues: sockets.into_iter().map(queue).map(Arc::new).collect(),
            knows_uso: true,
        }
    }

    /// Its queues.
    pub fn queues(&self) -> &[Arc<TapQueue>] {
        &self.queues
    }

    /// Whether the kernel takes and gives UDP segments of which several are one frame.
    pub fn knows_uso(&self) -> bool {
        self.knows_uso
    }

    /// Has the kernel give frames as they suit a guest that has agreed on these features. What depends on another
    /// feature (§5.1.3.1) and comes without it is left out.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        let mut offloads = OFFLOADS
            .iter()
            .filter(|(feature, _)| has(*feature))
            .fold(0, |all, (_, offload)| all | offload);
        if offloads & USO != USO {
            offloads &= !USO;
        }
        if !has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads = 0;
        }
        let first = &self.queues[0];
        (first.ioctls.set_offloads)(&first.file, offloads)
    }
}

/// Opens every queue, each a file of its own.
fn attach(
    name: &str,
    interface: &InterfaceName,
    queues: u16,
    exists: bool,
) -> Result<Vec<TapQueue>, TapError> {
    let attach = |several: bool| {
        let file = open_device(name)?;
        let flags = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
        match ioctl::attach(&file, interface, flags) {
            Ok(()) => Ok(Ok(TapQueue {
                file,
                enabled: AtomicBool::new(true),
                ioctls: TAP,
            })),
            Err(error) => Ok(Err(error)),
        }
    };
    // A tap is made either way, with one queue or for several, and has to be opened the way that it was made.
    let several = queues > 1;
    let mut first = attach(several)?;
    if is_invalid(&first) && attach(!several)?.is_ok() {
        if several {
            return Err(TapError::SingleQueue(name.to_owned()));
        }
        first = attach(true)?;
    }
    let explain = |error| explain(error, name, exists);
    let mut all = vec![first.map_err(explain)?];
    for _ in 1..queues {
        all.push(attach(true)?.map_err(explain)?);
    }
    Ok(all)
}

fn is_invalid<T>(result: &io::Result<T>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
}

fn open_device(name: &str) -> Result<File, TapError> {
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE);
    device.map_err(|source| TapError::Open {
        name: name.to_owned(),
        source,
    })
}

/// What TUNSETIFF means by an error (Linux, drivers/net/tun.c, tun_set_iff).
fn explain(source: io::Error, name: &str, exists: bool) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM) if exists => TapError::Foreign(name),
        Some(libc::EPERM) => TapError::Missing(name),
        Some(libc::EINVAL) if exists => TapError::NotATap(name),
        Some(libc::EBUSY) => TapError::Busy {
            holder: holder::of_tap(&name),
            name,
        },
        _ => TapError::Refused {
            name,
            what: "attach to it",
            source,
        },
    }
}

impl TapQueue {
    /// Turns this queue of several on or off, if it is not so already.
    pub fn set_enabled(&self, on: bool) -> io::Result<()> {
        if self.enabled.load(Ordering::Relaxed) != on {
            (self.ioctls.set_queue)(&self.file, on)?;
            self.enabled.store(on, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Frames for Arc<TapQueue> {
    const GONE: &str = "its tap was deleted";

    /// A tap gives no frame's length before the frame itself.
    fn next_len(&mut self, largest: usize) -> io::Result<usize> {
        Ok(largest)
    }

    unsafe fn receive(&mut self, room: &[iovec]) -> io::Result<usize> {
        // SAFETY: the caller vouches for the buffers.
        unsafe { syscall::read(self, room) }
    }

    unsafe fn send(&mut self, frame: &[iovec]) -> io::Result<()> {
        // SAFETY: the caller vouches for the buffers. A tap takes a frame as a whole or not at all.
        unsafe { syscall::write(self, frame) }.map(drop)
    }
}

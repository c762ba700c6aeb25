//! Serves a restored guest's memory from its snapshot's file: the other side of `posada restore --memory-from`, by docs/snapshots.md.
//!
//! The simplest that is right: one guest, a page at a time, when it is asked for.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use abi::{UFFDIO_COPY, UFFDIO_WAKE, UFFDIO_ZEROPAGE, UffdioCopy, UffdioRange, UffdioZeropage};

const PAGE: usize = 4096;

// Linux, include/uapi/linux/userfaultfd.h.
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
const UFFD_EVENT_REMOVE: u8 = 0x15;
/// Bytes of a message, and where in it a fault's address and a removal's bounds are.
const MESSAGE: usize = 32;
const FAULT_ADDRESS: usize = 16;
const REMOVED: (usize, usize) = (8, 16);

/// The ioctls that are used here.
mod abi {
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iowr_nr};

    const UFFD: u32 = 0xaa;

    #[repr(C)]
    pub struct UffdioRange {
        pub start: u64,
        pub len: u64,
    }

    #[repr(C)]
    pub struct UffdioCopy {
        pub dst: u64,
        pub src: u64,
        pub len: u64,
        pub mode: u64,
        pub copy: i64,
    }

    #[repr(C)]
    pub struct UffdioZeropage {
        pub range: UffdioRange,
        pub mode: u64,
        pub zeropage: i64,
    }

    ioctl_ior_nr!(UFFDIO_WAKE, UFFD, 0x02, UffdioRange);
    ioctl_iowr_nr!(UFFDIO_COPY, UFFD, 0x03, UffdioCopy);
    ioctl_iowr_nr!(UFFDIO_ZEROPAGE, UFFD, 0x04, UffdioZeropage);
}

/// What a guest was given, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// From the file.
    pub served: u64,
    /// Of zeros, where it had dropped what it had.
    pub zeros: u64,
    /// That it dropped.
    pub dropped: u64,
}

/// A region of guest memory: its addresses in posada, and where in the file it begins.
struct Region {
    addresses: Range<u64>,
    offset: u64,
}

/// A guest whose memory is served.
pub struct MemoryHandler {
    connection: UnixStream,
    uffd: File,
    memory: File,
    regions: Vec<Region>,
    dropped: Vec<Range<u64>>,
    /// Pages that somebody waits for.
    wanted: Vec<u64>,
    figures: Figures,
}

impl MemoryHandler {
    /// Takes the handshake from `connection`, to serve what is in `memory`.
    pub fn new(connection: UnixStream, memory: File) -> io::Result<Self> {
        let mut message = [0; 1024];
        let (len, uffd) = connection.recv_with_fd(&mut message)?;
        let uffd = uffd.ok_or_else(|| io::Error::other("no descriptor came with the handshake"))?;
        let regions: Vec<Value> = serde_json::from_slice(&message[..len])?;
        Ok(Self {
            connection,
            uffd,
            memory,
            regions: regions
                .iter()
                .map(region)
                .collect::<Option<_>>()
                .ok_or(ErrorKind::InvalidData)?,
            dropped: Vec::new(),
            wanted: Vec::new(),
            figures: Figures::default(),
        })
    }

    /// Serves until posada closes the connection, or `most` pages have been served.
    pub fn serve(mut self, most: u64) -> io::Result<Figures> {
        while self.figures.served < most && !self.wait()? {
            self.read_messages()?;
            for address in std::mem::take(&mut self.wanted) {
                self.provide(address)?;
            }
        }
        Ok(self.figures)
    }

    /// Waits for messages. Returns whether posada has closed the connection.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(self.connection.as_fd(), PollFlags::POLLHUP),
            PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN),
        ];
        // Nothing tells when a page can be provided that could not be while others were being dropped.
        let timeout = if self.wanted.is_empty() {
            PollTimeout::NONE
        } else {
            PollTimeout::from(1_u8)
        };
        poll(&mut fds, timeout)?;
        Ok(fds[0].any().unwrap_or(true))
    }

    /// All that there are: pages may have been dropped before they were touched, and then come as zeros.
    fn read_messages(&mut self) -> io::Result<()> {
        let mut message = [0; MESSAGE];
        loop {
            match (&self.uffd).read(&mut message) {
                Ok(MESSAGE) => {}
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            let field = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
            match message[0] {
                UFFD_EVENT_PAGEFAULT => self.wanted.push(field(FAULT_ADDRESS) & !(PAGE as u64 - 1)),
                UFFD_EVENT_REMOVE => {
                    let range = field(REMOVED.0)..field(REMOVED.1);
                    self.figures.dropped += (range.end - range.start) / PAGE as u64;
                    self.dropped.push(range);
                }
                event => return Err(io::Error::other(format!("event {event:#x} was not asked for"))),
            }
        }
    }

    fn provide(&mut self, address: u64) -> io::Result<()> {
        let is_dropped = self.dropped.iter().any(|range| range.contains(&address));
        let (provided, count) = match is_dropped {
            true => (self.zero(address), &mut self.figures.zeros),
            false => (self.copy(address), &mut self.figures.served),
        };
        match provided {
            Ok(()) => *count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.wanted.push(address),
            // Two have waited for it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.wake(address)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn copy(&self, address: u64) -> io::Result<()> {
        let of = |region: &&Region| region.addresses.contains(&address);
        let region = self.regions.iter().find(of).ok_or(ErrorKind::InvalidData)?;
        let mut page = [0_u8; PAGE];
        self.memory
            .read_exact_at(&mut page, region.offset + (address - region.addresses.start))?;
        let mut copy = UffdioCopy {
            dst: address,
            src: page.as_ptr() as u64,
            len: PAGE as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: `copy` is what the ioctl takes, and `page` has as many bytes. What it writes to is the other process's.
        done(unsafe { ioctl_with_mut_ref(&self.uffd, UFFDIO_COPY(), &mut copy) })
    }

    fn zero(&self, address: u64) -> io::Result<()> {
        let mut zeropage = UffdioZeropage {
            range: page_at(address),
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: `zeropage` is what the ioctl takes. What it writes to is the other process's.
        done(unsafe { ioctl_with_mut_ref(&self.uffd, UFFDIO_ZEROPAGE(), &mut zeropage) })
    }

    fn wake(&self, address: u64) -> io::Result<()> {
        // SAFETY: it takes a range, and changes no memory.
        done(unsafe { ioctl_with_mut_ref(&self.uffd, UFFDIO_WAKE(), &mut page_at(address)) })
    }
}

fn page_at(address: u64) -> UffdioRange {
    UffdioRange {
        start: address,
        len: PAGE as u64,
    }
}

fn region(value: &Value) -> Option<Region> {
    let field = |name| value[name].as_u64();
    let start = field("base_host_virt_addr")?;
    (field("page_size")? == PAGE as u64).then_some(Region {
        addresses: start..start + field("size")?,
        offset: field("offset")?,
    })
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

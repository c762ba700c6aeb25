//! userfaultfd(2): whoever touches guest memory that is not there yet waits, until who holds the descriptor has served it.
//!
//! Three ioctls are all that this side needs. The crate `userfaultfd` has them too, by way of bindgen and so of libclang at build
//! time, and does not try the system call where /dev/userfaultfd is there for other users only.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_iowr_nr};

// Linux, include/uapi/linux/userfaultfd.h.
const UFFD: u32 = 0xaa;
const UFFD_API: u64 = 0xaa;
/// Pages that are dropped are told of.
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, UFFD, 0x00);
ioctl_iowr_nr!(UFFDIO_API, UFFD, 0x3f, UffdioApi);
ioctl_iowr_nr!(UFFDIO_REGISTER, UFFD, 0x00, UffdioRegister);

/// Why memory cannot be served.
#[derive(Debug, Error)]
pub enum UffdError {
    /// It takes a right: KVM and system calls touch guest memory, and so the kernel does.
    #[error(
        "another process cannot serve the guest's memory: this user may not use userfaultfd for what the kernel touches; give \
         the user access to /dev/userfaultfd, or posada the capability CAP_SYS_PTRACE"
    )]
    NotPermitted,
    /// The kernel has none, or too old a one.
    #[error(
        "another process cannot serve the guest's memory: this kernel's userfaultfd does not do it ({0})"
    )]
    Unsupported(#[source] io::Error),
}

/// A descriptor by which memory of this process can be served. While there is a copy of it, memory that is not served is waited for;
/// when the last is closed, the kernel fills it with zeros.
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// One that also serves what the kernel touches, and tells of pages that are dropped.
    ///
    /// # Errors
    /// The user may not, or the kernel cannot.
    pub fn new() -> Result<Self, UffdError> {
        let uffd = Self(from_device().or_else(|_| from_system_call()).map_err(refused)?);
        let mut api = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_EVENT_REMOVE,
            ioctls: 0,
        };
        // SAFETY: `api` is what the ioctl takes, and lives through it.
        done(unsafe { ioctl_with_mut_ref(&uffd.0, UFFDIO_API(), &mut api) }).map_err(refused)?;
        Ok(uffd)
    }

    /// Has the missing pages at `addresses`, which are anonymous memory, waited for from now on.
    ///
    /// # Errors
    /// They are something else.
    pub fn register(&self, addresses: Range<usize>) -> Result<(), UffdError> {
        let mut register = UffdioRegister {
            start: addresses.start as u64,
            len: addresses.len() as u64,
            mode: UFFDIO_REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: `register` is what the ioctl takes, and lives through it. What it changes is how long a touch of the memory takes
        // and what is found there first, as another process sharing it could.
        done(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_REGISTER(), &mut register) }).map_err(refused)?;
        Ok(())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who may open the device needs no capability.
fn from_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")?;
    // SAFETY: takes flags and no memory.
    let fd = done(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags() as libc::c_ulong) })?;
    // SAFETY: the kernel has just opened it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn from_system_call() -> io::Result<OwnedFd> {
    // SAFETY: takes flags and no memory.
    let fd = done(unsafe { libc::syscall(libc::SYS_userfaultfd, c_long::from(flags())) } as c_int)?;
    // SAFETY: the kernel has just opened it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Handlers poll it, and a message may have gone by the time that they read.
const fn flags() -> c_int {
    libc::O_CLOEXEC | libc::O_NONBLOCK
}

fn done(result: c_int) -> io::Result<c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn refused(error: io::Error) -> UffdError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => UffdError::NotPermitted,
        _ => UffdError::Unsupported(error),
    }
}

//! A frozen view of guest memory: a forked child writes it down while the guest runs on.
//!
//! fork(2) gives the child guest memory as it is at that moment; what the guest writes afterwards goes to pages of its own. The
//! guest so rests for the fork only, however much memory it has. The child is a process of one thread that was forked from one of
//! several, so it does nothing but direct system calls on what was prepared for it (see [`Job`]). It closes every descriptor but its
//! file's, so that no disk, tap or KVM descriptor lives on in it.
//!
//! When the process that forked it ends, by whatever, the child stops: a snapshot that nobody renames into place is of no use. It
//! asks for its parent's process now and then; PR_SET_PDEATHSIG would go by the *thread* that forked.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_long, c_uint, c_void};
use thiserror::Error;

use super::memory_file::{CHUNK, Checksums};
use super::ranges::PageRanges;
use super::write::{Job, total};
use crate::memory::GuestMemory;

/// Why the memory was not written.
#[derive(Debug, Error)]
pub enum FrozenError {
    /// There is no child to write it.
    #[error("cannot copy the guest's memory while it runs on: {0}")]
    Fork(#[source] io::Error),
    /// The file system is full or fails.
    #[error("cannot write the snapshot's memory: {0}")]
    Write(#[source] io::Error),
    /// What the guest's memory is mapped from has become shorter.
    #[error("cannot read the guest's memory: the file that it was restored from has been cut short")]
    Gone,
    /// Somebody killed the child, as the kernel does when memory is short.
    #[error("the process that writes the snapshot's memory was killed by signal {0}")]
    Killed(c_int),
}

/// Guest memory that is being written as it was at one moment. Dropping it gives the writing up.
///
/// Its descriptor is readable when [`wait`](Self::wait) will not have to.
#[derive(Debug)]
pub struct Frozen {
    child: OwnedFd,
    sums: SharedSums,
    reaped: bool,
}

impl Frozen {
    /// Begins to write `ranges` of `memory`, as they are now, into `file`, which
    /// [`create`](super::memory_file::create) made. `holes` are pages that
    /// [come from holes](super::image::MemoryImage::holes) in the files that the memory is mapped from.
    ///
    /// Called while the guest and its devices rest; they may go on when it returns.
    ///
    /// # Errors
    /// There cannot be another process or as much memory for its page tables.
    pub fn begin(
        memory: &GuestMemory,
        ranges: &PageRanges,
        holes: &PageRanges,
        file: &File,
    ) -> Result<Self, FrozenError> {
        let chunks = total(memory).div_ceil(CHUNK) as usize;
        let sums = SharedSums::new(chunks).map_err(FrozenError::Fork)?;
        let mut job = Job::new(memory, ranges, holes, file, sums.as_slice()).map_err(FrozenError::Fork)?;
        // SAFETY: `in_child` does system calls on its arguments and computes; it takes no lock that another thread may have
        // held at the fork, and ends without a panic.
        let child = unsafe { fork(|| in_child(&mut job, file.as_raw_fd())) }.map_err(FrozenError::Fork)?;
        drop(job);
        Ok(Self {
            child,
            sums,
            reaped: false,
        })
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// Why it is not; the file is then of no use.
    pub fn wait(mut self) -> Result<Checksums, FrozenError> {
        let end = self.reap().map_err(FrozenError::Write)?;
        match end {
            End::Exit(0) => {
                let sums = self.sums.as_slice().iter();
                Ok(Checksums(sums.map(|sum| sum.load(Ordering::Relaxed)).collect()))
            }
            End::Exit(number) => Err(FrozenError::Write(io::Error::from_raw_os_error(number))),
            End::Signal(libc::SIGBUS) => Err(FrozenError::Gone),
            End::Signal(number) => Err(FrozenError::Killed(number)),
        }
    }

    fn reap(&mut self) -> io::Result<End> {
        self.reaped = true;
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let id = self.child.as_raw_fd() as libc::id_t;
        loop {
            // SAFETY: `info` has room for what the kernel tells. The child sends no signal at its end, hence __WALL.
            let result =
                unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), libc::WEXITED | libc::__WALL) };
            let error = io::Error::last_os_error();
            match result {
                0 => break,
                _ if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(error),
            }
        }
        // SAFETY: it was zeroed, and is filled now as for any child that has ended.
        let (code, status) = unsafe {
            let info = info.assume_init();
            (info.si_code, info.si_status())
        };
        Ok(match code {
            libc::CLD_EXITED => End::Exit(status),
            _ => End::Signal(status),
        })
    }
}

impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        let (child, signal) = (self.child.as_raw_fd(), c_long::from(libc::SIGKILL));
        // SAFETY: takes numbers, and no information to go with the signal. The child is this one's own and was not waited for.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                child,
                signal,
                ptr::null::<c_void>(),
                0,
            )
        };
        // Fails only if somebody else waited for it.
        let _ = self.reap();
    }
}

/// How a child ended.
enum End {
    Exit(c_int),
    Signal(c_int),
}

/// All that the child does. Nothing here or below allocates, locks or panics.
fn in_child(job: &mut Job<'_>, file: RawFd) -> c_int {
    // SAFETY: takes no memory.
    let parent = unsafe { libc::getppid() };
    // SAFETY: as above.
    let go_on = || unsafe { libc::getppid() } == parent;
    match close_all_but(file).and_then(|()| job.run(go_on)) {
        Ok(()) => 0,
        Err(number) => number,
    }
}

fn close_all_but(file: RawFd) -> Result<(), c_int> {
    let file = file as c_uint;
    let ranges = [
        (0, file.checked_sub(1)),
        (file.wrapping_add(1), Some(c_uint::MAX)),
    ];
    for (first, last) in ranges {
        let Some(last) = last else { continue };
        // SAFETY: takes numbers. The descriptors are the child's copies, of which it uses no other than `file`.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        super::write::returned(closed as isize)?;
    }
    Ok(())
}

/// Forks a child that does `work`, returns what that returns as its exit status, and has every signal blocked that can be. The
/// parent gets a descriptor for it.
///
/// # Safety
/// `work` does nothing but what may be done after a fork of a process with several threads: no allocation, no lock, no panic.
unsafe fn fork(work: impl FnOnce() -> c_int) -> io::Result<OwnedFd> {
    // The handlers of the parent are none of the child's: it would run them on its copy of what they change.
    let before = block_signals();
    let mut child: c_int = -1;
    let no_stack = ptr::null::<c_void>();
    // SAFETY: without CLONE_VM, the child has a copy of this process's memory, this stack included, and goes on in this
    // function, as after fork(2). `child` has room for the descriptor. The child does `work`, of which the caller promises that a process forked from
    // one with several threads may do it, and ends by _exit: it neither returns from here nor runs anything that the parent has to run.
    let result = unsafe {
        let result = libc::syscall(
            libc::SYS_clone,
            c_long::from(libc::CLONE_PIDFD),
            no_stack,
            &raw mut child,
            no_stack,
            no_stack,
        );
        if result == 0 {
            libc::_exit(work());
        }
        result
    };
    let error = io::Error::last_os_error();
    restore_signals(&before);
    if result < 0 {
        return Err(error);
    }
    // SAFETY: the kernel has just opened it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(child) })
}

fn block_signals() -> libc::sigset_t {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: both have room for a set; `all` is made by the first call before the second reads it, which makes `before`. They
    // cannot fail: the pointers and the word are right.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: a set that pthread_sigmask made.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

/// Checksums in memory that a child shares with its parent.
#[derive(Debug)]
struct SharedSums {
    at: *mut AtomicU32,
    count: usize,
}

// SAFETY: it owns its mapping, to which it gives shared references only, of atomic integers.
unsafe impl Send for SharedSums {}
// SAFETY: as above.
unsafe impl Sync for SharedSums {}

impl SharedSums {
    /// `count` sums, all 0.
    fn new(count: usize) -> io::Result<Self> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        let count = count.max(1);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), count * 4, protection, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: at.cast(), count })
    }

    fn as_slice(&self) -> &[AtomicU32] {
        // SAFETY: the mapping has `count` integers, zero at first, and is there until `self` is dropped; both processes access
        // it by atomic operations only.
        unsafe { slice::from_raw_parts(self.at, self.count) }
    }
}

impl Drop for SharedSums {
    fn drop(&mut self) {
        // SAFETY: it is this one's own mapping, of that length, to which no reference is left.
        unsafe { libc::munmap(self.at.cast(), self.count * 4) };
    }
}

#[cfg(test)]
mod tests;

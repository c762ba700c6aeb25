//! The engine that lets the kernel work on many operations at once: io_uring(7).
//!
//! What the page cache has, or can take, is copied by a plain system call: that is cheaper than the ring's way, and gives
//! each request back as it is done. It is told not to wait (`RWF_NOWAIT`); where a file system does not offer that, and
//! for flushes of a little, [`Patience`] decides. What would wait goes to the ring, all of a batch by one system call, and its end is
//! told by an eventfd. Direct I/O always goes to the ring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::patience::Patience;
use super::sync::{Files, perform};
use super::{Image, Layer, Operation};

/// Where the files are in the ring's table of registered ones.
const TOP: types::Fixed = types::Fixed(0);
const BASE: types::Fixed = types::Fixed(1);

/// See [`EngineKind::Uring`](super::EngineKind::Uring).
pub struct UringEngine {
    ring: IoUring,
    files: Files,
    event: EventFd,
    /// Entries that the kernel has not been told of.
    unsent: bool,
    /// Operations that were begun and have not come out of [`completed`](Self::completed).
    under_way: usize,
    /// There is no page cache that could have or take anything.
    direct: bool,
    reads: AtOnce,
    base_reads: AtOnce,
    writes: AtOnce,
    flushes: Patience,
}

/// How one kind of operation is done at once.
#[derive(Default)]
struct AtOnce {
    /// The file system does not offer to do it without waiting.
    may_wait: bool,
    patience: Patience,
}

/// Whether the kernel has it and lets this process use it (`kernel.io_uring_disabled`, seccomp).
pub(super) fn check() -> io::Result<()> {
    IoUring::new(1).map(drop)
}

impl UringEngine {
    pub(super) fn new(image: &Image, in_flight: u16) -> io::Result<Self> {
        let files = Files::of(image)?;
        let ring = IoUring::builder()
            .dontfork()
            .build(u32::from(in_flight).next_power_of_two())?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let fds = [
            files.top.as_raw_fd(),
            files.base.as_ref().map_or(-1, AsRawFd::as_raw_fd),
        ];
        let count = if files.base.is_some() { 2 } else { 1 };
        ring.submitter().register_files(&fds[..count])?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        Ok(Self {
            ring,
            files,
            event,
            unsent: false,
            under_way: 0,
            direct: image.options().direct,
            reads: AtOnce::default(),
            base_reads: AtOnce::default(),
            writes: AtOnce::default(),
            flushes: Patience::default(),
        })
    }

    /// # Safety
    /// As for [`Engine::begin`](super::Engine::begin).
    #[inline]
    pub(super) unsafe fn begin(&mut self, tag: u16, operation: Operation<'_>) -> Option<io::Result<usize>> {
        // SAFETY: the caller's promise.
        if let Some(done) = unsafe { self.try_at_once(operation) } {
            return Some(done);
        }
        let entry = entry(operation).user_data(tag.into());
        // SAFETY: the caller keeps what the entry points to in place until the operation is done, and the files
        // are registered as long as the ring lives.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as operations can be under way.
        if pushed.is_err() {
            return Some(Err(io::ErrorKind::ResourceBusy.into()));
        }
        (self.unsent, self.under_way) = (true, self.under_way + 1);
        None
    }

    /// # Safety
    /// As for [`Engine::begin`](super::Engine::begin).
    #[inline]
    unsafe fn try_at_once(&mut self, operation: Operation<'_>) -> Option<io::Result<usize>> {
        let (how, buffers) = match operation {
            Operation::Read { buffers, layer, .. } if !self.direct => match layer {
                Layer::Top => (&mut self.reads, buffers),
                Layer::Base => (&mut self.base_reads, buffers),
            },
            Operation::Write {
                buffers,
                durable: false,
                ..
            } if !self.direct => (&mut self.writes, buffers),
            Operation::Flush { little: true } => {
                // SAFETY: the caller's promise.
                return self
                    .flushes
                    .attempt(0, || unsafe { perform(&self.files, operation, 0) });
            }
            _ => return None,
        };
        if !how.may_wait {
            // SAFETY: the caller's promise.
            match unsafe { perform(&self.files, operation, libc::RWF_NOWAIT) } {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return None,
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => how.may_wait = true,
                done => return Some(done),
            }
        }
        let bytes = buffers.iter().map(|buffer| buffer.iov_len).sum();
        // SAFETY: the caller's promise.
        how.patience
            .attempt(bytes, || unsafe { perform(&self.files, operation, 0) })
    }

    #[inline]
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.unsent {
            match self.ring.submit() {
                Ok(_) => self.unsent = !self.ring.submission().is_empty(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[inline]
    pub(super) fn completed(&mut self) -> Option<(u16, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        self.under_way -= 1;
        let result = usize::try_from(entry.result());
        // Tags are 16 bits wide: `begin` widened them.
        let tag = entry.user_data() as u16;
        Some((
            tag,
            result.map_err(|_| io::Error::from_raw_os_error(-entry.result())),
        ))
    }

    #[inline]
    pub(super) fn has_completed(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            // Interrupted, or the kernel is short of something: it is worth trying again.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) fn clear_event(&self) {
        // Fails only when nothing was told.
        let _ = self.event.read();
    }

    pub(super) fn tell(&mut self, tell: bool) {
        let completion = self.ring.completion();
        if tell {
            completion.enable_eventfd();
        } else {
            completion.disable_eventfd();
        }
    }
}

/// The kernel may use the memory of an operation as long as it is under way, so an engine does not go before.
impl Drop for UringEngine {
    fn drop(&mut self) {
        while self.under_way > 0 {
            if self.completed().is_none()
                && let Err(error) = self.wait()
            {
                // Going on would give memory away that the kernel still writes to.
                tracing::error!("cannot wait for a disk's operations to end: {error}");
                std::process::abort();
            }
        }
        // A ring is taken apart in the background, and the file, with its lock, would be in use for as long.
        if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::debug!("io_uring keeps a disk's file for a while: {error}");
        }
    }
}

fn entry(operation: Operation<'_>) -> squeue::Entry {
    match operation {
        Operation::Read {
            layer,
            buffers,
            offset,
        } => {
            let file = if layer == Layer::Base { BASE } else { TOP };
            opcode::Readv::new(file, buffers.as_ptr(), buffers.len() as u32)
                .offset(offset)
                .build()
        }
        Operation::Write {
            buffers,
            offset,
            durable,
        } => opcode::Writev::new(TOP, buffers.as_ptr(), buffers.len() as u32)
            .offset(offset)
            .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
            .build(),
        Operation::Flush { .. } => opcode::Fsync::new(TOP).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Allocate { mode, offset, len } => {
            opcode::Fallocate::new(TOP, len).offset(offset).mode(mode).build()
        }
    }
}

//! How an image is read and written: what can be asked of an engine, and which engines there are.

use std::io;
use std::os::fd::RawFd;

use libc::iovec;

use super::sync::SyncEngine;
use super::uring::{self, UringEngine};
use super::{DiskError, Image};

/// An engine that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Requests that would wait go to the kernel in batches and come back when they are done (io_uring(7)).
    Uring,
    /// One system call for a request, and the thread waits for it.
    Sync,
}

impl EngineKind {
    /// Looks whether the host has it.
    ///
    /// # Errors
    /// It has not, and why.
    pub fn check(self) -> Result<(), DiskError> {
        match self {
            Self::Uring => uring::check().map_err(DiskError::NoUring),
            Self::Sync => Ok(()),
        }
    }
}

/// Which of the files of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The one that is written: the image, or the overlay.
    Top,
    /// What an overlay lies over.
    Base,
}

/// One step of a request: one system call's worth.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Fills the buffers from `offset` on (bytes).
    Read {
        /// The file; all else is done to the top one.
        layer: Layer,
        /// Memory to fill.
        buffers: &'a [iovec],
        /// Position in bytes.
        offset: u64,
    },
    /// Writes the buffers to `offset` (bytes).
    Write {
        /// Memory to read from.
        buffers: &'a [iovec],
        /// Position in bytes.
        offset: u64,
        /// It is on the disk when it is done, not only in the page cache.
        durable: bool,
    },
    /// What was written before is on the disk when it is done: fdatasync(2).
    Flush {
        /// It may be waited for, as little is to be written.
        little: bool,
    },
    /// fallocate(2).
    Allocate {
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Position in bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// One engine for one queue. Its thread is the only one that calls it.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one in each worker, which is boxed as a whole"
)]
pub enum Engine {
    /// See [`EngineKind::Sync`].
    Sync(SyncEngine),
    /// See [`EngineKind::Uring`].
    Uring(UringEngine),
}

impl Engine {
    /// An engine for `image` with at most `in_flight` operations under way at once.
    ///
    /// # Errors
    /// The kernel has no such engine, or no memory for it.
    pub fn new(kind: EngineKind, image: &Image, in_flight: u16) -> io::Result<Self> {
        Ok(match kind {
            EngineKind::Sync => Self::Sync(SyncEngine::new(image)?),
            EngineKind::Uring => Self::Uring(UringEngine::new(image, in_flight)?),
        })
    }

    /// Begins `operation`. `Some` if it is done already, with how many bytes were read or written; else it is under way,
    /// [`submit`](Self::submit) sends it on and [`completed`](Self::completed) will have `tag`.
    ///
    /// # Safety
    /// The array of iovecs and the memory that they name stay where they are until the operation is done.
    #[inline]
    pub unsafe fn begin(&mut self, tag: u16, operation: Operation<'_>) -> Option<io::Result<usize>> {
        match self {
            // SAFETY: the caller's promise.
            Self::Sync(engine) => Some(unsafe { engine.perform(operation) }),
            // SAFETY: the caller's promise.
            Self::Uring(engine) => unsafe { engine.begin(tag, operation) },
        }
    }

    /// Sends what was begun to the kernel, all at once.
    ///
    /// # Errors
    /// The kernel takes nothing now; what it did not take is sent the next time.
    #[inline]
    pub fn submit(&mut self) -> io::Result<()> {
        match self {
            Self::Sync(_) => Ok(()),
            Self::Uring(engine) => engine.submit(),
        }
    }

    /// The next operation that is done.
    #[inline]
    pub fn completed(&mut self) -> Option<(u16, io::Result<usize>)> {
        match self {
            Self::Sync(_) => None,
            Self::Uring(engine) => engine.completed(),
        }
    }

    /// Whether [`completed`](Self::completed) has something. For polling: it makes no system call.
    #[inline]
    pub fn has_completed(&mut self) -> bool {
        match self {
            Self::Sync(_) => false,
            Self::Uring(engine) => engine.has_completed(),
        }
    }

    /// Waits until an operation that is under way is done.
    ///
    /// # Errors
    /// The kernel does not let it wait.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Sync(_) => Ok(()),
            Self::Uring(engine) => engine.wait(),
        }
    }

    /// What becomes readable when an operation is done while [told so](Self::tell).
    pub fn event(&self) -> Option<RawFd> {
        match self {
            Self::Sync(_) => None,
            Self::Uring(engine) => Some(engine.event()),
        }
    }

    /// The event has been seen.
    pub fn clear_event(&self) {
        if let Self::Uring(engine) = self {
            engine.clear_event();
        }
    }

    /// Whether the event is to tell of operations that are done from now on.
    pub fn tell(&mut self, tell: bool) {
        if let Self::Uring(engine) = self {
            engine.tell(tell);
        }
    }
}

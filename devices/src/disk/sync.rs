//! The engine that makes one system call for an operation and waits for it; and those system calls.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, iovec, off_t};

use super::{Image, Layer, Operation};

/// See [`EngineKind::Sync`](super::EngineKind::Sync).
pub struct SyncEngine {
    files: Files,
}

impl SyncEngine {
    pub(super) fn new(image: &Image) -> io::Result<Self> {
        let files = Files::of(image)?;
        Ok(Self { files })
    }

    /// Does it at once.
    ///
    /// # Safety
    /// As for [`Engine::begin`](super::Engine::begin).
    #[inline]
    pub(super) unsafe fn perform(&self, operation: Operation<'_>) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { perform(&self.files, operation, 0) }
    }
}

/// The files of a disk, open for one engine.
pub(super) struct Files {
    pub(super) top: File,
    pub(super) base: Option<File>,
}

impl Files {
    pub(super) fn of(image: &Image) -> io::Result<Self> {
        Ok(Self {
            top: image.file().try_clone()?,
            base: image.base().map(File::try_clone).transpose()?,
        })
    }

    /// The file of a layer. (An image without a base is all on top.)
    #[inline]
    fn file(&self, layer: Layer) -> &File {
        match (layer, &self.base) {
            (Layer::Base, Some(base)) => base,
            _ => &self.top,
        }
    }
}

/// Makes the system call that does `operation`, until no signal interrupts it; `flags` are `RWF_*`, of reads and writes.
///
/// # Safety
/// The buffers of a read or a write name memory that may be written or read, and is not Rust's to reason about.
#[inline]
pub(super) unsafe fn perform(files: &Files, operation: Operation<'_>, flags: c_int) -> io::Result<usize> {
    let layer = match operation {
        Operation::Read { layer, .. } => layer,
        _ => Layer::Top,
    };
    let fd = files.file(layer).as_raw_fd();
    loop {
        let done = match operation {
            Operation::Read { buffers, offset, .. } => {
                let (buffers, count) = parts(buffers);
                // SAFETY: the caller's promise; the array of iovecs is a slice's.
                unsafe { libc::preadv2(fd, buffers, count, offset as off_t, flags) }
            }
            Operation::Write {
                buffers,
                offset,
                durable,
            } => {
                let (buffers, count) = parts(buffers);
                let flags = flags | if durable { libc::RWF_DSYNC } else { 0 };
                // SAFETY: as above.
                unsafe { libc::pwritev2(fd, buffers, count, offset as off_t, flags) }
            }
            // SAFETY: takes no memory.
            Operation::Flush { .. } => unsafe { libc::fdatasync(fd) as isize },
            Operation::Allocate { mode, offset, len } => {
                // SAFETY: takes no memory.
                unsafe { libc::fallocate(fd, mode, offset as off_t, len as off_t) as isize }
            }
        };
        if let Ok(done) = usize::try_from(done) {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// A chain has at most 256 buffers, which is less than IOV_MAX.
fn parts(buffers: &[iovec]) -> (*const iovec, c_int) {
    (buffers.as_ptr(), buffers.len() as c_int)
}

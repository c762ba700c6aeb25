//! Which of several queue pairs are in use (§5.1.6.5.5): the control queue's worker decides, the pairs' workers hear of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Whether a pair is in use.
pub struct Switch {
    on: AtomicBool,
    changed: EventFd,
}

impl Switch {
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(on: bool) -> io::Result<Self> {
        Ok(Self {
            on: AtomicBool::new(on),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Turns it, and wakes the pair's worker.
    pub fn turn(&self, on: bool) {
        self.on.store(on, Ordering::Release);
        // Fails only when the counter is full, and then the worker is awake.
        let _ = self.changed.write(1);
    }

    /// Readable when it has been turned.
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }
}

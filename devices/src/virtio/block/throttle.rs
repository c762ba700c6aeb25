//! Holds requests back that the disk's rate limit does not let through yet.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::timerfd::TimerFd;

use super::counts::Counts;
use super::request::Request;
use crate::rate_limit::RateLimit;
use crate::virtio::Queue;

/// What stands between a queue and its disk.
pub struct Throttle {
    limit: Arc<RateLimit>,
    /// Rings when the limit lets the next request through. There is none without a limit.
    timer: Option<TimerFd>,
    /// A request waits for the timer to ring.
    holds_back: bool,
    counts: Arc<Counts>,
}

impl Throttle {
    /// Asks `limit`.
    ///
    /// # Errors
    /// The host has no descriptor for a timer.
    pub fn new(limit: Arc<RateLimit>, counts: Arc<Counts>) -> io::Result<Self> {
        let timer = if limit.is_unlimited() {
            None
        } else {
            Some(TimerFd::new()?)
        };
        Ok(Self {
            limit,
            timer,
            holds_back: false,
            counts,
        })
    }

    /// Whether nothing is let through until the timer rings.
    #[inline]
    pub fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// Asks the limit, and sets the timer if it is not the time yet of this request of the `queue`'s.
    #[inline]
    pub fn lets_through(&mut self, request: &Request, queue: &Queue) -> bool {
        let Some(timer) = &mut self.timer else { return true };
        let Err(wait) = self.limit.take(request.bytes()) else {
            return true;
        };
        self.counts.stalls.add(1);
        match timer.reset(wait, None) {
            Ok(()) => self.holds_back = true,
            // Without a timer the doorbell is what comes next.
            Err(_) => queue.ring(),
        }
        false
    }

    /// What becomes readable when the timer rings.
    pub fn timer(&self) -> Option<RawFd> {
        self.timer.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The timer has rung.
    pub fn go_on(&mut self) {
        self.holds_back = false;
        if let Some(timer) = &mut self.timer {
            // It has rung, so this does not wait.
            let _ = timer.wait();
        }
    }
}

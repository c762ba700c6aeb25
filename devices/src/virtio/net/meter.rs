//! A rate limit on one direction of a pair.
//!
//! How long a frame is may be known only when it has come. So each is paid for before the next one passes, and the
//! first passes free.

use std::io;
use std::sync::Arc;

use tracing::debug;
use vmm_sys_util::timerfd::TimerFd;

use crate::counters::Counter;
use crate::rate_limit::RateLimit;

/// Lets frames pass at the rate of a limit that is shared with the other pairs.
pub struct Meter {
    limit: Arc<RateLimit>,
    /// Rings when the next frame may pass. There is none without a limit.
    timer: Option<TimerFd>,
    /// Bytes of the frame that passed last, until it is paid for.
    owed: Option<u64>,
    held_back: bool,
}

impl Meter {
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(limit: &Arc<RateLimit>) -> io::Result<Self> {
        let timer = (!limit.is_unlimited()).then(TimerFd::new).transpose()?;
        Ok(Self {
            limit: limit.clone(),
            timer,
            owed: None,
            held_back: false,
        })
    }

    /// Whether a frame may pass now; if not, the timer rings when it may, and it is counted among the `stalls`.
    #[inline]
    pub fn lets_pass(&mut self, stalls: &Counter) -> bool {
        self.timer.is_none() || self.is_paid(stalls)
    }

    fn is_paid(&mut self, stalls: &Counter) -> bool {
        let (Some(owed), Some(timer)) = (self.owed, &mut self.timer) else {
            return true;
        };
        if self.held_back {
            return false;
        }
        let Err(wait) = self.limit.take(owed) else {
            self.owed = None;
            return true;
        };
        match timer.reset(wait, None) {
            Ok(()) => {
                stalls.add(1);
                self.held_back = true;
            }
            // Without a timer nothing would ever pass again.
            Err(error) => debug!("a rate limit's timer cannot be set: {error}"),
        }
        !self.held_back
    }

    /// A frame of this many bytes with its header has passed.
    #[inline]
    pub fn passed(&mut self, bytes: usize) {
        if self.timer.is_some() {
            self.owed = Some(bytes.saturating_sub(super::HEADER) as u64);
        }
    }

    /// Whether the timer has still to ring.
    #[inline]
    pub fn holds_back(&self) -> bool {
        self.held_back
    }

    /// The timer, if there is a limit.
    pub fn timer(&self) -> Option<&TimerFd> {
        self.timer.as_ref()
    }

    /// The timer has rung.
    pub fn rung(&mut self) {
        if let Some(timer) = &mut self.timer {
            // It is readable: this does not wait.
            let _ = timer.wait();
        }
        self.held_back = false;
    }
}

//! Looking for more work for a moment before sleeping, as long as that pays.
//!
//! To be woken costs more than a short request takes. So a worker that is done looks on for a while: not at all at first,
//! longer when it went to sleep and was woken soon after, and not at all again once it has slept long. A guest that is
//! idle costs nothing. (Linux's KVM does the same for halted vCPUs: `halt_poll_ns`.)

use std::hint;
use std::time::{Duration, Instant};

/// Longer than a wake-up takes, it does not pay to look.
const LONGEST: Duration = Duration::from_micros(50);
const SHORTEST: Duration = Duration::from_micros(10);
/// Looks from one look at the clock to the next.
const LOOKS: u32 = 16;

/// The looking of one worker.
#[derive(Debug, Default)]
pub struct Poll {
    /// How long to look.
    window: Duration,
    /// Since when the worker has had nothing to do, while it sleeps.
    idle_since: Option<Instant>,
}

impl Poll {
    /// Looks until `ready`, or until it does not pay any longer; returns whether it was ready. If not, the worker sleeps.
    #[inline]
    pub fn wait(&mut self, mut ready: impl FnMut() -> bool) -> bool {
        if ready() {
            return true;
        }
        let start = Instant::now();
        while start.elapsed() < self.window {
            // To look at memory is cheaper than to look at the clock.
            for _ in 0..LOOKS {
                hint::spin_loop();
                if ready() {
                    return true;
                }
            }
        }
        self.idle_since = Some(start);
        false
    }

    /// The worker has been woken.
    #[inline]
    pub fn woken(&mut self) {
        if let Some(since) = self.idle_since.take() {
            self.adapt(since.elapsed());
        }
    }

    /// Learns from one time without work, looking and sleeping together.
    fn adapt(&mut self, idle: Duration) {
        self.window = if idle > 2 * LONGEST {
            Duration::ZERO
        } else {
            (self.window * 2).clamp(SHORTEST, LONGEST)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(30);
    const LONG: Duration = Duration::from_millis(10);

    #[test]
    fn at_first_it_looks_once() {
        let (mut poll, mut looks) = (Poll::default(), 0);
        let ready = poll.wait(|| {
            looks += 1;
            false
        });
        assert_eq!((ready, looks), (false, 1));
    }

    #[test]
    fn what_is_ready_needs_no_window() {
        assert!(Poll::default().wait(|| true));
    }

    #[test]
    fn the_window_grows_while_work_comes_soon_and_has_an_end() {
        let mut poll = Poll::default();
        let mut before = poll.window;
        for _ in 0..10 {
            poll.adapt(SHORT);
            assert!(poll.window > before || poll.window == LONGEST);
            before = poll.window;
        }
        assert_eq!(poll.window, LONGEST);
    }

    #[test]
    fn one_long_sleep_ends_the_looking() {
        let mut poll = Poll::default();
        poll.adapt(SHORT);
        poll.adapt(LONG);
        assert_eq!(poll.window, Duration::ZERO);
    }

    #[test]
    fn being_woken_for_something_else_teaches_nothing() {
        let mut poll = Poll::default();
        poll.woken();
        assert_eq!(poll.window, Duration::ZERO);
    }

    #[test]
    fn a_window_is_used_to_look_again() {
        let mut poll = Poll::default();
        poll.adapt(SHORT);
        let mut looks = 0;
        let ready = poll.wait(|| {
            looks += 1;
            looks == 2
        });
        // The clock may run away between two looks; then the second one does not come.
        assert_eq!(ready, looks == 2);
    }
}

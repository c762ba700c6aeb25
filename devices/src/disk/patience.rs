//! Whether it pays to wait for the host, by how long the host took lately.
//!
//! A page-cache write or a flush of little takes less than handing it to another thread and being woken when it is
//! done. But it can take very long too, when the host has to write out first, and the thread has others to serve. So it is
//! tried, and when it took long, it is not tried for a while, which is the longer the more often that happens in a row.

use std::io;
use std::time::{Duration, Instant};

/// What a wait may take for its own sake: no more than a few wake-ups.
const LIMIT: Duration = Duration::from_micros(200);
/// How often it is not tried after it took longer for the first time, and at most.
const FIRST_REST: u32 = 4;
const LONGEST_REST: u32 = 1024;

/// What is known of one kind of operation.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// How often it is not to be tried.
    rest: u32,
    /// How often it was not tried the last time that it took long, if it has not gone well since.
    last_rest: u32,
}

impl Patience {
    /// Does what may wait, unless that took long lately. `bytes` is what is copied, at a nanosecond each or faster.
    #[inline]
    pub(super) fn attempt(
        &mut self,
        bytes: usize,
        wait: impl FnOnce() -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        if self.rest > 0 {
            self.rest -= 1;
            return None;
        }
        let start = Instant::now();
        let result = wait();
        self.learn(bytes, start.elapsed());
        Some(result)
    }

    fn learn(&mut self, bytes: usize, took: Duration) {
        self.last_rest = if took <= LIMIT + Duration::from_nanos(bytes as u64) {
            0
        } else {
            (self.last_rest * 2).clamp(FIRST_REST, LONGEST_REST)
        };
        self.rest = self.last_rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_no_time_is_always_tried() {
        let mut patience = Patience::default();
        for _ in 0..10 {
            patience.learn(0, LIMIT);
            patience.learn(1 << 20, LIMIT + Duration::from_millis(1));
            assert!(patience.attempt(usize::MAX, || Ok(5)).is_some());
        }
    }

    /// How often it is not tried from now on.
    fn refusals(patience: &mut Patience) -> u32 {
        let mut refusals = 0;
        while patience.attempt(0, || Ok(0)).is_none() {
            refusals += 1;
        }
        refusals
    }

    #[test]
    fn what_took_long_is_left_for_a_while() {
        let mut patience = Patience::default();
        patience.learn(4096, Duration::from_millis(1));
        assert_eq!(refusals(&mut patience), FIRST_REST);
    }

    #[test]
    fn the_while_grows_when_it_goes_on_and_ends_when_it_does_not() {
        let mut patience = Patience::default();
        for _ in 0..20 {
            patience.learn(0, Duration::from_millis(1));
        }
        assert_eq!(patience.rest, LONGEST_REST);
        patience.learn(0, Duration::ZERO);
        assert_eq!((patience.rest, patience.last_rest), (0, 0));
    }
}

//! Rate limits: how many bytes and operations a device may do in a second, and in a burst before that.
//!
//! A limit is a token bucket that any number of threads take from without a lock. It keeps the time at which it would be
//! full again: taking tokens moves that time ahead, by as long as they need to come back, and nothing can be taken
//! while it lies further ahead than a full bucket needs to fill (the "virtual scheduling" form of GCRA, ITU-T I.371).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NANOSECONDS: u64 = 1_000_000_000;

/// What one bucket lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in a second: at least 1.
    pub per_second: u64,
    /// Tokens that the bucket holds when it is full: at least 1.
    pub burst: u64,
}

/// The limits of one device, of which its workers share one.
#[derive(Debug)]
pub struct RateLimit {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// What the buckets' times are counted from.
    start: Instant,
}

impl RateLimit {
    /// Limits by bytes and by operations, where there are any. Full buckets to begin with.
    pub fn new(bytes: Option<Rate>, operations: Option<Rate>) -> Self {
        Self {
            bytes: bytes.map(Bucket::new),
            operations: operations.map(Bucket::new),
            start: Instant::now(),
        }
    }

    /// Whether everything is let through always.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// Takes what one operation on this many bytes costs. An operation that is larger than the burst takes all that a full
    /// bucket has, and those behind it wait for the rest.
    ///
    /// # Errors
    /// It is not its time yet; nothing was taken. It is worth trying again after what is returned, which is above zero.
    #[inline]
    pub fn take(&self, bytes: u64) -> Result<(), Duration> {
        if self.is_unlimited() {
            return Ok(());
        }
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.take_at(bytes, now).map_err(Duration::from_nanos)
    }

    /// [`take`](Self::take) at a time in nanoseconds.
    fn take_at(&self, bytes: u64, now: u64) -> Result<(), u64> {
        if let Some(bucket) = &self.operations {
            bucket.take(1, now)?;
        }
        let Some(bucket) = &self.bytes else { return Ok(()) };
        bucket.take(bytes, now).inspect_err(|_| {
            if let Some(operations) = &self.operations {
                operations.give_back(1);
            }
        })
    }
}

/// Times are in nanoseconds.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// How long an empty one needs to fill.
    fill: u64,
    full_at: AtomicU64,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            fill: time(rate.burst, rate.per_second),
            full_at: AtomicU64::new(0),
        }
    }

    /// Takes tokens, or returns how long the bucket has too few.
    fn take(&self, tokens: u64, now: u64) -> Result<(), u64> {
        let cost = time(tokens, self.rate.per_second);
        // What costs more than the bucket holds has to wait for a full one only.
        let affordable = self.fill - cost.min(self.fill);
        let taken = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now);
                (full_at - now <= affordable).then(|| full_at.saturating_add(cost))
            });
        taken
            .map(drop)
            .map_err(|full_at| (full_at - now - affordable).max(1))
    }

    /// Takes a `take` back.
    fn give_back(&self, tokens: u64) {
        let cost = time(tokens, self.rate.per_second);
        self.full_at.fetch_sub(cost, Ordering::Relaxed);
    }
}

/// How long this many tokens need to come, rounded up.
fn time(tokens: u64, per_second: u64) -> u64 {
    let time = (u128::from(tokens) * u128::from(NANOSECONDS)).div_ceil(per_second.max(1).into());
    u64::try_from(time).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: u64 = NANOSECONDS / 1000;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let limit = RateLimit::new(None, None);
        assert!(limit.is_unlimited());
        for _ in 0..1000 {
            assert_eq!(limit.take(u64::MAX), Ok(()));
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let limit = RateLimit::new(None, rate(1000, 5));
        for _ in 0..5 {
            assert_eq!(limit.take_at(0, 0), Ok(()));
        }
        assert_eq!(limit.take_at(0, 0), Err(MILLISECOND));
        assert_eq!(limit.take_at(0, MILLISECOND - 1), Err(1));
        assert_eq!(limit.take_at(0, MILLISECOND), Ok(()));
        assert_eq!(limit.take_at(0, MILLISECOND), Err(MILLISECOND));
    }

    #[test]
    fn over_a_long_time_exactly_burst_and_rate_pass() {
        let limit = RateLimit::new(rate(1 << 20, 64 << 10), None);
        let (mut now, mut passed) = (0, 0);
        while now < 10 * NANOSECONDS {
            match limit.take_at(4096, now) {
                Ok(()) => passed += 4096,
                Err(wait) => now += wait,
            }
        }
        let expected: u64 = 10 * (1 << 20) + (64 << 10);
        assert!(
            expected.abs_diff(passed) <= 4096,
            "{passed} bytes instead of {expected}"
        );
    }

    #[test]
    fn an_idle_bucket_fills_to_its_burst_and_no_further() {
        let limit = RateLimit::new(None, rate(1000, 2));
        let much_later = 3600 * NANOSECONDS;
        assert_eq!(limit.take_at(0, much_later), Ok(()));
        assert_eq!(limit.take_at(0, much_later), Ok(()));
        assert_eq!(limit.take_at(0, much_later), Err(MILLISECOND));
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_a_full_bucket_and_is_paid_for_after() {
        let limit = RateLimit::new(rate(1000, 10), None);
        assert_eq!(limit.take_at(100, 0), Ok(()));
        assert_eq!(limit.take_at(1, 0), Err(91 * MILLISECOND));
        assert_eq!(limit.take_at(1, 91 * MILLISECOND), Ok(()));
    }

    #[test]
    fn an_operation_that_the_bytes_refuse_is_not_counted() {
        let limit = RateLimit::new(rate(1000, 10), rate(1000, 2));
        assert_eq!(limit.take_at(10, 0), Ok(()));
        for _ in 0..10 {
            assert_eq!(limit.take_at(10, 0), Err(10 * MILLISECOND));
        }
        assert_eq!(limit.take_at(0, 0), Ok(()), "the second operation is still there");
        assert_eq!(limit.take_at(0, 0), Err(MILLISECOND));
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_stall() {
        let slow = RateLimit::new(rate(1, 1), None);
        assert_eq!(slow.take_at(u64::MAX, 0), Ok(()));
        assert!(slow.take_at(u64::MAX, u64::MAX - 1).is_err());
        let fast = RateLimit::new(rate(u64::MAX, u64::MAX), None);
        for now in 0..100 {
            assert_eq!(fast.take_at(1 << 30, now), Ok(()));
        }
    }
}

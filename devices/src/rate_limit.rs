//! Rate limits: how many bytes and operations a device may do in a second, and in a burst before that.
//!
//! A limit is a token bucket that any number of threads take from without a lock. It keeps the time at which it would be
//! full again: taking tokens moves that time ahead, by as long as they need to come back, and nothing can be taken
//! while it lies further ahead than a full bucket needs to fill (the "virtual scheduling" form of GCRA, ITU-T I.371).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NANOSECONDS: u64 = 1_000_000_000;

/// What one bucket lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come in a second: at least 1.
    pub per_second: u64,
    /// Tokens that the bucket holds when it is full: at least 1.
    pub burst: u64,
    /// Tokens that there are beside the bucket, which never come again.
    pub once: u64,
}

/// What a limit lets through, by bytes and by operations: everything, where there is no rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Operations.
    pub operations: Option<Rate>,
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
    /// Limits like this. Full buckets to begin with.
    pub fn new(rates: Rates) -> Self {
        Self {
            bytes: rates.bytes.map(Bucket::new),
            operations: rates.operations.map(Bucket::new),
            start: Instant::now(),
        }
    }

    /// The limit that follows this one, which is not used any more. A bucket whose rate stays as it was is as full as it was.
    #[must_use]
    pub fn changed(&self, rates: Rates) -> Self {
        let follow = |before: &Option<Bucket>, rate: Option<Rate>| {
            let bucket = Bucket::new(rate?);
            match before {
                Some(before) if before.rate == bucket.rate => Some(before.copy()),
                _ => Some(bucket),
            }
        };
        Self {
            bytes: follow(&self.bytes, rates.bytes),
            operations: follow(&self.operations, rates.operations),
            start: self.start,
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
        let operation = match &self.operations {
            Some(bucket) => Some((bucket, bucket.take(1, now)?)),
            None => None,
        };
        let Some(bucket) = &self.bytes else { return Ok(()) };
        bucket.take(bytes, now).map(drop).inspect_err(|_| {
            if let Some((bucket, from)) = operation {
                bucket.give_back(1, from);
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
    /// Tokens that are left beside the bucket.
    once: AtomicU64,
}

/// Where tokens were taken from.
enum Taken {
    Bucket,
    Beside,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self {
            rate,
            fill: time(rate.burst, rate.per_second),
            full_at: AtomicU64::new(0),
            once: AtomicU64::new(rate.once),
        }
    }

    /// Another that is as full, for the same times.
    fn copy(&self) -> Self {
        Self {
            rate: self.rate,
            fill: self.fill,
            full_at: self.full_at.load(Ordering::Relaxed).into(),
            once: self.once.load(Ordering::Relaxed).into(),
        }
    }

    /// Takes tokens, or returns how long the bucket has too few. What there is beside it goes first, to those that it is enough for.
    fn take(&self, tokens: u64, now: u64) -> Result<Taken, u64> {
        if self.take_beside(tokens) {
            return Ok(Taken::Beside);
        }
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
            .map(|_| Taken::Bucket)
            .map_err(|full_at| (full_at - now - affordable).max(1))
    }

    fn take_beside(&self, tokens: u64) -> bool {
        let left = |once: u64| once.checked_sub(tokens);
        self.once.load(Ordering::Relaxed) != 0
            && self
                .once
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
                .is_ok()
    }

    /// Takes a `take` back.
    fn give_back(&self, tokens: u64, from: Taken) {
        match from {
            Taken::Beside => self.once.fetch_add(tokens, Ordering::Relaxed),
            Taken::Bucket => self
                .full_at
                .fetch_sub(time(tokens, self.rate.per_second), Ordering::Relaxed),
        };
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
        Some(Rate {
            per_second,
            burst,
            once: 0,
        })
    }

    fn once(once: u64, rate: Option<Rate>) -> Option<Rate> {
        rate.map(|rate| Rate { once, ..rate })
    }

    fn limit(bytes: Option<Rate>, operations: Option<Rate>) -> RateLimit {
        RateLimit::new(Rates { bytes, operations })
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let limit = limit(None, None);
        assert!(limit.is_unlimited());
        for _ in 0..1000 {
            assert_eq!(limit.take(u64::MAX), Ok(()));
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate_holds() {
        let limit = limit(None, rate(1000, 5));
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
        let limit = limit(rate(1 << 20, 64 << 10), None);
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
        let limit = limit(None, rate(1000, 2));
        let much_later = 3600 * NANOSECONDS;
        assert_eq!(limit.take_at(0, much_later), Ok(()));
        assert_eq!(limit.take_at(0, much_later), Ok(()));
        assert_eq!(limit.take_at(0, much_later), Err(MILLISECOND));
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_a_full_bucket_and_is_paid_for_after() {
        let limit = limit(rate(1000, 10), None);
        assert_eq!(limit.take_at(100, 0), Ok(()));
        assert_eq!(limit.take_at(1, 0), Err(91 * MILLISECOND));
        assert_eq!(limit.take_at(1, 91 * MILLISECOND), Ok(()));
    }

    #[test]
    fn an_operation_that_the_bytes_refuse_is_not_counted() {
        let limit = limit(rate(1000, 10), rate(1000, 2));
        assert_eq!(limit.take_at(10, 0), Ok(()));
        for _ in 0..10 {
            assert_eq!(limit.take_at(10, 0), Err(10 * MILLISECOND));
        }
        assert_eq!(limit.take_at(0, 0), Ok(()), "the second operation is still there");
        assert_eq!(limit.take_at(0, 0), Err(MILLISECOND));
    }

    #[test]
    fn what_there_is_once_goes_first_and_never_comes_again() {
        let limit = limit(once(100, rate(1000, 10)), None);
        for _ in 0..10 {
            assert_eq!(limit.take_at(10, 0), Ok(()));
        }
        assert_eq!(limit.take_at(10, 0), Ok(()), "the bucket is full as yet");
        assert_eq!(limit.take_at(10, 0), Err(10 * MILLISECOND));
        let much_later = 3600 * NANOSECONDS;
        assert_eq!(limit.take_at(10, much_later), Ok(()));
        assert_eq!(limit.take_at(10, much_later), Err(10 * MILLISECOND));
    }

    #[test]
    fn what_there_is_once_is_left_to_those_that_it_is_enough_for() {
        let limit = limit(once(5, rate(1000, 10)), None);
        assert_eq!(limit.take_at(6, 0), Ok(()), "by the bucket");
        assert_eq!(limit.take_at(5, 0), Ok(()), "beside it");
        assert_eq!(limit.take_at(5, 0), Err(MILLISECOND));
        assert_eq!(limit.take_at(4, 0), Ok(()));
    }

    #[test]
    fn an_operation_that_the_bytes_refuse_is_given_back_to_where_it_was() {
        let limit = limit(rate(1000, 10), once(2, rate(1000, 1)));
        assert_eq!(limit.take_at(10, 0), Ok(()));
        for _ in 0..10 {
            assert_eq!(limit.take_at(10, 0), Err(10 * MILLISECOND));
        }
        assert_eq!(limit.take_at(0, 0), Ok(()), "the second of the two beside");
        assert_eq!(limit.take_at(0, 0), Ok(()), "the one in the bucket");
        assert_eq!(limit.take_at(0, 0), Err(MILLISECOND));
    }

    #[test]
    fn a_bucket_whose_rate_stays_is_as_full_as_it_was() {
        let before = limit(once(10, rate(1000, 10)), rate(1000, 2));
        assert_eq!(before.take_at(10, 0), Ok(()));
        assert_eq!(before.take_at(10, 0), Ok(()));
        let after = before.changed(Rates {
            bytes: once(10, rate(1000, 10)),
            operations: rate(1000, 3),
        });
        assert_eq!(after.take_at(1, 0), Err(MILLISECOND), "the bytes are used up");
        for _ in 0..3 {
            assert_eq!(after.take_at(0, 0), Ok(()), "operations are anew");
        }
        assert_eq!(after.take_at(0, 0), Err(MILLISECOND));
        let unlimited = after.changed(Rates::default());
        assert!(unlimited.is_unlimited());
    }

    #[test]
    fn extreme_rates_neither_overflow_nor_stall() {
        let slow = limit(rate(1, 1), None);
        assert_eq!(slow.take_at(u64::MAX, 0), Ok(()));
        assert!(slow.take_at(u64::MAX, u64::MAX - 1).is_err());
        let fast = limit(rate(u64::MAX, u64::MAX), None);
        for now in 0..100 {
            assert_eq!(fast.take_at(1 << 30, now), Ok(()));
        }
    }
}

//! Firecracker's token buckets, as posada's rates and bursts.

use devices::rate_limit::{Rate, Rates};
use serde::{Deserialize, Serialize};

use super::object;

/// Limits on what passes: bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, deserialize_with = "object::optional")]
    pub bandwidth: Option<TokenBucket>,
    /// Requests, or frames.
    #[serde(default, deserialize_with = "object::optional")]
    pub ops: Option<TokenBucket>,
}

/// A bucket that is filled anew in a time, evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TokenBucket {
    /// What is in it when it is full.
    pub size: u64,
    /// What there is once beside it.
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full.
    pub refill_time: u64,
}

impl RateLimiter {
    /// posada's limit for this one; nothing is what it does not set.
    ///
    /// # Errors
    /// posada has no such limit.
    pub fn rates(this: Option<Self>) -> Result<Rates, String> {
        let mut rates = Rates::default();
        Self::change(this, &mut rates)?;
        Ok(rates)
    }

    /// Changes posada's limit to what this one sets.
    ///
    /// # Errors
    /// posada has no such limit.
    pub fn change(this: Option<Self>, rates: &mut Rates) -> Result<(), String> {
        let Self { bandwidth, ops } = this.unwrap_or_default();
        if let Some(bucket) = bandwidth {
            rates.bytes = bucket.rate()?;
        }
        if let Some(bucket) = ops {
            rates.operations = bucket.rate()?;
        }
        Ok(())
    }

    /// Firecracker's for posada's.
    pub fn of(rates: Rates) -> Option<Self> {
        let limiter = Self {
            bandwidth: rates.bytes.map(TokenBucket::of),
            ops: rates.operations.map(TokenBucket::of),
        };
        (limiter != Self::default()).then_some(limiter)
    }
}

impl TokenBucket {
    /// So many in a second, at once, and once. A bucket without room, or one that is always full, limits nothing, as in Firecracker.
    fn rate(self) -> Result<Option<Rate>, String> {
        if self.size == 0 || self.refill_time == 0 {
            return Ok(None);
        }
        let per_second = u128::from(self.size) * 1000 / u128::from(self.refill_time);
        match u64::try_from(per_second) {
            Ok(0) => Err(
                "the rate limiter lets less than one pass in a second: give a smaller refill_time".to_owned(),
            ),
            Ok(per_second) => Ok(Some(Rate {
                per_second,
                burst: self.size,
                once: self.one_time_burst.unwrap_or(0),
            })),
            Err(_) => Ok(None),
        }
    }

    fn of(rate: Rate) -> Self {
        let refill_time = u128::from(rate.burst) * 1000 / u128::from(rate.per_second.max(1));
        Self {
            size: rate.burst,
            one_time_burst: (rate.once != 0).then_some(rate.once),
            refill_time: u64::try_from(refill_time).unwrap_or(u64::MAX).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_time: u64) -> TokenBucket {
        TokenBucket {
            size,
            one_time_burst: None,
            refill_time,
        }
    }

    #[test]
    fn a_bucket_is_a_rate_and_a_burst_and_back() {
        let limiter = RateLimiter {
            bandwidth: Some(bucket(10 << 20, 100)),
            ops: Some(TokenBucket {
                one_time_burst: Some(7),
                ..bucket(500, 1000)
            }),
        };
        let rates = Rates {
            bytes: Some(Rate {
                per_second: 100 << 20,
                burst: 10 << 20,
                once: 0,
            }),
            operations: Some(Rate {
                per_second: 500,
                burst: 500,
                once: 7,
            }),
        };
        assert_eq!(RateLimiter::rates(Some(limiter)), Ok(rates));
        assert_eq!(RateLimiter::of(rates), Some(limiter));
    }

    #[test]
    fn a_change_leaves_what_it_does_not_set() {
        let of = |bandwidth, ops| Some(RateLimiter { bandwidth, ops });
        let mut rates = RateLimiter::rates(of(Some(bucket(10, 10)), Some(bucket(20, 10)))).unwrap();
        RateLimiter::change(of(None, Some(bucket(30, 10))), &mut rates).unwrap();
        assert_eq!(
            RateLimiter::of(rates),
            of(Some(bucket(10, 10)), Some(bucket(30, 10)))
        );
        RateLimiter::change(of(Some(bucket(0, 0)), None), &mut rates).unwrap();
        assert_eq!(RateLimiter::of(rates), of(None, Some(bucket(30, 10))));
    }

    #[test]
    fn a_bucket_without_room_or_time_limits_nothing() {
        let limiter = RateLimiter {
            bandwidth: Some(bucket(0, 100)),
            ops: Some(bucket(100, 0)),
        };
        assert_eq!(RateLimiter::rates(Some(limiter)), Ok(Rates::default()));
        assert_eq!(RateLimiter::of(Rates::default()), None);
    }

    #[test]
    fn less_than_one_in_a_second_is_refused() {
        let ops = Some(bucket(1, 1001));
        let limiter = RateLimiter {
            ops,
            ..Default::default()
        };
        assert!(RateLimiter::rates(Some(limiter)).is_err());
    }
}

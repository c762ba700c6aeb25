//! Firecracker's token buckets, as posada's rates and bursts.

use serde::{Deserialize, Serialize};

use super::object;
use crate::config::net::NetLimits;
use crate::config::{ByteRate, ByteSize};

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

/// The same as posada has it: so many in a second, so many at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a second.
    pub bandwidth: Option<ByteRate>,
    /// Bytes at once.
    pub bandwidth_burst: Option<ByteSize>,
    /// Operations in a second.
    pub ops: Option<u64>,
    /// Operations at once.
    pub ops_burst: Option<u64>,
}

impl From<Limits> for NetLimits {
    fn from(limits: Limits) -> Self {
        Self {
            bandwidth: limits.bandwidth,
            bandwidth_burst: limits.bandwidth_burst,
            pps: limits.ops,
            pps_burst: limits.ops_burst,
        }
    }
}

impl From<NetLimits> for Limits {
    fn from(limits: NetLimits) -> Self {
        Self {
            bandwidth: limits.bandwidth,
            bandwidth_burst: limits.bandwidth_burst,
            ops: limits.pps,
            ops_burst: limits.pps_burst,
        }
    }
}

impl RateLimiter {
    /// posada's limits for these; nothing is what none of them sets.
    ///
    /// # Errors
    /// posada has no such limit.
    pub fn limits(this: Option<Self>) -> Result<Limits, String> {
        let Self { bandwidth, ops } = this.unwrap_or_default();
        let (bandwidth, bandwidth_burst) = TokenBucket::rate(bandwidth)?.unzip();
        let (ops, ops_burst) = TokenBucket::rate(ops)?.unzip();
        Ok(Limits {
            bandwidth: bandwidth.map(ByteRate),
            bandwidth_burst: bandwidth_burst.map(ByteSize),
            ops,
            ops_burst,
        })
    }

    /// Firecracker's for posada's.
    pub fn of(limits: Limits) -> Option<Self> {
        let bandwidth = limits.bandwidth.map(|rate| rate.0);
        let bandwidth_burst = limits.bandwidth_burst.map(|size| size.0);
        let limiter = Self {
            bandwidth: TokenBucket::of(bandwidth, bandwidth_burst),
            ops: TokenBucket::of(limits.ops, limits.ops_burst),
        };
        (limiter != Self::default()).then_some(limiter)
    }
}

impl TokenBucket {
    /// So many in a second, and at once. A bucket without room, or one that is always full, limits nothing, as in Firecracker.
    ///
    /// # Errors
    /// posada has no such limit.
    pub fn rate(this: Option<Self>) -> Result<Option<(u64, u64)>, String> {
        let Some(bucket) = this.filter(|bucket| bucket.size != 0 && bucket.refill_time != 0) else {
            return Ok(None);
        };
        if bucket.one_time_burst.is_some_and(|burst| burst != 0) {
            return Err("posada has no one_time_burst: leave it out, or make the size larger".to_owned());
        }
        let per_second = u128::from(bucket.size) * 1000 / u128::from(bucket.refill_time);
        match u64::try_from(per_second) {
            Ok(0) => Err(
                "the rate limiter lets less than one pass in a second: give a smaller refill_time".to_owned(),
            ),
            Ok(per_second) => Ok(Some((per_second, bucket.size))),
            Err(_) => Ok(None),
        }
    }

    fn of(per_second: Option<u64>, burst: Option<u64>) -> Option<Self> {
        let per_second = per_second.filter(|rate| *rate != 0)?;
        let size = burst.unwrap_or((per_second / 10).max(1));
        let refill_time = u128::from(size) * 1000 / u128::from(per_second);
        Some(Self {
            size,
            one_time_burst: None,
            refill_time: u64::try_from(refill_time).unwrap_or(u64::MAX).max(1),
        })
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
            ops: Some(bucket(500, 1000)),
        };
        let limits = RateLimiter::limits(Some(limiter)).unwrap();
        assert_eq!(limits.bandwidth, Some(ByteRate(100 << 20)));
        assert_eq!(limits.bandwidth_burst, Some(ByteSize(10 << 20)));
        assert_eq!((limits.ops, limits.ops_burst), (Some(500), Some(500)));
        assert_eq!(RateLimiter::of(limits), Some(limiter));
    }

    #[test]
    fn a_bucket_without_room_or_time_limits_nothing() {
        let limiter = RateLimiter {
            bandwidth: Some(bucket(0, 100)),
            ops: Some(bucket(100, 0)),
        };
        assert_eq!(RateLimiter::limits(Some(limiter)), Ok(Limits::default()));
        assert_eq!(RateLimiter::of(Limits::default()), None);
    }

    #[test]
    fn what_posada_has_not_is_refused() {
        let ops = |bucket| RateLimiter {
            ops: Some(bucket),
            ..Default::default()
        };
        let once = TokenBucket {
            one_time_burst: Some(1),
            ..bucket(10, 10)
        };
        assert!(RateLimiter::limits(Some(ops(once))).is_err());
        assert!(RateLimiter::limits(Some(ops(bucket(1, 1001)))).is_err());
    }
}

//! What passes on a network in a second, and at once: the same each way, or not.

use devices::rate_limit::RateLimit;
use serde::{Deserialize, Serialize};

use super::NetConfig;
use crate::config::rate::{self, RateError};
use crate::config::{ByteRate, ByteSize};

/// Limits on one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NetLimits {
    /// Bytes in a second.
    pub bandwidth: Option<ByteRate>,
    /// Bytes at once.
    pub bandwidth_burst: Option<ByteSize>,
    /// Frames in a second.
    pub pps: Option<u64>,
    /// Frames at once.
    pub pps_burst: Option<u64>,
}

impl NetLimits {
    /// Checks all that can be checked without the host.
    pub(super) fn check(&self) -> Result<(), RateError> {
        let bandwidth = self.bandwidth.map(|rate| rate.0);
        let bandwidth_burst = self.bandwidth_burst.map(|size| size.0);
        rate::check(("bandwidth", bandwidth), ("bandwidth-burst", bandwidth_burst))?;
        rate::check(("pps", self.pps), ("pps-burst", self.pps_burst))
    }

    /// A limit that is so.
    pub fn limit(&self) -> RateLimit {
        rate::limit((self.bandwidth, self.bandwidth_burst), (self.pps, self.pps_burst))
    }
}

impl NetConfig {
    /// The limits on what the guest receives.
    pub fn rx_limits(&self) -> NetLimits {
        NetLimits {
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
            pps: self.pps,
            pps_burst: self.pps_burst,
        }
    }

    /// The limits on what the guest sends.
    pub fn tx_limits(&self) -> NetLimits {
        self.tx.unwrap_or_else(|| self.rx_limits())
    }

    /// The same with these limits.
    #[must_use]
    pub fn limited(self, rx: NetLimits, tx: NetLimits) -> Self {
        Self {
            bandwidth: rx.bandwidth,
            bandwidth_burst: rx.bandwidth_burst,
            pps: rx.pps,
            pps_burst: rx.pps_burst,
            tx: (tx != rx).then_some(tx),
            ..self
        }
    }
}

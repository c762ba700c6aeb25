//! What passes on a network in a second, at once, and once only: the same each way, or not.

use devices::rate_limit::Rates;
use serde::{Deserialize, Serialize};

use super::NetConfig;
use crate::config::rate::{self, RateError};
use crate::config::words::{Word, WordError};
use crate::config::{ByteRate, ByteSize};

/// Limits on one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NetLimits {
    /// Bytes in a second.
    pub bandwidth: Option<ByteRate>,
    /// Bytes at once.
    pub bandwidth_burst: Option<ByteSize>,
    /// Bytes beside these, once.
    pub bandwidth_once: Option<ByteSize>,
    /// Frames in a second.
    pub pps: Option<u64>,
    /// Frames at once.
    pub pps_burst: Option<u64>,
    /// Frames beside these, once.
    pub pps_once: Option<u64>,
}

impl NetLimits {
    /// Takes what `word` says, which is called `key` here. False: it says nothing of limits.
    pub(super) fn read(&mut self, key: &str, word: &Word) -> Result<bool, WordError> {
        match key {
            "bandwidth" => self.bandwidth = Some(word.value()?),
            "bandwidth-burst" => self.bandwidth_burst = Some(word.value()?),
            "bandwidth-once" => self.bandwidth_once = Some(word.value()?),
            "pps" => self.pps = Some(word.value()?),
            "pps-burst" => self.pps_burst = Some(word.value()?),
            "pps-once" => self.pps_once = Some(word.value()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks all that can be checked without the host.
    pub(super) fn check(&self) -> Result<(), RateError> {
        rate::check(
            ("bandwidth", self.bandwidth.map(|rate| rate.0)),
            ("bandwidth-burst", self.bandwidth_burst.map(|size| size.0)),
            ("bandwidth-once", self.bandwidth_once.map(|size| size.0)),
        )?;
        rate::check(
            ("pps", self.pps),
            ("pps-burst", self.pps_burst),
            ("pps-once", self.pps_once),
        )
    }

    fn rates(&self) -> Rates {
        Rates {
            bytes: rate::rate(
                self.bandwidth.map(|rate| rate.0),
                self.bandwidth_burst.map(|size| size.0),
                self.bandwidth_once.map(|size| size.0),
            ),
            operations: rate::rate(self.pps, self.pps_burst, self.pps_once),
        }
    }

    fn written(rates: Rates) -> Self {
        let (bandwidth, bandwidth_burst, bandwidth_once) = rate::written(rates.bytes);
        let (pps, pps_burst, pps_once) = rate::written(rates.operations);
        Self {
            bandwidth: bandwidth.map(ByteRate),
            bandwidth_burst: bandwidth_burst.map(ByteSize),
            bandwidth_once: bandwidth_once.map(ByteSize),
            pps,
            pps_burst,
            pps_once,
        }
    }
}

impl NetConfig {
    /// The limit on what the guest receives.
    pub fn rx_limit(&self) -> Rates {
        self.limits().rates()
    }

    /// The limit on what the guest sends.
    pub fn tx_limit(&self) -> Rates {
        self.tx.unwrap_or_else(|| self.limits()).rates()
    }

    /// What is said for both ways, or for what the guest receives.
    pub(super) fn limits(&self) -> NetLimits {
        NetLimits {
            bandwidth: self.bandwidth,
            bandwidth_burst: self.bandwidth_burst,
            bandwidth_once: self.bandwidth_once,
            pps: self.pps,
            pps_burst: self.pps_burst,
            pps_once: self.pps_once,
        }
    }

    /// The same with these limits.
    #[must_use]
    pub fn limited(self, rx: Rates, tx: Rates) -> Self {
        Self {
            tx: (tx != rx).then(|| NetLimits::written(tx)),
            ..self.with_limits(NetLimits::written(rx))
        }
    }

    pub(super) fn with_limits(self, limits: NetLimits) -> Self {
        Self {
            bandwidth: limits.bandwidth,
            bandwidth_burst: limits.bandwidth_burst,
            bandwidth_once: limits.bandwidth_once,
            pps: limits.pps,
            pps_burst: limits.pps_burst,
            pps_once: limits.pps_once,
            ..self
        }
    }
}

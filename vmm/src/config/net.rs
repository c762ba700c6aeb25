//! A network as its user describes it: `--net tap=NAME,key=value,...`, `--net user,...`, or a `[[net]]` table.

mod address;
mod forward;
mod limits;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::rate::RateError;
use super::words::{self, WordError};
use super::{ByteRate, ByteSize};

pub use address::{MacAddress, MacError};
pub use forward::{Forward, ForwardError, Protocol};
pub use limits::NetLimits;

/// For the help text.
pub const SYNTAX: &str = "tap=NAME|user[,key=value...]";
const WORDS: &str = "id, mac, mtu, queues, forward, bandwidth, bandwidth-burst, bandwidth-once, pps, pps-burst, \
    pps-once, and with tx- before them (tx-bandwidth ...) the limits for what is sent";
/// As many pairs of queues as a guest of this size can use; each has a thread.
const MAX_QUEUES: u16 = 8;
/// virtio 1.3 §5.1.4.1: a device gives no smaller one.
const MIN_MTU: u16 = 68;
/// Linux's IFNAMSIZ, without the NUL.
const MAX_TAP_NAME: usize = 15;

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct NetConfig {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The tap that the network is on.
    pub tap: Option<String>,
    /// A network in user space instead, by passt.
    pub user: bool,
    /// The guest's address.
    pub mac: Option<MacAddress>,
    /// Bytes that a frame carries.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub queues: Option<u16>,
    /// Ports of the host's that lead to the guest.
    pub forward: Vec<Forward>,
    /// Bytes in a second, each way.
    pub bandwidth: Option<ByteRate>,
    /// Bytes at once.
    pub bandwidth_burst: Option<ByteSize>,
    /// Bytes beside these, once.
    pub bandwidth_once: Option<ByteSize>,
    /// Frames in a second, each way.
    pub pps: Option<u64>,
    /// Frames at once.
    pub pps_burst: Option<u64>,
    /// Frames beside these, once.
    pub pps_once: Option<u64>,
    /// What the guest sends has these limits, and the ones above are for what it receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx: Option<NetLimits>,
}

/// What is wrong with a network's description.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NetConfigError {
    /// Neither of the two kinds, or both.
    #[error("a network is either tap=NAME or user")]
    Kind,
    /// A name that no interface can have.
    #[error("'{0}' is no name of a tap: use 1 to {MAX_TAP_NAME} characters without blanks, '/', ':' and '%'")]
    TapName(String),
    /// No queues, or too many.
    #[error("{0} queues: a network has 1 to {MAX_QUEUES} pairs")]
    Queues(u16),
    /// Several queues where there is one.
    #[error("a user network has one pair of queues: leave out queues=")]
    UserQueues,
    /// Too small for any network.
    #[error("an MTU of {0}: it must be {MIN_MTU} to 65535 bytes")]
    Mtu(u16),
    /// A tap has no ports.
    #[error("forward= is for user networks: what comes to a tap, the host's own network sends there")]
    TapForward,
    /// One port to two places.
    #[error("{0} is forwarded twice: give each host port once")]
    ForwardTwice(String),
    /// A rate or burst that cannot be.
    #[error(transparent)]
    Rate(#[from] RateError),
}

impl FromStr for NetConfig {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, words) = words::split_repeating(text, "tap=NAME or user", "forward")?;
        let (mut net, mut limits) = (Self::default(), NetLimits::default());
        match kind.split_once('=') {
            Some(("tap", name)) => net.tap = Some(name.to_owned()),
            None if kind == "user" => net.user = true,
            _ => return Err(WordError::NoFirst("tap=NAME or user")),
        }
        for word in words {
            match word.key() {
                "id" => net.id = Some(word.value()?),
                "mac" => net.mac = Some(word.value()?),
                "mtu" => net.mtu = Some(word.value()?),
                "queues" => net.queues = Some(word.value()?),
                "forward" => net.forward.push(word.value()?),
                key => {
                    let (limits, key) = match key.strip_prefix("tx-") {
                        Some(key) => (net.tx.get_or_insert_default(), key),
                        None => (&mut limits, key),
                    };
                    if !limits.read(key, &word)? {
                        return Err(word.unknown(WORDS));
                    }
                }
            }
        }
        Ok(net.with_limits(limits))
    }
}

impl NetConfig {
    /// What it is called: its id, or the number that it has among those of its guest.
    pub fn label(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("net{index}"))
    }

    /// Checks all that can be checked without the host.
    pub fn check(&self) -> Result<(), NetConfigError> {
        match &self.tap {
            Some(_) if self.user => return Err(NetConfigError::Kind),
            Some(name) => self.check_tap(name)?,
            None if self.user => self.check_user()?,
            None => return Err(NetConfigError::Kind),
        }
        if self.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(NetConfigError::Mtu(self.mtu()));
        }
        self.limits().check()?;
        Ok(self.tx.unwrap_or_default().check()?)
    }

    fn check_tap(&self, name: &str) -> Result<(), NetConfigError> {
        // Linux, net/core/dev.c, dev_valid_name; '%' would have the kernel choose a number.
        let fits = (1..=MAX_TAP_NAME).contains(&name.len())
            && name != "."
            && name != ".."
            && name.bytes().all(|c| c.is_ascii_graphic() && !b"/:%".contains(&c));
        if !fits {
            return Err(NetConfigError::TapName(name.to_owned()));
        }
        if !self.forward.is_empty() {
            return Err(NetConfigError::TapForward);
        }
        if !(1..=MAX_QUEUES).contains(&self.queues()) {
            return Err(NetConfigError::Queues(self.queues()));
        }
        Ok(())
    }

    fn check_user(&self) -> Result<(), NetConfigError> {
        if self.queues() != 1 {
            return Err(NetConfigError::UserQueues);
        }
        for (index, forward) in self.forward.iter().enumerate() {
            if self.forward[..index]
                .iter()
                .any(|other| other.clashes_with(forward))
            {
                return Err(NetConfigError::ForwardTwice(forward.host_side()));
            }
        }
        Ok(())
    }

    /// Pairs of queues.
    pub fn queues(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    fn mtu(&self) -> u16 {
        self.mtu.unwrap_or_default()
    }
}

impl fmt::Display for NetConfig {
    /// What the network is to its user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tap.as_deref().unwrap_or("user"))
    }
}

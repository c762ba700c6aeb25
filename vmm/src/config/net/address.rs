//! A guest's address in a network: given by the user, or derived from the guest's name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::words;

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no [`MacAddress`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MacError {
    /// It does not look like one.
    #[error("'{0}' is no MAC address: write six pairs of hexadecimal digits, such as 02:00:00:00:00:01")]
    Malformed(String),
    /// It is a group's.
    #[error("'{0}' is the address of a group: a guest's must be unicast, its first byte even")]
    Multicast(String),
    /// It is nobody's.
    #[error("'{0}' is nobody's address")]
    Zero(String),
}

/// IEEE 802, 8.2: the address is of a group.
const GROUP: u8 = 1 << 0;
/// IEEE 802, 8.4: the address is not a manufacturer's.
const LOCAL: u8 = 1 << 1;

impl MacAddress {
    /// The address of network number `index` of the guest `name`: the same each time, and locally administered.
    pub fn derived(name: &str, index: usize) -> Self {
        // FNV-1a: for a hash that is the same in every version of posada, and in nobody's interest to attack.
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let text = format!("{name}/{index}");
        let hash = text.bytes().fold(OFFSET_BASIS, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        let [a, b, c, d, e, f, ..] = hash.to_be_bytes();
        Self([a & !GROUP | LOCAL, b, c, d, e, f])
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs
                .next()
                .filter(|pair| pair.len() == 2)
                .ok_or_else(malformed)?;
            // from_str_radix takes a sign, too.
            if !pair.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        if pairs.next().is_some() {
            return Err(malformed());
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero(text.to_owned()));
        }
        if bytes[0] & GROUP != 0 {
            return Err(MacError::Multicast(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

words::is_text!(MacAddress, MacError);

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

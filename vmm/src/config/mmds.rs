//! The metadata service as its user describes it: `--mmds net=ID,version=V2,...` or an `[mmds]` table.

use std::net::Ipv4Addr;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::NetConfig;
use super::words::{self, WordError};

/// For the help text.
pub const SYNTAX: &str = "net=ID[,key=value...]";
const WORDS: &str = "net, version, address and imds-compat";
/// Where programs look for such a service.
const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The metadata service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MmdsConfig {
    /// The networks that it is on, by their ids.
    #[serde(rename = "net")]
    pub nets: Vec<String>,
    /// What of a guest it wants.
    pub version: Option<MmdsVersion>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Whether it answers in the same format whatever is asked for, as EC2's does.
    pub imds_compat: bool,
}

/// What the service wants of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
pub enum MmdsVersion {
    /// Nothing.
    #[default]
    #[value(name = "V1")]
    V1,
    /// A token, which it gives.
    #[value(name = "V2")]
    V2,
}

/// What is wrong with such a description.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MmdsConfigError {
    /// No network.
    #[error("it is on no network: give net=ID for each that it is to be on")]
    NoNet,
    /// A network that there is not.
    #[error("there is no network '{0}': give one the id, as in --net tap=tap0,id=eth0")]
    NoSuchNet(String),
    /// A network of several queues.
    #[error("the network '{0}' has several pairs of queues: leave out its queues=")]
    Queues(String),
    /// An address that others may have.
    #[error("an address of {0}: it must be a link-local one, 169.254.1.0 to 169.254.254.255")]
    Address(Ipv4Addr),
}

impl FromStr for MmdsVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ValueEnum::from_str(text, false).map_err(|_| format!("'{text}' is none: give V1 or V2"))
    }
}

impl FromStr for MmdsConfig {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut mmds = Self::default();
        for word in words::list_repeating(text, "net")? {
            match word.key() {
                "net" => mmds.nets.push(word.value()?),
                "version" => mmds.version = Some(word.value()?),
                "address" => mmds.address = Some(word.value()?),
                "imds-compat" => mmds.imds_compat = word.flag()?,
                _ => return Err(word.unknown(WORDS)),
            }
        }
        Ok(mmds)
    }
}

impl MmdsConfig {
    /// Checks it, for a guest with these networks.
    ///
    /// # Errors
    /// It cannot be.
    pub fn check(&self, nets: &[NetConfig]) -> Result<(), MmdsConfigError> {
        // RFC 3927 §2.1: the first and the last 256 of the prefix are reserved.
        let [169, 254, 1..=254, _] = self.address().octets() else {
            return Err(MmdsConfigError::Address(self.address()));
        };
        if self.nets.is_empty() {
            return Err(MmdsConfigError::NoNet);
        }
        for id in &self.nets {
            let mut labelled = nets.iter().enumerate();
            match labelled.find(|(index, net)| net.label(*index) == *id) {
                None => return Err(MmdsConfigError::NoSuchNet(id.clone())),
                // What comes on one pair of queues is not known to belong to what comes on another.
                Some((_, net)) if net.queues() != 1 => return Err(MmdsConfigError::Queues(id.clone())),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What it wants of who asks.
    pub fn version(&self) -> MmdsVersion {
        self.version.unwrap_or_default()
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address.unwrap_or(DEFAULT_ADDRESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets() -> Vec<NetConfig> {
        let nets = ["tap=t0,id=eth0", "tap=t1", "tap=t2,id=wide,queues=2"];
        nets.map(|net| net.parse().unwrap()).into()
    }

    #[test]
    fn flag_and_table_say_the_same_things() {
        let flag = "net=eth0,net=net1,version=V2,address=169.254.170.2,imds-compat";
        let table = "
            net = ['eth0', 'net1']
            version = 'V2'
            address = '169.254.170.2'
            imds-compat = true
        ";
        let mmds: MmdsConfig = flag.parse().unwrap();
        assert_eq!(toml::from_str::<MmdsConfig>(table).unwrap(), mmds);
        mmds.check(&nets()).unwrap();
    }

    #[test]
    fn a_network_is_enough() {
        let mmds: MmdsConfig = "net=eth0".parse().unwrap();
        mmds.check(&nets()).unwrap();
        assert_eq!(mmds.version(), MmdsVersion::V1);
        assert_eq!(mmds.address(), Ipv4Addr::new(169, 254, 169, 254));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            ("", "''"),
            ("net", "net=..."),
            ("id=eth0", "'id'"),
            ("net=eth0,version=3", "'3'"),
            ("net=eth0,address=here", "address: "),
            ("net=eth0,imds-compat=yes", "imds-compat"),
        ] {
            let error = text.parse::<MmdsConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        for (text, named) in [
            ("version=V2", "no network"),
            ("net=eth1", "'eth1'"),
            ("net=eth0,net=wide", "'wide'"),
            ("net=eth0,address=10.0.0.1", "10.0.0.1"),
            ("net=eth0,address=169.254.0.1", "169.254.0.1"),
            ("net=eth0,address=169.254.255.1", "169.254.255.1"),
        ] {
            let mmds: MmdsConfig = text.parse().unwrap();
            let error = mmds.check(&nets()).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}

//! A port of the host's that leads to one of the guest's: `tcp:[ADDRESS:]HOSTPORT:GUESTPORT`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::words;

/// What is sent through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port that is forwarded to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// What is sent through.
    pub protocol: Protocol,
    /// The host's address that it is open on.
    pub address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
}

/// A text that is no [`Forward`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ForwardError {
    /// It does not look like one.
    #[error(
        "'{0}' does not say what to forward: write tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT, with ADDRESS: before \
         HOSTPORT for another of the host's addresses than 127.0.0.1"
    )]
    Malformed(String),
    /// Something that is no port.
    #[error("'{0}' is no port: a port is 1 to 65535")]
    Port(String),
    /// Something that is no address.
    #[error("'{0}' is no address: write one like 127.0.0.1 or [::1]")]
    Address(String),
}

impl Forward {
    /// Whether both want the same port of the host's.
    pub fn clashes_with(&self, other: &Self) -> bool {
        (self.protocol, self.address, self.host_port) == (other.protocol, other.address, other.host_port)
    }

    /// The host's side, for the user.
    pub fn host_side(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        format!("{protocol} port {} of {}", self.host_port, self.address)
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ForwardError::Malformed(text.to_owned());
        let (protocol, rest) = text.split_once(':').ok_or_else(malformed)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(malformed()),
        };
        let (host, guest_port) = rest.rsplit_once(':').ok_or_else(malformed)?;
        let (address, host_port) = match host.rsplit_once(':') {
            Some((address, port)) => (parse_address(address)?, port),
            None => (Ipv4Addr::LOCALHOST.into(), host),
        };
        Ok(Self {
            protocol,
            address,
            host_port: parse_port(host_port)?,
            guest_port: parse_port(guest_port)?,
        })
    }
}

fn parse_port(text: &str) -> Result<u16, ForwardError> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| ForwardError::Port(text.to_owned()))
}

/// An IPv6 address is in brackets, as its colons would be taken for ours.
fn parse_address(text: &str) -> Result<IpAddr, ForwardError> {
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match v6 {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    };
    address.ok_or_else(|| ForwardError::Address(text.to_owned()))
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let (host_port, guest_port) = (self.host_port, self.guest_port);
        match self.address {
            IpAddr::V4(address) => write!(f, "{protocol}:{address}:{host_port}:{guest_port}"),
            IpAddr::V6(address) => write!(f, "{protocol}:[{address}]:{host_port}:{guest_port}"),
        }
    }
}

words::is_text!(Forward, ForwardError);

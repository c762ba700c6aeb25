//! `/mmds` and `/mmds/config`: the metadata service, and what it tells the guest.

use std::net::Ipv4Addr;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Outcome;
use crate::api::reply::Reply;
use crate::config::{MmdsConfig, MmdsConfigError, MmdsVersion, NetConfig};
use crate::mmds::{Metadata, MetadataError};

/// The service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mmds {
    #[serde(default)]
    version: MmdsVersion,
    network_interfaces: Vec<String>,
    ipv4_address: Option<Ipv4Addr>,
    #[serde(default)]
    imds_compat: bool,
}

impl Mmds {
    /// Whether it is the version that will go.
    pub fn is_deprecated(&self) -> bool {
        self.version == MmdsVersion::V1
    }

    /// The service as posada has it.
    pub fn mmds(&self) -> MmdsConfig {
        MmdsConfig {
            nets: self.network_interfaces.clone(),
            version: Some(self.version),
            address: self.ipv4_address,
            imds_compat: self.imds_compat,
        }
    }

    /// Firecracker's for posada's.
    pub fn of(mmds: &MmdsConfig) -> Self {
        Self {
            version: mmds.version(),
            network_interfaces: mmds.nets.clone(),
            ipv4_address: Some(mmds.address()),
            imds_compat: mmds.imds_compat,
        }
    }

    /// Checks it, for a guest with these networks.
    ///
    /// # Errors
    /// It cannot be: why, in Firecracker's words.
    pub fn check(&self, nets: &[NetConfig]) -> Result<(), String> {
        self.mmds().check(nets).map_err(|error| {
            match error {
                MmdsConfigError::Address(_) => "The MMDS IPv4 address is not link local.",
                MmdsConfigError::NoNet => {
                    "The list of network interface IDs that allow forwarding MMDS requests is empty."
                }
                MmdsConfigError::NoSuchNet(_) | MmdsConfigError::Queues(_) => {
                    "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface."
                }
            }
            .to_owned()
        })
    }
}

/// What there is for the guest.
pub fn get(metadata: &Metadata) -> Reply {
    Reply::json(&match metadata.document() {
        None | Some(Value::Null) => json!({}),
        Some(document) => document,
    })
}

/// What the guest is told is to be this, or to be changed so.
pub fn set(done: Result<(), MetadataError>) -> Outcome {
    match done {
        Ok(()) => Ok(Reply::done()),
        Err(error @ MetadataError::TooLarge) => {
            Err(Reply::fault(format!("MMDS limit exceeded error: {error}"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Err(error @ MetadataError::None) => Err(Reply::fault(format!("MMDS error: {error}"))),
    }
}

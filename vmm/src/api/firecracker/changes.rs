//! What is changed of a guest that has been started: `PATCH` of drives, networks and the balloon; and the balloon's statistics.

use std::collections::BTreeMap;
use std::path::PathBuf;

use devices::virtio::balloon::{PAGE_SIZE, Statistics};
use serde::{Deserialize, Serialize};

use super::devices::{drives_of, interfaces_of};
use super::object;
use super::rate::RateLimiter;
use crate::config::ByteSize;
use crate::vm::{ChangeError, RunningVm};

/// What is to be another of a drive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// Its name.
    pub drive_id: String,
    path_on_host: Option<PathBuf>,
    #[serde(default, deserialize_with = "object::optional")]
    rate_limiter: Option<RateLimiter>,
}

/// What is to be another of a network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceUpdate {
    /// Its name.
    pub iface_id: String,
    #[serde(default, deserialize_with = "object::optional")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, deserialize_with = "object::optional")]
    tx_rate_limiter: Option<RateLimiter>,
}

/// The balloon's size.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    amount_mib: u32,
}

/// How often the guest is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsUpdate {
    stats_polling_interval_s: u16,
}

/// What the guest says of its memory: bytes and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BalloonStatistics {
    target_pages: u64,
    actual_pages: u64,
    target_mib: u64,
    actual_mib: u64,
    /// By its name; what it does not say is not there.
    #[serde(flatten)]
    said: BTreeMap<&'static str, u64>,
}

/// What Firecracker calls what the guest says, in the order of [`Statistics`].
const NAMES: [&str; 10] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
];

impl DriveUpdate {
    /// Changes the drive.
    ///
    /// # Errors
    /// It is not there, or cannot be so.
    pub fn apply(&self, vm: &RunningVm) -> Result<(), String> {
        let config = vm.config();
        let index = drives_of(&config)
            .iter()
            .position(|drive| drive.drive_id == self.drive_id);
        let index = index.ok_or_else(|| format!("there is no drive '{}'", self.drive_id))?;
        let mut disk = config.disks[index].clone();
        if let Some(path) = &self.path_on_host {
            disk.path.clone_from(path);
        }
        let mut limit = disk.limit();
        RateLimiter::change(self.rate_limiter, &mut limit)?;
        let anew = self.path_on_host.is_some();
        vm.change_disk(index, disk.limited(limit), anew)
            .map_err(|error| error.to_string())
    }
}

impl InterfaceUpdate {
    /// Changes the network.
    ///
    /// # Errors
    /// It is not there, or cannot be so.
    pub fn apply(&self, vm: &RunningVm) -> Result<(), String> {
        let config = vm.config();
        let mut interfaces = interfaces_of(&config).into_iter();
        let index = interfaces.position(|interface| interface.iface_id == self.iface_id);
        let index = index.ok_or_else(|| format!("there is no network interface '{}'", self.iface_id))?;
        let net = config.nets[index].clone();
        let (mut rx, mut tx) = (net.rx_limit(), net.tx_limit());
        RateLimiter::change(self.rx_rate_limiter, &mut rx)?;
        RateLimiter::change(self.tx_rate_limiter, &mut tx)?;
        vm.change_net(index, net.limited(rx, tx))
            .map_err(|error| error.to_string())
    }
}

impl BalloonUpdate {
    /// Asks the guest for it.
    ///
    /// # Errors
    /// It has no balloon, or not that much memory.
    pub fn apply(&self, vm: &RunningVm) -> Result<(), String> {
        let size = ByteSize(u64::from(self.amount_mib) << 20);
        vm.resize_balloon(size).map_err(|error| error.to_string())
    }
}

impl StatisticsUpdate {
    /// Asks the guest so often.
    ///
    /// # Errors
    /// It is not asked at all, and is not to be.
    pub fn apply(&self, vm: &RunningVm) -> Result<(), String> {
        let seconds = self.stats_polling_interval_s.into();
        vm.ask_balloon_every(seconds).map_err(|error| error.to_string())
    }
}

impl BalloonStatistics {
    /// Of this guest.
    ///
    /// # Errors
    /// It is not asked.
    pub fn of(vm: &RunningVm) -> Result<Self, ChangeError> {
        let (target, actual, Statistics(said)) = vm.balloon_statistics()?;
        let said = NAMES.into_iter().zip(said);
        let mib = |pages: u32| (u64::from(pages) * PAGE_SIZE) >> 20;
        Ok(Self {
            target_pages: target.into(),
            actual_pages: actual.into(),
            target_mib: mib(target),
            actual_mib: mib(actual),
            said: said.filter_map(|(name, said)| Some((name, said?))).collect(),
        })
    }
}

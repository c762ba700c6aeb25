//! `/drives`, `/network-interfaces`, `/vsock`, `/balloon`, `/entropy` and `/serial`: Firecracker's devices, as posada's.

use std::path::PathBuf;

use devices::disk::EngineKind;
use devices::rate_limit::Rates;
use serde::{Deserialize, Serialize};

use super::object;
use super::rate::{RateLimiter, TokenBucket};
use crate::config::disk::{EngineName, Format};
use crate::config::net::MacAddress;
use crate::config::{BalloonConfig, ByteSize, DiskConfig, NetConfig, VmConfig, VsockConfig};

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its name, which the guest sees as its serial number.
    pub drive_id: String,
    /// The partition that the guest's root file system is on, if it is on this disk.
    pub partuuid: Option<String>,
    /// Whether the guest's root file system is on it.
    pub is_root_device: bool,
    /// Whether the guest's flushes reach the disk: in posada they do.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest must not write.
    pub is_read_only: Option<bool>,
    /// The image.
    pub path_on_host: Option<PathBuf>,
    /// Limits on what passes.
    #[serde(default, deserialize_with = "object::optional")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the image is read and written.
    pub io_engine: Option<IoEngine>,
    /// A vhost-user backend's socket.
    pub socket: Option<PathBuf>,
}

/// What becomes of flushes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// They may be ignored.
    #[default]
    Unsafe,
    /// They reach the disk.
    Writeback,
}

/// How images are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// By system calls.
    Sync,
    /// By io_uring.
    Async,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Its name.
    pub iface_id: String,
    /// The tap that it is on.
    pub host_dev_name: String,
    /// The guest's address.
    pub guest_mac: Option<MacAddress>,
    /// Bytes that a frame carries.
    pub mtu: Option<u16>,
    /// Limits on what the guest receives.
    #[serde(default, deserialize_with = "object::optional")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits on what the guest sends.
    #[serde(default, deserialize_with = "object::optional")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Sockets between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Means nothing. Deprecated in Firecracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's address.
    pub guest_cid: u32,
    /// The Unix socket.
    pub uds_path: PathBuf,
}

/// A memory balloon.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// What the guest is to hand over, in MiB.
    pub amount_mib: u32,
    /// A guest that runs out of memory may take some back.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics; none for 0.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The guest tells what it has free when it is asked.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// The guest tells what it has free.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// Random numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// Limits on what passes.
    #[serde(default, deserialize_with = "object::optional")]
    pub rate_limiter: Option<RateLimiter>,
}

/// The serial console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The file or named pipe that it prints to, instead of standard output.
    pub serial_out_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "object::optional")]
    rate_limiter: Option<TokenBucket>,
}

impl Drive {
    /// The disk as posada has it.
    ///
    /// # Errors
    /// It has no such disk.
    pub fn disk(&self) -> Result<DiskConfig, String> {
        if self.socket.is_some() {
            return Err("posada has no vhost-user disks: give path_on_host instead of socket".to_owned());
        }
        let path = self
            .path_on_host
            .clone()
            .ok_or("a drive needs path_on_host, the path of its image")?;
        let disk = DiskConfig {
            path,
            readonly: self.is_read_only.unwrap_or(false),
            format: Some(Format::Raw),
            id: Some(self.drive_id.clone()),
            engine: self.io_engine.map(IoEngine::name),
            ..Default::default()
        };
        Ok(disk.limited(RateLimiter::rates(self.rate_limiter)?))
    }

    /// What the kernel is told of its root file system, if that is on this disk, which is the first then.
    pub fn root(&self) -> Option<String> {
        let device = match &self.partuuid {
            Some(partuuid) => format!("PARTUUID={partuuid}"),
            None => "/dev/vda".to_owned(),
        };
        let mode = if self.is_read_only == Some(true) {
            "ro"
        } else {
            "rw"
        };
        self.is_root_device.then(|| format!("root={device} {mode}"))
    }

    fn of(index: usize, disk: &DiskConfig) -> Self {
        Self {
            drive_id: disk.label(index),
            cache_type: CacheType::Writeback,
            is_read_only: Some(disk.readonly),
            path_on_host: Some(disk.path.clone()),
            rate_limiter: RateLimiter::of(disk.limit()),
            io_engine: disk.engine.map(IoEngine::of),
            ..Default::default()
        }
    }
}

impl IoEngine {
    fn name(self) -> EngineName {
        EngineName(match self {
            Self::Sync => EngineKind::Sync,
            Self::Async => EngineKind::Uring,
        })
    }

    fn of(name: EngineName) -> Self {
        match name.0 {
            EngineKind::Sync => Self::Sync,
            EngineKind::Uring => Self::Async,
        }
    }
}

impl NetworkInterface {
    /// The network as posada has it.
    ///
    /// # Errors
    /// It has no such network.
    pub fn net(&self) -> Result<NetConfig, String> {
        let net = NetConfig {
            id: Some(self.iface_id.clone()),
            tap: Some(self.host_dev_name.clone()),
            mac: self.guest_mac,
            mtu: self.mtu,
            ..Default::default()
        };
        let rx = RateLimiter::rates(self.rx_rate_limiter)?;
        let tx = RateLimiter::rates(self.tx_rate_limiter)?;
        Ok(net.limited(rx, tx))
    }

    fn of(index: usize, config: &VmConfig, net: &NetConfig) -> Self {
        Self {
            iface_id: net.label(index),
            host_dev_name: net.tap.clone().unwrap_or_default(),
            guest_mac: Some(config.mac(index)),
            mtu: net.mtu,
            rx_rate_limiter: RateLimiter::of(net.rx_limit()),
            tx_rate_limiter: RateLimiter::of(net.tx_limit()),
        }
    }
}

impl Vsock {
    /// The same as posada has it.
    pub fn vsock(&self) -> VsockConfig {
        VsockConfig {
            path: Some(self.uds_path.clone()),
            cid: Some(self.guest_cid),
        }
    }

    /// Firecracker's for the one that a guest of posada's has.
    pub fn of(config: &VmConfig) -> Option<Self> {
        let vsock = config.vsock.as_ref()?;
        Some(Self {
            vsock_id: None,
            guest_cid: vsock.cid(),
            uds_path: vsock.socket(config.name()).unwrap_or_default().into_owned(),
        })
    }
}

impl Balloon {
    /// The balloon as posada has it.
    ///
    /// # Errors
    /// It has no such balloon.
    pub fn balloon(&self) -> Result<BalloonConfig, String> {
        if self.free_page_hinting {
            return Err("posada has no free page hinting: give free_page_reporting instead".to_owned());
        }
        let stats = self.stats_polling_interval_s;
        Ok(BalloonConfig {
            size: Some(ByteSize(u64::from(self.amount_mib) << 20)),
            deflate_on_oom: self.deflate_on_oom,
            free_page_reporting: self.free_page_reporting,
            stats: (stats != 0).then_some(stats.into()),
        })
    }

    /// Firecracker's for posada's.
    pub fn of(balloon: &BalloonConfig) -> Self {
        let mib = balloon.size.map_or(0, |size| size.0 >> 20);
        Self {
            amount_mib: mib.try_into().unwrap_or(u32::MAX),
            deflate_on_oom: balloon.deflate_on_oom,
            stats_polling_interval_s: balloon
                .stats
                .map_or(0, |every| every.try_into().unwrap_or(u16::MAX)),
            free_page_hinting: false,
            free_page_reporting: balloon.free_page_reporting,
        }
    }
}

impl Entropy {
    /// Checks that it asks for no limit.
    ///
    /// # Errors
    /// It does.
    pub fn check(&self) -> Result<(), String> {
        match RateLimiter::rates(self.rate_limiter)? == Rates::default() {
            true => Ok(()),
            false => Err("posada does not limit random numbers: leave out rate_limiter".to_owned()),
        }
    }
}

impl Serial {
    /// Checks that it asks for no limit.
    ///
    /// # Errors
    /// It does.
    pub fn check(&self) -> Result<(), String> {
        match self.rate_limiter {
            None => Ok(()),
            Some(_) => Err("posada does not limit the console: leave out rate_limiter".to_owned()),
        }
    }
}

/// Firecracker's drives for posada's disks.
pub fn drives_of(config: &VmConfig) -> Vec<Drive> {
    let disks = config.disks.iter().enumerate();
    disks.map(|(index, disk)| Drive::of(index, disk)).collect()
}

/// Firecracker's interfaces for posada's networks.
pub fn interfaces_of(config: &VmConfig) -> Vec<NetworkInterface> {
    let nets = config.nets.iter().enumerate();
    nets.map(|(index, net)| NetworkInterface::of(index, config, net))
        .collect()
}

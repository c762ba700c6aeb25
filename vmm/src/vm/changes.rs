//! What of a machine can be changed while it runs: a disk's image, limits on what passes, the balloon.
//!
//! The machine's configuration changes with it, so that its snapshots have what is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use devices::disk::{DiskError, Image};
use devices::virtio::balloon::{Balloon, PAGE_SIZE, Statistics};
use devices::virtio::{Difference, StateError};
use thiserror::Error;

use super::{RunningVm, Vm};
use crate::config::{ByteSize, ConfigError, DiskConfig, NetConfig, VmConfig};
use crate::mmds::Metadata;
use crate::vcpu::RequestError;
use crate::virtio::Placed;

/// Why something cannot be changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// It is not there.
    #[error("the guest has no {0}")]
    None(&'static str),
    /// There cannot be such a machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An image cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another image cannot take an overlay's place.
    #[error("what the guest has written to the disk '{0}' is in an overlay, which fits no other image")]
    Overlay(String),
    /// The guest would notice, and cannot be told.
    #[error("the guest's driver does not take this for the same disk: {0}")]
    Difference(Difference),
    /// The guest does not come to rest, or has ended.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// A device does not go on.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest was not to be asked, when it was started.
    #[error("the guest is not asked for statistics: give the balloon an interval before the guest starts")]
    NoStatistics,
}

impl Vm {
    /// What the metadata service tells the guest, if it has one.
    pub fn metadata(&self) -> &Metadata {
        &self.running.changeable.metadata
    }
}

impl RunningVm {
    /// Has disk number `index` be what `disk` says: another image, other limits. What is at the image's path by now is opened if
    /// `anew`, even if the path is as it was.
    ///
    /// # Errors
    /// It cannot be. The guest goes on with what it had.
    pub fn change_disk(&self, index: usize, disk: DiskConfig, anew: bool) -> Result<(), ChangeError> {
        let block = self.parts.changeable.disks.get(index);
        let block = block.ok_or(ChangeError::None("such disk"))?;
        let mut config = self.changed();
        let old = std::mem::replace(&mut config.disks[index], disk);
        config.check()?;
        let disk = &config.disks[index];
        let shown = block.device.image();
        let image = match anew && !is_at(&shown, &disk.path) {
            false => None,
            true if old.overlay.is_some() => return Err(ChangeError::Overlay(shown.to_string())),
            true => Some(Image::open(&disk.path, disk.image_options())?),
        };
        drop(shown);
        self.at_rest(block, |block| {
            image
                .map_or(Ok(()), |image| block.show(image))
                .map_err(ChangeError::Difference)?;
            block.set_limit(disk.limit());
            Ok(())
        })?;
        *self.lock_config() = Arc::new(config);
        Ok(())
    }

    /// Has network number `index` have the limits that `net` says.
    ///
    /// # Errors
    /// It cannot. The guest goes on with what it had.
    pub fn change_net(&self, index: usize, net: NetConfig) -> Result<(), ChangeError> {
        let device = self.parts.changeable.nets.get(index);
        let device = device.ok_or(ChangeError::None("such network"))?;
        let mut config = self.changed();
        config.nets[index] = net;
        config.check()?;
        let net = &config.nets[index];
        self.at_rest(device, |device| {
            device.set_limits(net.rx_limit(), net.tx_limit());
            Ok(())
        })?;
        *self.lock_config() = Arc::new(config);
        Ok(())
    }

    /// What the metadata service tells the guest, if it has one.
    pub fn metadata(&self) -> &Metadata {
        &self.parts.changeable.metadata
    }

    /// Asks the guest to hand over this much memory.
    ///
    /// # Errors
    /// It has no balloon, or not that much memory.
    pub fn resize_balloon(&self, size: ByteSize) -> Result<(), ChangeError> {
        let balloon = self.balloon()?;
        let mut config = self.changed();
        if let Some(balloon) = &mut config.balloon {
            balloon.size = Some(size);
        }
        config.check()?;
        balloon.device.resize(
            config
                .balloon
                .as_ref()
                .map_or(0, |balloon| balloon.options().pages),
        );
        *self.lock_config() = Arc::new(config);
        Ok(())
    }

    /// Asks the guest for statistics every so many seconds.
    ///
    /// # Errors
    /// It has no balloon, or is not asked at all.
    pub fn ask_balloon_every(&self, seconds: u64) -> Result<(), ChangeError> {
        let balloon = self.balloon()?;
        let mut config = self.changed();
        let stats = config.balloon.as_mut().and_then(|balloon| balloon.stats.as_mut());
        *stats.ok_or(ChangeError::NoStatistics)? = seconds;
        config.check()?;
        self.at_rest(balloon, |balloon| {
            balloon.ask_every(Duration::from_secs(seconds));
            Ok(())
        })?;
        *self.lock_config() = Arc::new(config);
        Ok(())
    }

    /// Pages of [`PAGE_SIZE`](devices::virtio::balloon::PAGE_SIZE) bytes that the guest is asked for, and has handed over; and what
    /// it said last of its memory.
    ///
    /// # Errors
    /// It has no balloon, or is not asked.
    pub fn balloon_statistics(&self) -> Result<(u32, u32, Statistics), ChangeError> {
        let balloon = self.balloon()?;
        let config = self.config();
        if config
            .balloon
            .as_ref()
            .is_none_or(|balloon| balloon.stats.is_none())
        {
            return Err(ChangeError::NoStatistics);
        }
        let (wanted, actual) = balloon.device.pages();
        Ok((wanted, actual, balloon.device.statistics().unwrap_or_default()))
    }

    /// Bytes that the guest is asked for, and has handed over, if it has a balloon.
    pub fn balloon_bytes(&self) -> Option<(u64, u64)> {
        let (wanted, actual) = self.balloon().ok()?.device.pages();
        Some((u64::from(wanted) * PAGE_SIZE, u64::from(actual) * PAGE_SIZE))
    }

    fn balloon(&self) -> Result<&Placed<Balloon>, ChangeError> {
        let balloon = self.parts.changeable.balloon.as_ref();
        balloon.ok_or(ChangeError::None("balloon"))
    }

    /// The configuration, to be changed.
    fn changed(&self) -> VmConfig {
        (*self.config()).clone()
    }

    /// Changes a device while all rest. It begins anew then, where its driver has come to.
    fn at_rest<D>(
        &self,
        placed: &Placed<D>,
        change: impl FnOnce(&D) -> Result<(), ChangeError>,
    ) -> Result<(), ChangeError> {
        let transport = &self.parts.virtio[placed.transport];
        self.pause()?;
        let changed = change(&placed.device).and_then(|()| Ok(transport.restore(transport.save())?));
        self.resume();
        changed
    }
}

/// Whether this image is still what is at the path.
fn is_at(image: &Image, path: &Path) -> bool {
    let open = image.base().unwrap_or(image.file()).metadata();
    let there = fs::metadata(path);
    match (open, there) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

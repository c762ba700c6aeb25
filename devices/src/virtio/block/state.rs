//! What a guest remembers of a disk, beside what is on it.

use serde::{Deserialize, Serialize};

use crate::disk::{Image, SECTOR};
use crate::virtio::Difference;

/// A disk as its driver found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Size in bytes.
    pub size: u64,
    /// What positions and lengths of requests are multiples of, in bytes.
    pub block: u32,
    /// Whether it can only be read.
    pub readonly: bool,
}

impl BlockState {
    pub(super) fn of(image: &Image) -> Self {
        Self {
            size: image.sectors() * u64::from(SECTOR),
            block: image.blocks().logical,
            readonly: image.options().readonly,
        }
    }

    /// Whether a driver of a disk in this state can go on with the disk `here`. Smaller blocks than it knows do it no harm.
    pub(super) fn check(&self, here: &Self) -> Result<(), Difference> {
        if self.size != here.size {
            Err(Difference::DiskSize {
                snapshot: self.size,
                here: here.size,
            })
        } else if here.block > self.block {
            Err(Difference::DiskBlock {
                snapshot: self.block,
                here: here.block,
            })
        } else if here.readonly && !self.readonly {
            Err(Difference::ReadOnly)
        } else if self.readonly && !here.readonly {
            Err(Difference::Writable)
        } else {
            Ok(())
        }
    }
}

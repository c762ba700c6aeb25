//! What a snapshot has of a device, and why it may not fit the device that is to go on from it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::balloon::BalloonState;
use super::block::BlockState;
use super::net::NetState;
use super::vsock::VsockState;

/// What the guest can see of a device beside its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A memory balloon.
    Balloon(BalloonState),
    /// A disk.
    Block(BlockState),
    /// A network.
    Net(NetState),
    /// A source of entropy, which keeps nothing.
    Rng,
    /// Sockets between guest and host.
    Vsock(VsockState),
}

/// A device is not the one that the snapshot was taken of.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the snapshot does not fit {device}: {difference}")]
pub struct StateError {
    /// The device as its user knows it.
    pub device: String,
    /// What is different.
    pub difference: Difference,
}

/// What is different between a device and the state of one in a snapshot, and what to do about it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Difference {
    /// Another type (§5).
    #[error(
        "in its place there was a device of type {snapshot}, and it is of type {here}; give the guest the same devices \
         in the same order"
    )]
    Type {
        /// `VIRTIO_ID_*` in the snapshot.
        snapshot: u32,
        /// `VIRTIO_ID_*` of the device.
        here: u32,
    },
    /// The state is of another kind of device than its own type says.
    #[error("the state is that of another kind of device; the snapshot is damaged")]
    Kind,
    /// Other queues.
    #[error(
        "its queues had room for {snapshot:?} entries, and have for {here:?}; give it as many queues as it had"
    )]
    Queues {
        /// The largest sizes in the snapshot, by queue index.
        snapshot: Vec<u16>,
        /// The same of the device.
        here: Vec<u16>,
    },
    /// Features that the guest uses.
    #[error(
        "the guest uses features that it does not offer here: {0:#x}; give it the options that it had, on a host that is \
         no older"
    )]
    Features(u64),
    /// A disk of another size.
    #[error(
        "it had {snapshot} bytes, and its image has {here}; give it the image as it was, or a copy of that"
    )]
    DiskSize {
        /// Bytes in the snapshot.
        snapshot: u64,
        /// Bytes of the image.
        here: u64,
    },
    /// A disk that the guest writes to and that cannot be written.
    #[error("the guest could write to it, and here it is read-only; give it an image to write to")]
    ReadOnly,
    /// A disk that the guest takes for read-only and that is not.
    #[error("the guest could only read it, and here it can be written to; make it read-only")]
    Writable,
    /// A disk whose blocks are larger than those that the guest knows.
    #[error(
        "its blocks had {snapshot} bytes, and its image takes only {here} at once; give it an image as it had"
    )]
    DiskBlock {
        /// Bytes in the snapshot.
        snapshot: u32,
        /// Bytes of a block of the image.
        here: u32,
    },
    /// A network whose frames may not be as long as the guest believes.
    #[error("its frames carried up to {snapshot} bytes, and carry {here}; give it mtu={snapshot}")]
    Mtu {
        /// Bytes in the snapshot.
        snapshot: u16,
        /// Bytes that a frame carries.
        here: u16,
    },
}

//! Sockets between guest and host (§5.10): streams between the guest's AF_VSOCK and Unix sockets of the host's.
//!
//! A host program that connects to the device's socket and says `CONNECT 1234` gets a stream to port 1234 of the guest; a
//! guest that connects to port 1234 of the host gets one to whoever listens at the socket's path with `_1234` behind it.
//! Data goes from socket to guest memory and back without a copy, unless a host program does not read what a guest sends.

mod backlog;
mod connection;
mod counts;
mod credit;
mod host;
mod notice;
pub(super) mod packet;
mod socket;
mod switchboard;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::{Activation, DeviceState, Difference, VirtioDevice, Worker, lock, read_config_bytes};
use crate::counters::{Counters, Sample};
use counts::Counts;
use notice::Notice;
use switchboard::{Cids, HostSide, Switchboard};
use worker::{Queues, VsockWorker};

pub use host::{BindError, MAX_PATH, SocketFile};

/// Feature bit VIRTIO_VSOCK_F_STREAM (§5.10.3).
const F_STREAM: u32 = 0;

/// The queues' indices (§5.10.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// What the worker waits for; connections from [`CONNECTIONS`](token::CONNECTIONS) on.
mod token {
    pub const RECEIVE: u32 = 0;
    pub const TRANSMIT: u32 = 1;
    pub const LISTENER: u32 = 2;
    pub const EVENT: u32 = 3;
    pub const PATIENCE: u32 = 4;
    pub const HANDSHAKES: u32 = 0x100;
    pub const CONNECTIONS: u32 = 0x200;
}

/// The socket device.
pub struct Vsock {
    cid: u64,
    host: Arc<HostSide>,
    /// The CID of the device that the driver had before this one: it is to be told.
    former_cid: Mutex<Option<u64>>,
    counts: Arc<Counts>,
}

impl Vsock {
    /// A device for the guest with this CID (3 to 2^32 - 2, §5.10.4), which host programs reach at `path`. The socket's
    /// name goes with what is returned beside it.
    ///
    /// # Errors
    /// `path` cannot be a socket of posada's.
    pub fn bind(path: &Path, cid: u32) -> Result<(Self, SocketFile), BindError> {
        let (listener, file) = host::listen(path)?;
        let host = Arc::new(HostSide {
            listener,
            path: path.to_owned(),
        });
        let cid = cid.into();
        let device = Self {
            cid,
            host,
            former_cid: Mutex::default(),
            counts: Arc::default(),
        };
        Ok((device, file))
    }

    fn former_cid(&self) -> MutexGuard<'_, Option<u64>> {
        lock(&self.former_cid)
    }
}

/// What a guest remembers of the device, beside streams, which a snapshot does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Its CID.
    pub cid: u64,
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn reset(&self) {
        *self.former_cid() = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState { cid: self.cid })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), Difference> {
        match state {
            DeviceState::Vsock(state) => {
                *self.former_cid() = Some(state.cid);
                Ok(())
            }
            _ => Err(Difference::Kind),
        }
    }

    fn start(&self, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let (receive, transmit) = (activation.take(RECEIVE)?, activation.take(TRANSMIT)?);
        let former_cid = self.former_cid().take();
        let cids = Cids {
            guest: self.cid,
            former: former_cid,
        };
        let switchboard = Switchboard::new(
            self.host.clone(),
            cids,
            activation.interrupt.clone(),
            self.counts.clone(),
        );
        let event = activation.take(EVENT).ok();
        let (event, notice) = match (event, former_cid) {
            (Some(queue), Some(_)) => (None, Some(Notice::new(queue)?)),
            (event, _) => (event, None),
        };
        let queues = Queues {
            receive,
            transmit,
            event,
            notice,
        };
        Ok(vec![Box::new(VsockWorker::new(queues, switchboard))])
    }

    fn counts(&self) -> Vec<Sample> {
        self.counts.read()
    }
}

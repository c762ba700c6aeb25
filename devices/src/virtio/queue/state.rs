//! Where a queue lies and where it has come to: what a snapshot has of it, and what it is made of.

use serde::{Deserialize, Serialize};

/// What is needed to go on with a queue: as its driver has set it up, with the positions that the device has come to.
///
/// Nothing in it is to be trusted, since a guest or a file says it: [`Queue::new`](super::Queue::new) checks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The most entries that the device allows.
    pub max_size: u16,
    /// The entries that the driver has chosen.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub ready: bool,
    /// Whether EVENT_IDX (§2.7.7) was agreed on.
    pub event_idx_enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Index of the chain in the available ring that is to be taken next.
    pub next_avail: u16,
    /// Index in the used ring that the next chain given back gets.
    pub next_used: u16,
}

impl From<QueueState> for virtio_queue::QueueState {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(state: virtio_queue::QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx_enabled: state.event_idx_enabled,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }
}

//! Virtio devices, and the contract between a device and the transport that shows it to the guest.
//!
//! "§" cites the virtio specification 1.3. Only what version 1 calls modern is spoken; there is no legacy interface.
//!
//! ```text
//!   guest driver          vCPU threads                    I/O threads
//!   registers  ──────▶  transport ── start(queues) ──▶  device ── workers ──▶ event loops
//!              ◀──────     │    ◀── queue states ─────────────────┘
//!   doorbell   ════ ioeventfd ═════════════════════════▶ worker ⇄ file, tap, socket
//!   interrupt  ◀═══ irqfd ═══════════════════════════════════┘
//! ```
//!
//! The **transport** ([`MmioTransport`]) owns the device status, feature negotiation, queue addresses and sizes, the
//! interrupt status and the configuration generation. It calls a device only by [`VirtioDevice`], and tells it
//! nothing of registers.
//!
//! The **device** owns what the guest sees of it (its features and configuration space) and its host backend. It hears
//! of its queues when [`VirtioDevice::start`] gives them to it, and makes [`Worker`]s of them.
//!
//! A **worker** serves one queue, or several that belong together, on an I/O thread. It shares no lock with the
//! vCPUs: what it tells the guest goes through [`Interrupt`], and it is taken off its thread to be brought to rest
//! ([`Worker::quiesce`]). From there it goes back on a thread, or is dropped.
//!
//! A **snapshot** has of a device what the guest can see of it: the transport's registers, the queues' positions and the
//! device's own [`DeviceState`]. Whatever the device has on the host is not in it, and what the guest sees of that
//! (sockets that are gone, another size) the device tells its driver when it goes on.

pub mod balloon;
pub mod block;
mod chain;
mod dirty;
mod interrupt;
mod mmio;
pub mod net;
mod poll;
mod queue;
pub mod rng;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;
mod worker;

pub use chain::Chain;
pub use dirty::DirtyMap;
pub use interrupt::{Interrupt, Trouble};
pub use mmio::{MMIO_SIZE, MmioTransport, NOTIFY_OFFSET, SignalsState, TransportState};
pub use poll::Poll;
pub use queue::{Queue, QueueCounts, QueueError, QueueParts, QueueState};
pub use state::{DeviceState, Difference, StateError};
pub use worker::{IoThreads, Worker, WorkerId, forget, watch};

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::counters::Sample;

/// The memory of one guest, which knows what was written to it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyMap>;

/// A virtio device, as its transport sees it.
///
/// Configuration accesses come from every vCPU at once, and [`start`](Self::start) and the workers' end from whichever
/// vCPU wrote the status: hence `&self`. The transport holds its lock over each of these calls, so none of them may wait
/// for a guest.
pub trait VirtioDevice: Send + Sync {
    /// What the device is to its user, for the log: "disk 'root'", "network 'tap0'".
    fn name(&self) -> &str;

    /// The device type (§5): `VIRTIO_ID_*`.
    fn id(&self) -> u32;

    /// The device's own feature bits (§2.2): 0 to 23 and 50 to 127. Those of the ring and the transport are the
    /// transport's to add. Constant.
    fn features(&self) -> u64;

    /// For each queue the largest size that it can have: a power of two. Constant.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space (§2.5) at `offset`, of any width. Bytes past its end are zero, which `data` is
    /// on entry. Called at any time.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Most of it is read-only; such writes are lost. Called at any time, with what a
    /// guest chose.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver has reset the device, whose workers have been stopped: what a driver can set in the configuration
    /// space goes back to what it was.
    fn reset(&self) {}

    /// The driver is ready (§3.1.1 step 8): makes the workers that will serve its queues.
    ///
    /// Called when the device does not run: first, or after all workers of the last start were quiesced and dropped. The queues
    /// lie in guest memory as a whole, which the transport has checked. A queue that the device cannot do without
    /// and that is not there is an [`ErrorKind::InvalidInput`](io::ErrorKind), as is whatever else the guest did
    /// wrong; any other error is the host's. After an error the device does not run and the transport has told
    /// the guest to reset it.
    fn start(&self, activation: Activation) -> io::Result<Vec<Box<dyn Worker>>>;

    /// What the guest can see of the device beside its queues, or has set. Called while the workers are quiet.
    fn save(&self) -> DeviceState;

    /// Takes the place of a device in that state. Called before [`start`](Self::start), which then is to go on with the
    /// driver that the state's device had: the queues stand where that one left them. If the guest would notice that
    /// it is another device, and can be told so, the device tells it once it has started.
    ///
    /// # Errors
    /// The guest would notice, and cannot be told. The device is not started then.
    fn restore(&self, state: &DeviceState) -> Result<(), Difference>;

    /// What it has done since its machine was made, beside what is counted of each queue. Called at any time.
    fn counts(&self) -> Vec<Sample>;
}

/// What a device is started with.
pub struct Activation {
    /// The feature bits that driver and device agreed on: a subset of those offered, with VERSION_1.
    pub features: u64,
    /// By queue index; `None` for those that the driver did not enable.
    pub queues: Vec<Option<Queue>>,
    /// How to tell the driver of changes in the configuration space. (Each queue has its own way to tell of itself.)
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Takes a queue that the device cannot do without.
    ///
    /// # Errors
    /// The driver did not enable it.
    pub fn take(&mut self, index: usize) -> io::Result<Queue> {
        let queue = self.queues.get_mut(index).and_then(Option::take);
        queue.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the driver did not enable queue {index}"),
            )
        })
    }

    /// Whether driver and device agreed on feature bit number `bit`.
    pub fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }
}

/// Locks a device's own state, which is whole between any two of its changes: a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fills `data` with the bytes of `config` from `offset` on; what lies past its end is left as it is.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let there = usize::try_from(offset)
        .ok()
        .and_then(|offset| config.get(offset..))
        .unwrap_or_default();
    let len = there.len().min(data.len());
    data[..len].copy_from_slice(&there[..len]);
}

//! Disks (§5.2): an image on the host, as one or more queues of requests.

mod config;
mod counts;
mod flushes;
pub mod request;
mod slots;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod throttle;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tracing::info;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{Activation, DeviceState, Difference, Queue, VirtioDevice, Worker, lock, read_config_bytes};
use crate::counters::{Counters, Sample};
use crate::disk::{Engine, EngineKind, Image};
use crate::rate_limit::{RateLimit, Rates};
use counts::Counts;
use request::ID_BYTES;
use worker::{BlockWorker, Setup};

pub use state::BlockState;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// The most queues that a disk can have.
pub const MAX_QUEUES: u16 = 16;
/// The largest DISCARD and WRITE_ZEROES: 64 MiB, so that one which has to be written out does not take long.
const EXTENT_SECTORS: u32 = 64 << 11;

/// What a disk is beside its image.
pub struct BlockOptions {
    /// The serial number, of which the guest sees the first 20 bytes.
    pub id: String,
    /// How the image is read and written; `None`: by io_uring where the kernel has it.
    pub engine: Option<EngineKind>,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// What all queues share.
    pub limit: Rates,
}

/// A disk.
pub struct Block {
    name: String,
    id: [u8; ID_BYTES],
    image: Mutex<Arc<Image>>,
    engine: Option<EngineKind>,
    limit: Mutex<Arc<RateLimit>>,
    queue_sizes: Vec<u16>,
    /// The driver knows another image, before it had this one: it is to be told.
    image_has_changed: AtomicBool,
    /// By queue index.
    counts: Vec<Arc<Counts>>,
}

impl Block {
    /// Shows `image` to a guest.
    pub fn new(image: Image, options: BlockOptions) -> Self {
        let mut id = [0; ID_BYTES];
        let len = options.id.len().min(ID_BYTES);
        id[..len].copy_from_slice(&options.id.as_bytes()[..len]);
        let name = if options.id.is_empty() {
            format!("disk {image}")
        } else {
            format!("disk '{}'", options.id)
        };
        let queues = usize::from(options.queues.clamp(1, MAX_QUEUES));
        Self {
            name,
            id,
            image: Mutex::new(Arc::new(image)),
            engine: options.engine,
            limit: Mutex::new(Arc::new(RateLimit::new(options.limit))),
            queue_sizes: vec![QUEUE_SIZE; queues],
            image_has_changed: AtomicBool::new(false),
            counts: (0..queues).map(|_| Arc::default()).collect(),
        }
    }

    /// What it shows.
    pub fn image(&self) -> Arc<Image> {
        lock(&self.image).clone()
    }

    /// Shows another image from the device's next start on. To be called while the device rests.
    ///
    /// # Errors
    /// The driver would notice, and cannot be told: all but the size must be as it was.
    pub fn show(&self, image: Image) -> Result<(), Difference> {
        let mut shown = lock(&self.image);
        let before = BlockState::of(&shown);
        let here = BlockState::of(&image);
        before.check(&BlockState {
            size: before.size,
            ..here
        })?;
        *shown = Arc::new(image);
        self.image_has_changed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Limits what passes like this from the device's next start on.
    pub fn set_limit(&self, rates: Rates) {
        let mut limit = lock(&self.limit);
        *limit = Arc::new(limit.changed(rates));
    }

    fn queues(&self) -> u16 {
        self.queue_sizes.len() as u16
    }

    /// The engine that was asked for, or the best that there is.
    fn engine(&self, in_flight: u16) -> io::Result<Engine> {
        let image = self.image();
        let new = |kind| Engine::new(kind, &image, in_flight);
        match self.engine {
            Some(kind) => new(kind),
            None => new(EngineKind::Uring).or_else(|error| {
                info!("{}: engine=sync, for io_uring cannot be used: {error}", self.name);
                new(EngineKind::Sync)
            }),
        }
    }

    fn worker(&self, queue: Queue, write_through: bool) -> io::Result<Box<dyn Worker>> {
        let counts = self.counts.get(usize::from(queue.index())).cloned();
        let setup = Setup {
            engine: self.engine(queue.size())?,
            image: self.image(),
            limit: lock(&self.limit).clone(),
            id: self.id,
            write_through,
            counts: counts.unwrap_or_default(),
        };
        Ok(Box::new(BlockWorker::new(queue, setup)?))
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        config::features(&self.image(), self.queues())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&config::space(&self.image(), self.queues()), offset, data);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState::of(&self.image()))
    }

    fn restore(&self, state: &DeviceState) -> Result<(), Difference> {
        match state {
            DeviceState::Block(state) => state.check(&BlockState::of(&self.image())),
            _ => Err(Difference::Kind),
        }
    }

    fn start(&self, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        if self.image_has_changed.swap(false, Ordering::Relaxed) {
            activation.interrupt.config_changed();
        }
        // §5.2.6.2: a driver that does not know FLUSH takes what is done for durable.
        let write_through = !activation.has(VIRTIO_BLK_F_FLUSH);
        // What was under way when a driver gave the device up has not been counted.
        self.image().durability().written_by_others();
        let first = activation.take(0)?;
        let others = activation.queues.into_iter().flatten();
        std::iter::once(first)
            .chain(others)
            .map(|queue| self.worker(queue, write_through))
            .collect()
    }

    fn counts(&self) -> Vec<Sample> {
        Counts::sum(self.counts.iter().map(|counts| &**counts))
    }
}

//! Memory balloon (§5.5): the guest hands pages that it does without to the host, which uses them for others.
//!
//! What the guest puts into the balloon, and with free page reporting what it has free anyway, is given back to the host at
//! once ([`release`]). Taking pages back out needs nothing: the host has a new page for whichever the guest touches.

mod pages;
mod release;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::{
    Activation, Chain, DeviceState, Difference, Interrupt, Queue, QueueError, QueueState, Trouble,
    VirtioDevice, Worker, forget, lock, read_config_bytes, watch,
};
use crate::counters;
use crate::counters::{Counters, Sample};
use pages::PageList;
pub use stats::Statistics;
use stats::StatsPoll;

/// A page of the balloon in bytes, whatever the guest's own page size (§5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// Feature bits (§5.5.3).
const F_STATS_VQ: u32 = 1;
const F_DEFLATE_ON_OOM: u32 = 2;
const F_PAGE_REPORTING: u32 = 5;

/// The queues' indices (§5.5.2); 3 would be that of free page hints.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const REPORTING: usize = 4;
/// Linux wants room for 32 ranges in a request of the reporting queue.
const QUEUE_SIZES: [u16; 5] = [128; 5];
/// Requests served in one turn: one of 256 pages takes the host up to 0.2 ms, and other devices wait on the same thread.
const REQUESTS_A_TURN: usize = 2;

/// Bytes of the configuration space (§5.5.4), and where the driver writes how many pages it has given.
const CONFIG_SIZE: usize = 16;
const CONFIG_ACTUAL: usize = 4;

/// What a balloon is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Pages that the guest is to hand over, of [`PAGE_SIZE`] bytes.
    pub pages: u32,
    /// Whether a guest that runs out of memory may take pages back by itself.
    pub deflate_on_oom: bool,
    /// Whether the guest reports pages that it has free.
    pub free_page_reporting: bool,
    /// How often the log gets a line of what the guest does with its memory.
    pub stats: Option<Duration>,
}

counters! {
    struct Counts {
        /// Pages that the guest handed over.
        inflated_pages,
        /// Requests to have pages back.
        deflations,
        /// Bytes of free memory that the guest reported.
        reported_bytes,
    }
}

/// The balloon device.
pub struct Balloon {
    options: BalloonOptions,
    /// Pages that the driver is asked for.
    pages: AtomicU32,
    /// How often it is asked what the guest does with its memory, once it is started.
    interval: Mutex<Option<Duration>>,
    /// What it said last.
    statistics: Arc<Mutex<Option<Statistics>>>,
    /// How to tell it that another number of pages is wanted, while there is one.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// Pages that the driver says it has handed over.
    actual: Arc<AtomicU32>,
    /// The driver has been asked for another number of pages, before it had this balloon: it is to be told.
    asks_anew: AtomicBool,
    counts: Arc<Counts>,
}

/// What the driver of a balloon knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages that it was asked for, of [`PAGE_SIZE`] bytes.
    pub pages: u32,
    /// Pages that it says it has handed over.
    pub actual: u32,
}

impl Balloon {
    /// A balloon that is empty until the guest has a driver for it.
    pub fn new(options: BalloonOptions) -> Self {
        Self {
            options,
            pages: AtomicU32::new(options.pages),
            interval: Mutex::new(options.stats),
            statistics: Arc::default(),
            interrupt: Mutex::default(),
            actual: Arc::default(),
            asks_anew: AtomicBool::new(false),
            counts: Arc::default(),
        }
    }

    /// Asks the guest for this many pages, of [`PAGE_SIZE`] bytes.
    pub fn resize(&self, pages: u32) {
        self.pages.store(pages, Ordering::Relaxed);
        if let Some(interrupt) = &*lock(&self.interrupt) {
            interrupt.config_changed();
        }
    }

    /// Pages that the guest is asked for, and that it says it has handed over.
    pub fn pages(&self) -> (u32, u32) {
        (
            self.pages.load(Ordering::Relaxed),
            self.actual.load(Ordering::Relaxed),
        )
    }

    /// What the guest said last of its memory, if it has.
    pub fn statistics(&self) -> Option<Statistics> {
        *lock(&self.statistics)
    }

    /// The guest is asked for statistics at this interval from its device's next start on, if it is asked at all.
    pub fn ask_every(&self, interval: Duration) {
        let mut asked = lock(&self.interval);
        *asked = asked.map(|_| interval);
    }

    /// The reporting queue. §5.5.2 gives it number 4; Linux before 6.11 leaves no gap for the queues that were not agreed on.
    fn reporting_queue(activation: &mut Activation) -> io::Result<Option<Queue>> {
        if !activation.has(F_PAGE_REPORTING) {
            return Ok(None);
        }
        let without_gap = if activation.has(F_STATS_VQ) {
            STATS + 1
        } else {
            STATS
        };
        let by_number = activation.take(REPORTING);
        by_number.or_else(|_| activation.take(without_gap)).map(Some)
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        u64::from(self.options.stats.is_some()) << F_STATS_VQ
            | u64::from(self.options.deflate_on_oom) << F_DEFLATE_ON_OOM
            | u64::from(self.options.free_page_reporting) << F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_SIZE];
        config[..CONFIG_ACTUAL].copy_from_slice(&self.pages.load(Ordering::Relaxed).to_le_bytes());
        let actual = self.actual.load(Ordering::Relaxed).to_le_bytes();
        config[CONFIG_ACTUAL..][..actual.len()].copy_from_slice(&actual);
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut actual = self.actual.load(Ordering::Relaxed).to_le_bytes();
        let places = actual.iter_mut().zip(CONFIG_ACTUAL as u64..);
        for (place, at) in places {
            let byte = at
                .checked_sub(offset)
                .and_then(|index| data.get(usize::try_from(index).ok()?));
            *place = *byte.unwrap_or(place);
        }
        self.actual.store(u32::from_le_bytes(actual), Ordering::Relaxed);
    }

    fn reset(&self) {
        self.actual.store(0, Ordering::Relaxed);
        self.asks_anew.store(false, Ordering::Relaxed);
        *lock(&self.interrupt) = None;
        *lock(&self.statistics) = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            pages: self.pages.load(Ordering::Relaxed),
            actual: self.actual.load(Ordering::Relaxed),
        })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), Difference> {
        let DeviceState::Balloon(state) = state else {
            return Err(Difference::Kind);
        };
        self.actual.store(state.actual, Ordering::Relaxed);
        let is_asked_anew = state.pages != self.pages.load(Ordering::Relaxed);
        self.asks_anew.store(is_asked_anew, Ordering::Relaxed);
        Ok(())
    }

    fn start(&self, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        if self.asks_anew.swap(false, Ordering::Relaxed) {
            activation.interrupt.config_changed();
        }
        *lock(&self.interrupt) = Some(activation.interrupt.clone());
        let (inflate, deflate) = (activation.take(INFLATE)?, activation.take(DEFLATE)?);
        let stats = match lock(&self.interval).filter(|_| activation.has(F_STATS_VQ)) {
            Some(interval) => {
                let queue = activation.take(STATS)?;
                Some(StatsPoll::new(
                    queue,
                    interval,
                    self.actual.clone(),
                    self.statistics.clone(),
                )?)
            }
            None => None,
        };
        Ok(vec![Box::new(BalloonWorker {
            inflate,
            deflate,
            stats,
            reporting: Self::reporting_queue(&mut activation)?,
            chain: Chain::new(QUEUE_SIZES[INFLATE]),
            pages: PageList::new(),
            counts: self.counts.clone(),
        })])
    }

    fn counts(&self) -> Vec<Sample> {
        self.counts.read()
    }
}

/// What the worker waits for.
mod token {
    pub const INFLATE: u32 = 0;
    pub const DEFLATE: u32 = 1;
    pub const STATS: u32 = 2;
    pub const REPORTING: u32 = 3;
    pub const STATS_TIMER: u32 = 4;
}

struct BalloonWorker {
    inflate: Queue,
    deflate: Queue,
    stats: Option<StatsPoll>,
    reporting: Option<Queue>,
    chain: Chain,
    pages: PageList,
    counts: Arc<Counts>,
}

impl BalloonWorker {
    fn handle(&mut self, token: u32) -> Result<(), QueueError> {
        match (token, &mut self.stats, &mut self.reporting) {
            (token::INFLATE, ..) => self
                .inflate
                .serve(REQUESTS_A_TURN, &mut self.chain, |queue, chain| {
                    for outcome in [self.pages.read(chain), self.pages.release(queue.memory())] {
                        if let Err((trouble, what)) = outcome {
                            queue.interrupt().report(trouble, &what);
                        }
                    }
                    self.counts.inflated_pages.add(self.pages.len() as u64);
                    0
                }),
            // The pages are the guest's again as soon as it touches them.
            (token::DEFLATE, ..) => self.deflate.serve(REQUESTS_A_TURN, &mut self.chain, |_, _| {
                self.counts.deflations.add(1);
                0
            }),
            (token::REPORTING, _, Some(queue)) => {
                queue.serve(REQUESTS_A_TURN, &mut self.chain, |queue, chain| {
                    self.counts.reported_bytes.add(chain.writable_len().into());
                    if let Err(error) = release::release_buffers(queue.memory(), chain) {
                        queue.interrupt().report(Trouble::Host, &error);
                    }
                    0
                })
            }
            (token::STATS, Some(stats), _) => stats.receive(&mut self.chain),
            (token::STATS_TIMER, Some(stats), _) => stats.ask(),
            _ => Ok(()),
        }
    }

    fn queues(&self) -> impl Iterator<Item = (u32, &Queue)> {
        let stats = self.stats.as_ref().map(StatsPoll::queue);
        [
            (token::INFLATE, Some(&self.inflate)),
            (token::DEFLATE, Some(&self.deflate)),
            (token::STATS, stats),
            (token::REPORTING, self.reporting.as_ref()),
        ]
        .into_iter()
        .filter_map(|(token, queue)| Some((token, queue?)))
    }

    fn forget_all(&self, ops: &mut EventOps) {
        for (_, queue) in self.queues() {
            forget(ops, queue.doorbell());
        }
        if let Some(stats) = &self.stats {
            forget(ops, stats.timer());
        }
    }
}

impl MutEventSubscriber for BalloonWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for (token, queue) in self.queues() {
            watch(ops, queue.doorbell(), EventSet::IN, token);
        }
        if let Some(stats) = &self.stats {
            watch(ops, stats.timer(), EventSet::IN, token::STATS_TIMER);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events.data()) {
            self.inflate.interrupt().needs_reset(&error);
            self.forget_all(ops);
        }
    }
}

impl Worker for BalloonWorker {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        if let Some(stats) = &mut self.stats {
            stats.put_back();
        }
        self.queues()
            .map(|(_, queue)| (queue.index(), queue.state()))
            .collect()
    }
}

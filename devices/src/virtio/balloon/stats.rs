//! What the guest says of its memory (§5.5.6.3), asked for at an interval, put into the log and kept.
//!
//! The device holds the driver's one buffer, and asks by giving it back; the driver answers with a new one.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::info;
use vmm_sys_util::timerfd::TimerFd;

use super::{PAGE_SIZE, lock};
use crate::virtio::{Chain, Queue, QueueError};

/// Bytes of one statistic: a tag of 16 bits, a value of 64, packed and little-endian (§5.5.6.3).
const STAT_SIZE: u32 = 10;
/// Most statistics of one buffer that are looked at; the specification knows 16.
const MAX_STATS: u32 = 64;

enum Unit {
    Bytes,
    Count,
}

/// What to call the statistics, by tag (§5.5.6.4).
const KNOWN: [(&str, Unit); 10] = [
    ("swapped in", Unit::Bytes),
    ("swapped out", Unit::Bytes),
    ("major faults", Unit::Count),
    ("minor faults", Unit::Count),
    ("free", Unit::Bytes),
    ("total", Unit::Bytes),
    ("available", Unit::Bytes),
    ("caches", Unit::Bytes),
    ("huge pages allocated", Unit::Count),
    ("huge pages refused", Unit::Count),
];

/// The statistics queue and the clock that it is asked by.
pub struct StatsPoll {
    queue: Queue,
    timer: TimerFd,
    /// The buffer to ask with.
    held: Option<u16>,
    asked: bool,
    actual: Arc<AtomicU32>,
    latest: Arc<Mutex<Option<Statistics>>>,
}

impl StatsPoll {
    pub fn new(
        queue: Queue,
        interval: Duration,
        actual: Arc<AtomicU32>,
        latest: Arc<Mutex<Option<Statistics>>>,
    ) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(interval, Some(interval))?;
        Ok(Self {
            queue,
            timer,
            held: None,
            asked: false,
            actual,
            latest,
        })
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// The interval is over: asks, unless the driver has not answered the last time.
    pub fn ask(&mut self) -> Result<(), QueueError> {
        // Fails only when it has not expired.
        let _ = self.timer.wait();
        self.asked |= self.held.is_some();
        self.return_held()
    }

    /// The driver has sent its buffer.
    pub fn receive(&mut self, chain: &mut Chain) -> Result<(), QueueError> {
        self.queue.clear_doorbell();
        for _ in 0..self.queue.size() {
            if !self.queue.pop(chain)? {
                break;
            }
            if std::mem::take(&mut self.asked) {
                let given = u64::from(self.actual.load(Ordering::Relaxed)) * PAGE_SIZE;
                let said = Statistics::read(chain);
                info!(
                    "balloon: {} MiB handed over; the guest's memory: {said}",
                    given >> 20
                );
                *lock(&self.latest) = Some(said);
            }
            // A driver has one buffer. If it sends more, the last is held.
            self.return_held()?;
            self.held = Some(chain.head());
        }
        if self.queue.enable_doorbell() {
            self.queue.ring();
        }
        Ok(())
    }

    /// Puts the driver's buffer back into the available ring, as if it had not been taken: who goes on with the queue
    /// finds it there. It was the last that was taken.
    pub fn put_back(&mut self) {
        if self.held.take().is_some() {
            self.queue.undo_pop();
        }
    }

    fn return_held(&mut self) -> Result<(), QueueError> {
        if let Some(head) = self.held.take() {
            self.queue.complete(head, 0)?;
            self.queue.signal();
        }
        Ok(())
    }
}

/// What a driver said, by tag (§5.5.6.4): swapped in, swapped out (bytes), major and minor faults (numbers), free, total, available
/// and used for caches (bytes), huge pages allocated and refused (numbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics(pub [Option<u64>; KNOWN.len()]);

impl Statistics {
    fn read(chain: &Chain) -> Self {
        let mut said = Self::default();
        let count = (chain.readable_len() / STAT_SIZE).min(MAX_STATS);
        for n in 0..count {
            let mut stat = [0; STAT_SIZE as usize];
            chain.read(n * STAT_SIZE, &mut stat);
            let [tag_low, tag_high, value @ ..] = stat;
            let tag = u16::from_le_bytes([tag_low, tag_high]);
            if let Some(place) = said.0.get_mut(usize::from(tag)) {
                *place = Some(u64::from_le_bytes(value));
            }
        }
        said
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for ((name, unit), value) in KNOWN.iter().zip(self.0) {
            let Some(value) = value else { continue };
            match unit {
                Unit::Bytes => write!(f, "{separator}{name} {} MiB", value >> 20)?,
                Unit::Count => write!(f, "{separator}{name} {value}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

//! Entropy (§5.4): fills the guest's buffers with random bytes of the host's.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{
    Activation, Chain, DeviceState, Difference, Queue, QueueState, VirtioDevice, Worker, forget, watch,
};
use crate::counters;
use crate::counters::{Counters, Sample};

const QUEUE_SIZES: [u16; 1] = [64];
/// Most bytes that one request gets. A driver asks again for more, and the thread serves others in between.
const MAX_BYTES: usize = 64 << 10;
/// Requests served in one turn: so many of the largest take the host about a millisecond, and other devices wait on the same
/// thread.
const REQUESTS_A_TURN: usize = 8;

counters! {
    struct Counts {
        /// Random bytes that the guest got.
        bytes,
    }
}

/// The entropy device. Its source is the kernel's (getrandom(2)), which never runs dry.
#[derive(Default)]
pub struct Rng {
    counts: Arc<Counts>,
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "entropy"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&self, state: &DeviceState) -> Result<(), Difference> {
        match state {
            DeviceState::Rng => Ok(()),
            _ => Err(Difference::Kind),
        }
    }

    fn start(&self, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let queue = activation.take(0)?;
        Ok(vec![Box::new(RngWorker {
            chain: Chain::new(queue.size()),
            queue,
            counts: self.counts.clone(),
        })])
    }

    fn counts(&self) -> Vec<Sample> {
        self.counts.read()
    }
}

struct RngWorker {
    queue: Queue,
    chain: Chain,
    counts: Arc<Counts>,
}

/// Fills what the driver wants filled, up to [`MAX_BYTES`]; returns how many bytes that were.
fn fill(chain: &Chain) -> u32 {
    let mut filled = 0;
    for buffer in chain.writable() {
        let len = buffer.iov_len.min(MAX_BYTES - filled);
        // SAFETY: the kernel writes at most `len` bytes to the buffer, which is that long, and which lies in guest memory
        // that the worker's queue keeps mapped and no Rust reference is made to.
        let got = unsafe { libc::getrandom(buffer.iov_base, len, 0) };
        filled += usize::try_from(got).unwrap_or(0);
        if got != len as isize || filled == MAX_BYTES {
            break;
        }
    }
    filled as u32
}

impl MutEventSubscriber for RngWorker {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.queue.doorbell(), EventSet::IN, 0);
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        let served = self.queue.serve(REQUESTS_A_TURN, &mut self.chain, |_, chain| {
            let filled = fill(chain);
            self.counts.bytes.add(filled.into());
            filled
        });
        if let Err(error) = served {
            self.queue.interrupt().needs_reset(&error);
            forget(ops, self.queue.doorbell());
        }
    }
}

impl Worker for RngWorker {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        vec![(self.queue.index(), self.queue.state())]
    }
}

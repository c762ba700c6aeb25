//! The control queue (§5.1.6.5), of which there is one command: how many queue pairs are in use.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

use super::switch::Switch;
use super::tap::Tap;
use crate::virtio::{Chain, Queue, QueueState, Trouble, Worker, forget, watch};

/// Serves the control queue.
pub struct Control {
    queue: Queue,
    chain: Chain,
    pairs: Pairs,
}

/// The queue pairs, on both sides.
struct Pairs {
    tap: Arc<Tap>,
    /// Of the pairs that the driver has set up.
    switches: Vec<Arc<Switch>>,
    in_use: Arc<AtomicU16>,
}

impl Control {
    /// `in_use` is how many the driver uses, which the worker sets.
    pub fn new(queue: Queue, tap: Arc<Tap>, switches: Vec<Arc<Switch>>, in_use: Arc<AtomicU16>) -> Self {
        Self {
            chain: Chain::new(queue.size()),
            queue,
            pairs: Pairs {
                tap,
                switches,
                in_use,
            },
        }
    }
}

impl Pairs {
    /// A command is a class, a number, and here the count of pairs (§5.1.6.5.5).
    fn obey(&self, queue: &Queue, chain: &Chain) -> bool {
        const COMMAND: [u8; 2] = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];
        let mut command = [0; 4];
        if !chain.read(0, &mut command) || command[..2] != COMMAND {
            return false;
        }
        let pairs = u16::from_le_bytes([command[2], command[3]]);
        if !(1..=self.switches.len()).contains(&pairs.into()) {
            return false;
        }
        let set = self.use_pairs(pairs.into());
        if set.is_ok() {
            self.in_use.store(pairs, Ordering::Relaxed);
        }
        set.inspect_err(|error| {
            let what = format_args!("cannot turn the tap's queues on or off: {error}");
            queue.interrupt().report(Trouble::Host, &what);
        })
        .is_ok()
    }

    /// A queue of the tap's is on before frames are expected of it, and nothing is expected when it is turned off.
    fn use_pairs(&self, pairs: usize) -> io::Result<()> {
        for (index, (switch, queue)) in self.switches.iter().zip(self.tap.queues()).enumerate() {
            let on = index < pairs;
            if on != switch.is_on() {
                if on {
                    queue.set_enabled(true)?;
                    switch.turn(true);
                } else {
                    switch.turn(false);
                    queue.set_enabled(false)?;
                }
            }
        }
        Ok(())
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, self.queue.doorbell(), EventSet::IN, 0);
        // The driver may have rung before there was a worker to hear it.
        self.queue.ring();
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        let limit = self.queue.size().into();
        let served = self.queue.serve(limit, &mut self.chain, |queue, chain| {
            let status = if self.pairs.obey(queue, chain) {
                VIRTIO_NET_OK
            } else {
                VIRTIO_NET_ERR
            };
            chain.write(0, &[status as u8]).into()
        });
        if let Err(error) = served {
            self.queue.interrupt().needs_reset(&error);
            forget(ops, self.queue.doorbell());
        }
    }
}

impl Worker for Control {
    fn quiesce(&mut self) -> Vec<(u16, QueueState)> {
        vec![(self.queue.index(), self.queue.state())]
    }
}

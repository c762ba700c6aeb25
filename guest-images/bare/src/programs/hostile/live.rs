//! A device that works: agreed features, all queues set up, and requests that it answers.

use alloc::format;
use alloc::vec::Vec;
use core::hint::spin_loop;

use super::victim::{CHAIN, QUEUE_SIZE, SLOTS, Victim, eventually, must};
use crate::device::{Device, feature};
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, Parts, SplitQueue, Used};
use crate::registers::status;

/// A device at work.
pub struct Live<'a> {
    /// Which.
    pub victim: &'a Victim,
    /// By index.
    pub queues: Vec<SplitQueue>,
}

impl<'a> Live<'a> {
    /// Starts the device from a reset.
    pub fn start(victim: &'a Victim) -> Outcome<Self> {
        Self::start_with(victim, feature::INDIRECT | feature::EVENT_IDX)
    }

    /// The same with these features of the rings.
    pub fn start_with(victim: &'a Victim, features: u64) -> Outcome<Self> {
        let live = Self::prepare(victim, features)?;
        live.let_work();
        must(live.runs(), "the device does not start")?;
        Ok(live)
    }

    /// Everything but DRIVER_OK.
    pub fn prepare(victim: &'a Victim, features: u64) -> Outcome<Self> {
        let mut live = Self::set_up(victim, features)?;
        (victim.kind.prepare)(&mut live);
        Ok(live)
    }

    /// The same with nothing in the queues.
    pub fn prepare_bare(victim: &'a Victim) -> Outcome<Self> {
        Self::set_up(victim, feature::EVENT_IDX)
    }

    fn set_up(victim: &'a Victim, features: u64) -> Outcome<Self> {
        let wanted = features | victim.kind.features;
        let device = Device::negotiate_again(victim.registers, victim.offered, wanted)?;
        let event_idx = device.has(feature::EVENT_IDX);
        let queues = (0..).zip(&victim.largest).map(|(index, largest)| {
            victim.rings.fill(index.into(), 0);
            // Those that are not misused may be shorter.
            let size = QUEUE_SIZE.min(*largest as u16);
            // SAFETY: the piece is large enough, and the device has been reset, so that nobody uses it.
            unsafe {
                let parts = Parts::at(victim.rings.start(index.into()), size);
                SplitQueue::of(&victim.registers, index, size, event_idx, parts)
            }
        });
        Ok(Self {
            victim,
            queues: queues.collect(),
        })
    }

    /// DRIVER_OK.
    pub fn let_work(&self) {
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.victim.set_status(agreed | status::DRIVER_OK);
    }

    /// Whether the device says that it works.
    pub fn runs(&self) -> bool {
        let status = self.victim.status();
        status & status::DRIVER_OK != 0 && status & status::NEEDS_RESET == 0
    }

    /// The queue that is misused.
    pub fn queue(&mut self) -> &mut SplitQueue {
        &mut self.queues[usize::from(self.victim.kind.queue)]
    }

    /// Writes descriptors as they are given, from `first` on, and makes them available as one chain.
    pub fn submit(&mut self, first: u16, chain: &[Descriptor]) {
        self.submit_to(self.victim.kind.queue, first, chain);
    }

    /// The same in any queue.
    pub fn submit_to(&mut self, queue: u16, first: u16, chain: &[Descriptor]) {
        let queue = &mut self.queues[usize::from(queue)];
        for (index, descriptor) in (first..).zip(chain) {
            queue.describe(index, *descriptor);
        }
        queue.offer(first);
        queue.publish();
    }

    /// Offers the sound request of a slot; returns its head.
    pub fn ask(&mut self, slot: u16) -> u16 {
        let piece = usize::from(slot);
        self.victim.data.fill(piece, 0);
        let first = slot * CHAIN;
        let chain = (self.victim.kind.request)(self.victim, piece);
        self.submit(first, &linked(first, chain));
        first
    }

    /// A sound request must be answered, now and without a reset.
    pub fn must_serve(&mut self) -> Outcome {
        let slot = SLOTS - 1;
        let head = self.ask(slot);
        let used = self.wait_for(head)?;
        (self.victim.kind.check)(self, slot.into(), used)?;
        must(self.runs(), "the device has answered and needs a reset")
    }

    /// The chain with this head must come back. Others that come before it were of no interest.
    pub fn wait_for(&mut self, head: u16) -> Outcome<Used> {
        /// At the ring, before the status is read: a read of a register costs what a request does.
        const LOOKS: u32 = 1000;
        let mut found = None;
        let victim = self.victim;
        let queue = self.queue();
        let gave_up = format!("the chain {head} does not come back");
        eventually(&gave_up, || {
            for _ in 0..LOOKS {
                while let Some(used) = queue.take() {
                    if used.head == u32::from(head) {
                        found = Some(used);
                        return true;
                    }
                }
                spin_loop();
            }
            victim.status() & status::NEEDS_RESET != 0
        })?;
        found.ok_or_else(|| Failure::new("the device needs a reset, and did not have to"))
    }

    /// Either the chain with this head comes back, or the device needs a reset: both are answers.
    pub fn wait_for_either(&mut self, head: u16) -> Outcome<Option<Used>> {
        match self.wait_for(head) {
            Err(_) if !self.runs() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Gives the device a while to do whatever it wants with what no rule tells.
    pub fn let_happen(&mut self) {
        /// Enough for a device that does anything at all: reading a register takes longer than a request.
        const READS: u32 = 8;
        for _ in 0..READS {
            if !self.runs() {
                return;
            }
        }
    }
}

/// Offers a chain to a device that has just been started. It may come back, or the device may need a reset.
pub fn stands(victim: &Victim, chain: &[Descriptor]) -> Outcome {
    let mut live = Live::start(victim)?;
    live.submit(0, chain);
    live.wait_for_either(0).map(drop)
}

/// A chain of these, which are the descriptors from `first` on.
pub fn linked(first: u16, mut chain: Vec<Descriptor>) -> Vec<Descriptor> {
    let last = chain.len().saturating_sub(1);
    for (index, descriptor) in (first + 1..).zip(&mut chain[..last]) {
        *descriptor = descriptor.to(index);
    }
    chain
}

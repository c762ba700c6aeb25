//! A split virtqueue (§2.7) from the device's side: chains come out of the available ring, completions go into the used one.
//!
//! The rings' indices and notification fields are virtio-queue's business; walking a chain is [`Chain`]'s, which unlike
//! virtio-queue's own iterator says what is wrong with a malformed one instead of ending it early.

mod state;

use std::io;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Chain, GuestMemory, Interrupt};
use crate::counters;

pub use state::QueueState;

/// What a driver did that a queue cannot go on from.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// The size is zero, no power of two, or more than the device allows.
    #[error("a queue of {0} entries: it must be a power of two, and not more than the device allows")]
    Size(u16),
    /// A part of the queue is not aligned as §2.7 wants it.
    #[error("the {0} is not aligned")]
    Unaligned(&'static str),
    /// A part of the queue is not in RAM as a whole.
    #[error("descriptor table, available ring or used ring are not all in memory")]
    NotInMemory,
    /// The available index went further than the queue is long.
    #[error("the available index has gone further than the queue is long")]
    IndexJump,
    /// A descriptor that does not exist.
    #[error("descriptor {0}: the queue or the indirect table has no such one")]
    NoSuchDescriptor(u16),
    /// A chain with more descriptors than the queue: a loop, or an indirect table that is too long.
    #[error("a descriptor chain that is a loop, or longer than the queue")]
    TooLong,
    /// A chain of 4 GiB or more (§2.7.4).
    #[error("a descriptor chain of 4 GiB or more")]
    TooLarge,
    /// A buffer without bytes.
    #[error("a buffer of zero bytes")]
    EmptyBuffer,
    /// A buffer that is not in RAM as a whole.
    #[error("a buffer of {len} bytes at {address:#x}, where there is no memory")]
    BadAddress {
        /// Guest-physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer for the device to read that follows one for it to write (§2.7.4.2).
    #[error("a buffer to read behind a buffer to write")]
    ReadAfterWrite,
    /// An indirect descriptor in an indirect table, one that goes on (§2.7.5.3.1), or an empty or broken table.
    #[error("an indirect descriptor that is nested, goes on, or has no whole table")]
    BadIndirect,
    /// An indirect descriptor although the feature was not agreed on.
    #[error("an indirect descriptor without the feature")]
    IndirectNotNegotiated,
    /// A chain that is too short for any request of the device.
    #[error("a request without a whole header, or without room for its status")]
    NoRequest,
}

counters! {
    /// What has happened on a queue since its machine was made. Its worker counts.
    pub struct QueueCounts {
        /// Times that the queue's worker was woken by its doorbell.
        wakeups,
        /// Requests that were given back to the driver.
        requests,
        /// Interrupts for what was given back.
        interrupts,
    }
}

/// A queue that the driver has enabled and that lies in guest memory as a whole.
pub struct Queue {
    index: u16,
    ring: virtio_queue::Queue,
    /// The available index as it was read last: what lies before it can be taken without looking at what the driver writes.
    available: Wrapping<u16>,
    /// The used index up to which the driver has been asked whether it wants an interrupt.
    signalled: Wrapping<u16>,
    indirect: bool,
    memory: GuestMemory,
    doorbell: EventFd,
    interrupt: Arc<dyn Interrupt>,
    counts: Arc<QueueCounts>,
}

/// What a queue is made of beside its state.
pub struct QueueParts {
    /// Its number in the device.
    pub index: u16,
    /// The memory that it lies in.
    pub memory: GuestMemory,
    /// Readable when the driver has rung.
    pub doorbell: EventFd,
    /// Where its interrupts go.
    pub interrupt: Arc<dyn Interrupt>,
    /// Whether INDIRECT_DESC was agreed on.
    pub indirect: bool,
    /// Where it is counted what happens.
    pub counts: Arc<QueueCounts>,
}

impl Queue {
    /// Checks the queue once for its whole life.
    ///
    /// # Errors
    /// Its size, its alignment or where it lies.
    pub fn new(state: QueueState, parts: QueueParts) -> Result<Self, QueueError> {
        check_alignment(&state)?;
        let size = state.size;
        let ring = virtio_queue::Queue::try_from(virtio_queue::QueueState::from(state))
            .map_err(|_| QueueError::Size(size))?;
        if !ring.is_valid(&parts.memory) {
            return Err(QueueError::NotInMemory);
        }
        Ok(Self {
            index: parts.index,
            available: Wrapping(ring.next_avail()),
            signalled: Wrapping(ring.next_used()),
            ring,
            indirect: parts.indirect,
            memory: parts.memory,
            doorbell: parts.doorbell,
            interrupt: parts.interrupt,
            counts: parts.counts,
        })
    }

    /// Its number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Readable when the driver has rung. Registered by the worker, and cleared by [`clear_doorbell`](Self::clear_doorbell).
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// Where the device reports what concerns more than this queue.
    pub fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.interrupt
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Rings the doorbell from within: there is more to do, after everybody else on the thread has had a turn.
    pub fn ring(&self) {
        // Fails only when the counter is full, and then it has rung.
        let _ = self.doorbell.write(1);
    }

    /// The doorbell has been heard.
    pub fn clear_doorbell(&self) {
        // Fails only when it has not rung.
        if self.doorbell.read().is_ok() {
            self.counts.wakeups.add(1);
        }
    }

    /// Takes the next chain that the driver has made available and lists its buffers in `chain`; `false` if there is none.
    ///
    /// # Errors
    /// The ring or the chain is malformed. The queue cannot be used any further.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(head) = self.next_head()? else {
            return Ok(false);
        };
        let table = (GuestAddress(self.ring.desc_table()), self.ring.size());
        chain.walk(&self.memory, table, head, self.indirect)?;
        Ok(true)
    }

    /// Takes the next entry of the available ring.
    #[inline]
    fn next_head(&mut self) -> Result<Option<u16>, QueueError> {
        let (next, size) = (Wrapping(self.ring.next_avail()), self.ring.size());
        if next == self.available {
            // What the driver wrote before it moved the index is there once the index is.
            let index = self.ring.avail_idx(&self.memory, Ordering::Acquire);
            let index = index.map_err(|_| QueueError::NotInMemory)?;
            if (index - next).0 > size {
                return Err(QueueError::IndexJump);
            }
            self.available = index;
        }
        if next == self.available {
            return Ok(None);
        }
        // §2.7.6: two bytes each of flags and index, then for each entry. The size is a power of two.
        let entry = self.ring.avail_ring() + 4 + 2 * u64::from(next.0 & (size - 1));
        let head = self.memory.load(GuestAddress(entry), Ordering::Relaxed);
        self.ring.set_next_avail((next + Wrapping(1)).0);
        head.map(u16::from_le)
            .map(Some)
            .map_err(|_| QueueError::NotInMemory)
    }

    /// Whether the driver has made something available that was not taken yet. For polling: one load from memory.
    #[inline]
    pub fn has_available(&self) -> bool {
        let available = self.ring.avail_idx(&self.memory, Ordering::Acquire);
        available.is_ok_and(|index| index.0 != self.ring.next_avail())
    }

    /// How many chains are known to follow the one that was taken last; there may be more. It costs nothing.
    #[inline]
    pub fn known(&self) -> u16 {
        (self.available - Wrapping(self.ring.next_avail())).0
    }

    /// Puts the chain that was taken last back, so that it is the next one again.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives the chain with this head back to the driver at once, `written` bytes of it being the device's.
    ///
    /// # Errors
    /// A head that is no descriptor's, which no popped chain has.
    #[inline]
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.counts.requests.add(1);
        let added = self.ring.add_used(&self.memory, head, written);
        added.map_err(|_| QueueError::NoSuchDescriptor(head))
    }

    /// Gives several chains back at once: a driver that sees one of them sees all of them.
    ///
    /// # Errors
    /// As for [`complete`](Self::complete).
    pub fn complete_together(&mut self, used: impl Iterator<Item = (u16, u32)>) -> Result<(), QueueError> {
        let mut pending = None;
        let mut next = Wrapping(self.ring.next_used());
        for chain in used {
            if let Some((head, written)) = pending.replace(chain) {
                // §2.7.8: four bytes of flags and index, then eight for each entry.
                let entry = self.ring.used_ring() + 4 + 8 * u64::from(next.0 % self.ring.size());
                let element = [u32::from(head).to_le(), written.to_le()];
                let stored = self.memory.write_obj(element, GuestAddress(entry));
                stored.map_err(|_| QueueError::NotInMemory)?;
                self.counts.requests.add(1);
                next += 1;
            }
        }
        let Some((head, written)) = pending else {
            return Ok(());
        };
        // The index goes past all of them with the last one.
        self.ring.set_next_used(next.0);
        self.complete(head, written)
    }

    /// Interrupts the driver if it wants to hear of what was completed since the last call.
    #[inline]
    pub fn signal(&mut self) {
        if self.wants_signal() {
            self.counts.interrupts.add(1);
            self.interrupt.queue_used(self.index);
        }
    }

    /// EVENT_IDX (§2.7.7) where it was agreed on, else the available ring's flag (§2.7.7.1). virtio-queue leaves the latter out and
    /// counts only what it completed itself. The loads cannot fail: they lie in the checked ring.
    #[inline]
    fn wants_signal(&mut self) -> bool {
        let (old, new) = (self.signalled, Wrapping(self.ring.next_used()));
        if new == old {
            return false;
        }
        self.signalled = new;
        let load = |at: u64| {
            let value: u16 = self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap_or(0);
            u16::from_le(value)
        };
        // What was completed is to be seen before it is read what the driver wants.
        fence(Ordering::SeqCst);
        let available = self.ring.avail_ring();
        if !self.ring.event_idx_enabled() {
            return load(available) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0;
        }
        let event = Wrapping(load(available + 4 + 2 * u64::from(self.ring.size())));
        new - event - Wrapping(1) < new - old
    }

    /// Asks the driver to ring for what it makes available from now on. `true`: something has come in between, for which
    /// it may not have rung.
    #[inline]
    pub fn enable_doorbell(&mut self) -> bool {
        self.ring.enable_notification(&self.memory).unwrap_or(false)
    }

    /// Asks the driver not to ring: the worker looks by itself.
    #[inline]
    pub fn disable_doorbell(&mut self) {
        // Cannot fail: the flags lie in the checked ring.
        let _ = self.ring.disable_notification(&self.memory);
    }

    /// Serves at most `limit` chains: each is given back with as many bytes as `handle` says that it wrote. If there are more, it
    /// rings, so that they come after everybody else on the thread.
    ///
    /// # Errors
    /// As for [`pop`](Self::pop). What was served before is the driver's.
    pub fn serve(
        &mut self,
        limit: usize,
        chain: &mut Chain,
        handle: impl FnMut(&Self, &Chain) -> u32,
    ) -> Result<(), QueueError> {
        self.clear_doorbell();
        self.disable_doorbell();
        let served = self.serve_available(limit, chain, handle);
        self.signal();
        served?;
        if self.enable_doorbell() {
            self.ring();
        }
        Ok(())
    }

    fn serve_available(
        &mut self,
        limit: usize,
        chain: &mut Chain,
        mut handle: impl FnMut(&Self, &Chain) -> u32,
    ) -> Result<(), QueueError> {
        for _ in 0..limit {
            if !self.pop(chain)? {
                break;
            }
            let written = handle(self, chain);
            self.complete(chain.head(), written)?;
        }
        Ok(())
    }

    /// What is needed to go on with the same queue later.
    pub fn state(&self) -> QueueState {
        self.ring.state().into()
    }
}

/// §2.7: 16 bytes for the descriptor table, 2 for the available ring, 4 for the used ring.
fn check_alignment(state: &QueueState) -> Result<(), QueueError> {
    for (part, address, alignment) in [
        ("descriptor table", state.desc_table, 16),
        ("available ring", state.avail_ring, 2),
        ("used ring", state.used_ring, 4),
    ] {
        if !address.is_multiple_of(alignment) {
            return Err(QueueError::Unaligned(part));
        }
    }
    Ok(())
}

impl From<QueueError> for io::Error {
    fn from(error: QueueError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

#[cfg(test)]
mod tests;

//! What the driver of a restored guest is told before anything else: its streams are gone, and its CID may be another
//! (§5.10.6.7, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).
//!
//! A driver that hears it ends all of its streams, so a new one is not to be among them: until the driver has dealt with
//! the event, nothing else is served. It has when it gives a buffer for another event. To hear of that, the device holds
//! all buffers that there are.

use std::io;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::super::{Chain, Queue, QueueError};

/// `struct virtio_vsock_event` with the id VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();
/// How long a driver is waited for. Linux takes less than a millisecond; one that does not give buffers back is served then.
const PATIENCE: Duration = Duration::from_secs(1);

/// The event queue of a driver that is to be told.
pub struct Notice {
    queue: Queue,
    chain: Chain,
    /// Rings when the driver has been waited for long enough.
    timer: TimerFd,
    told: bool,
    /// Buffers held, which were taken behind the one that told.
    held: u16,
}

impl Notice {
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(queue: Queue) -> io::Result<Self> {
        Ok(Self {
            chain: Chain::new(queue.size()),
            queue,
            timer: TimerFd::new()?,
            told: false,
            held: 0,
        })
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Tells the driver, or listens for its answer; returns whether nothing is to be waited for any more.
    pub fn serve(&mut self) -> Result<bool, QueueError> {
        self.queue.clear_doorbell();
        let over = if self.told {
            self.queue.has_available()
        } else {
            !self.tell()?
        };
        if !over && self.queue.enable_doorbell() {
            self.queue.ring();
        }
        Ok(over)
    }

    /// Tells the driver; returns whether there is an answer to be waited for. A driver without a buffer for events wants to
    /// hear of none.
    fn tell(&mut self) -> Result<bool, QueueError> {
        if !self.queue.pop(&mut self.chain)? {
            return Ok(false);
        }
        let head = self.chain.head();
        let told = self.chain.write(0, &TRANSPORT_RESET);
        for _ in 1..self.queue.size() {
            if !self.queue.pop(&mut self.chain)? {
                break;
            }
            self.held += 1;
        }
        let written = if told { TRANSPORT_RESET.len() as u32 } else { 0 };
        self.queue.complete(head, written)?;
        self.queue.signal();
        self.told = true;
        // Without a timer there is no waiting.
        Ok(told && self.timer.reset(PATIENCE, None).is_ok())
    }

    /// Puts back what is held. If the queue goes on from there, the driver is told again.
    pub fn put_back(&mut self) {
        for _ in 0..std::mem::take(&mut self.held) {
            self.queue.undo_pop();
        }
        self.told = false;
    }

    /// The driver has been told: here is its queue.
    pub fn into_queue(mut self) -> Queue {
        self.put_back();
        self.queue
    }
}

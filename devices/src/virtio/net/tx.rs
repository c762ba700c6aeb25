//! The transmit queue (§5.1.6.2): each chain is a frame with its header, which goes out by one system call.

use std::io;
use std::sync::Arc;

use super::counts::Counts;
use super::frames::Frames;
use super::{HEADER, MAX_FRAME, MIN_FRAME};
use crate::virtio::{Chain, Queue, QueueError, Trouble};

/// What became of the next frame.
#[derive(Debug)]
pub enum Sent {
    /// It is gone, with so many bytes; or was dropped.
    Frame(usize),
    /// There is none.
    Nothing,
    /// The host cannot take it: for now, or because its end is gone. It is still the next one.
    Refused(io::Error),
}

/// The device's side of a transmit queue.
pub struct Sender {
    pub queue: Queue,
    chain: Chain,
    counts: Arc<Counts>,
}

impl Sender {
    pub fn new(queue: Queue, counts: Arc<Counts>) -> Self {
        Self {
            chain: Chain::new(queue.size()),
            queue,
            counts,
        }
    }

    /// Sends the next frame that the driver has made available. One that cannot go is dropped, as any network may do.
    #[inline]
    pub fn send(&mut self, frames: &mut impl Frames) -> Result<Sent, QueueError> {
        if !self.queue.pop(&mut self.chain)? {
            return Ok(Sent::Nothing);
        }
        let len = self.chain.readable_len() as usize;
        // What is wrong in the header or the frame, the kernel finds.
        if !(HEADER + MIN_FRAME..=HEADER + MAX_FRAME).contains(&len) {
            let what = format_args!("a frame of {len} bytes");
            self.queue.interrupt().report(Trouble::Guest, &what);
            self.counts.tx_dropped.add(1);
        } else {
            // SAFETY: the buffers were checked to be guest memory when the chain was walked, and are mapped as long as
            // the queue lives; together they hold more than a header.
            let sent = unsafe { frames.send(self.chain.readable()) };
            match sent {
                Ok(()) => {
                    self.counts.tx_frames.add(1);
                    self.counts.tx_bytes.add((len - HEADER) as u64);
                }
                Err(error) if is_refusal(&error) => {
                    self.queue.undo_pop();
                    return Ok(Sent::Refused(error));
                }
                Err(error) => self.dropped(&error),
            }
        }
        self.queue.complete(self.chain.head(), 0)?;
        Ok(Sent::Frame(len))
    }

    /// Says once why frames are lost.
    #[cold]
    fn dropped(&self, error: &io::Error) {
        self.counts.tx_dropped.add(1);
        let interrupt = self.queue.interrupt();
        match error.raw_os_error() {
            Some(libc::EINVAL) => interrupt.report(
                Trouble::Guest,
                &"the guest sends frames with a malformed header; they are dropped",
            ),
            Some(libc::EIO) => interrupt.report(Trouble::Host, &"the tap is down; frames are dropped"),
            _ => interrupt.report(Trouble::Host, &format_args!("frames are dropped: {error}")),
        }
    }

    /// Gives the next frame back without sending it; `false` if there is none.
    pub fn discard(&mut self) -> Result<bool, QueueError> {
        let any = self.queue.pop(&mut self.chain)?;
        if any {
            self.queue.complete(self.chain.head(), 0)?;
            self.counts.tx_dropped.add(1);
        }
        Ok(any)
    }
}

/// Whether an error is about the host's end and not about the frame.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::EBADFD | libc::EPIPE | libc::ECONNRESET)
    )
}

//! The receive queue (§5.1.6.4): gathers what the driver has posted until a frame fits it, and gives back what a frame took.
//!
//! What is gathered stays in hand from frame to frame, so each buffer is looked up once. When the worker stops, it
//! goes back to where it came from.

use std::collections::VecDeque;

use libc::iovec;

use super::{HEADER, pieces};
use crate::virtio::{Chain, Queue, QueueError, Trouble};

/// Most buffers that one system call takes.
const MAX_BUFFERS: usize = libc::UIO_MAXIOV as usize;
/// Where `num_buffers` is in the header (§5.1.6).
const NUM_BUFFERS: usize = 10;

/// A chain in hand.
struct Posted {
    head: u16,
    buffers: usize,
    len: usize,
}

/// The device's side of a receive queue.
pub struct Receiver {
    pub queue: Queue,
    chain: Chain,
    /// MRG_RXBUF: a frame may take several chains.
    mergeable: bool,
    posted: VecDeque<Posted>,
    /// The buffers of all chains in hand, from `first` on.
    buffers: Vec<iovec>,
    first: usize,
    /// Bytes in them.
    room: usize,
    /// The most that the driver has ever had posted, in hand or not, as far as is known.
    most_room: usize,
}

// SAFETY: the iovecs are plain addresses in guest memory, as those of a Chain.
unsafe impl Send for Receiver {}

impl Receiver {
    pub fn new(queue: Queue, mergeable: bool) -> Self {
        let size = queue.size();
        Self {
            chain: Chain::new(size),
            queue,
            mergeable,
            posted: VecDeque::with_capacity(size.into()),
            buffers: Vec::with_capacity(2 * MAX_BUFFERS),
            first: 0,
            room: 0,
            most_room: 0,
        }
    }

    /// Gathers room for a frame of `len` bytes with its header; `false` if the driver has not posted that much yet.
    ///
    /// A driver need not ever post enough for the largest frame. One that has been seen with less than twice as much
    /// is not waited for until it does: half of what it has had suffices, and larger frames are lost.
    pub fn gather(&mut self, len: usize) -> Result<bool, QueueError> {
        let mut full = false;
        for _ in 0..self.queue.size() {
            full = self.posted.len() == usize::from(self.queue.size());
            if full || self.holds(len) || !self.queue.pop(&mut self.chain)? {
                break;
            }
            let (buffers, room) = (self.chain.writable().len(), self.chain.writable_len() as usize);
            if room < HEADER {
                let what = "a receive buffer without room for a header";
                self.queue.interrupt().report(Trouble::Guest, &what);
                self.queue.complete(self.chain.head(), 0)?;
            } else if self.in_hand().len() + buffers > MAX_BUFFERS {
                self.queue.undo_pop();
                full = true;
                break;
            } else {
                self.keep(buffers, room);
            }
        }
        let each = self.room / self.posted.len().max(1);
        self.most_room = self
            .most_room
            .max(self.room + each * usize::from(self.queue.known()));
        Ok(full || self.holds(len.min(self.most_room / 2).max(HEADER)))
    }

    /// Whether a frame of `len` bytes can be received; without MRG_RXBUF the driver sees to it that any chain will do.
    #[inline]
    fn holds(&self, len: usize) -> bool {
        if self.mergeable {
            self.room >= len
        } else {
            !self.posted.is_empty()
        }
    }

    fn in_hand(&self) -> &[iovec] {
        &self.buffers[self.first..]
    }

    /// Takes the chain that was popped last in hand.
    fn keep(&mut self, buffers: usize, len: usize) {
        if self.buffers.len() + buffers > self.buffers.capacity() {
            self.buffers.copy_within(self.first.., 0);
            self.buffers.truncate(self.buffers.len() - self.first);
            self.first = 0;
        }
        self.buffers.extend_from_slice(self.chain.writable());
        self.posted.push_back(Posted {
            head: self.chain.head(),
            buffers,
            len,
        });
        self.room += len;
    }

    /// Where the next frame goes, after [`gather`](Self::gather).
    #[inline]
    pub fn room(&self) -> &[iovec] {
        match self.posted.front() {
            Some(first) if !self.mergeable => &self.in_hand()[..first.buffers],
            _ => self.in_hand(),
        }
    }

    /// Bytes in [`room`](Self::room).
    #[inline]
    pub fn room_len(&self) -> usize {
        match self.posted.front() {
            Some(first) if !self.mergeable => first.len,
            _ => self.room,
        }
    }

    /// Gives the driver the frame of `len` bytes with its header that was received into [`room`](Self::room): at least a
    /// header, at most as much as there was room.
    pub fn deliver(&mut self, len: usize) -> Result<(), QueueError> {
        let (mut chains, mut covered) = (0, 0);
        while covered < len
            && let Some(posted) = self.posted.get(chains)
        {
            covered += posted.len;
            chains += 1;
        }
        self.write_num_buffers(chains as u16);
        let mut left = len;
        let used = self.posted.iter().take(chains).map(|posted| {
            let written = left.min(posted.len);
            left -= written;
            (posted.head, written as u32)
        });
        self.queue.complete_together(used)?;
        for posted in self.posted.drain(..chains) {
            self.first += posted.buffers;
            self.room -= posted.len;
        }
        Ok(())
    }

    /// §5.1.6.4.1: how many chains the frame takes, 1 without MRG_RXBUF.
    fn write_num_buffers(&self, chains: u16) {
        let mut bytes = chains.to_le_bytes().into_iter();
        for piece in pieces(self.in_hand(), NUM_BUFFERS, size_of::<u16>()) {
            for (at, byte) in (0..piece.iov_len).zip(&mut bytes) {
                // SAFETY: the piece lies in a buffer of a chain in hand, which was checked to be guest memory when it
                // was walked and stays mapped while the queue lives.
                unsafe { piece.iov_base.cast::<u8>().add(at).write(byte) };
            }
        }
    }

    /// Puts back what is in hand, so that the queue's state is that of a queue from which only used chains were taken.
    pub fn put_back(&mut self) {
        for _ in self.posted.drain(..) {
            self.queue.undo_pop();
        }
        (self.first, self.room) = (0, 0);
        self.buffers.clear();
    }
}

//! A network card as `smoltcp` wants one: frames taken from its receive queue and put into its transmit queue, one buffer each.

use alloc::vec::Vec;
use core::slice;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::super::net::{Card, FRAME_HEADER, HEADER, NUM_BUFFERS};
use crate::buffers::Buffers;
use crate::queue::{Descriptor, SplitQueue, Used};

/// A card with buffers for every entry of its queues.
pub struct Ethernet {
    card: Card,
    incoming: Buffers,
    outgoing: Buffers,
    /// Entries of the transmit queue that the device does not have.
    free: Vec<u16>,
    mtu: usize,
}

impl Ethernet {
    /// Lets frames come. They have at most `mtu` bytes behind their header.
    pub fn new(mut card: Card, mtu: usize) -> Self {
        let size = HEADER + FRAME_HEADER + mtu;
        let incoming = card.post_buffers(size);
        let entries = card.transmit.size();
        Self {
            incoming,
            outgoing: Buffers::new(entries.into(), size),
            free: (0..entries).collect(),
            mtu,
            card,
        }
    }

    /// The address that its frames are from.
    pub fn mac(&self) -> [u8; 6] {
        self.card.mac()
    }

    fn take_sent_back(&mut self) {
        while let Some(used) = self.card.transmit.take() {
            self.free.push(used.head as u16);
        }
    }
}

impl Device for Ethernet {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        self.take_sent_back();
        let &entry = self.free.last()?;
        let received = Received {
            used: self.card.receive.take()?,
            queue: &mut self.card.receive,
            buffers: &self.incoming,
            limit: HEADER + FRAME_HEADER + self.mtu,
        };
        let sending = Sending {
            entry,
            free: &mut self.free,
            queue: &mut self.card.transmit,
            buffers: &self.outgoing,
        };
        Some((received, sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.take_sent_back();
        let &entry = self.free.last()?;
        Some(Sending {
            entry,
            free: &mut self.free,
            queue: &mut self.card.transmit,
            buffers: &self.outgoing,
        })
    }

    /// Checksums are `smoltcp`'s to make and to check: a frame that has changed on its way is not acknowledged.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_HEADER + self.mtu;
        capabilities
    }
}

/// A frame that has come.
pub struct Received<'a> {
    used: Used,
    queue: &'a mut SplitQueue,
    buffers: &'a Buffers,
    /// Bytes of a buffer.
    limit: usize,
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let (piece, length) = (self.used.head as usize, self.used.length as usize);
        let pieces: u16 = self.buffers.read(piece, NUM_BUFFERS);
        assert_eq!(pieces, 1, "buffers of a frame, which fits into one");
        assert!(
            (HEADER..=self.limit).contains(&length),
            "a frame of {length} bytes"
        );
        // SAFETY: `start` has checked the piece, the assertion the length; the device has used the buffer, and gets it back below.
        let frame = unsafe { slice::from_raw_parts(self.buffers.start(piece).add(HEADER), length - HEADER) };
        let result = look(frame);
        self.queue.offer(self.used.head as u16);
        self.queue.publish();
        result
    }
}

/// A place for a frame to send.
pub struct Sending<'a> {
    /// The last of those that are free.
    entry: u16,
    free: &'a mut Vec<u16>,
    queue: &'a mut SplitQueue,
    buffers: &'a Buffers,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let piece = usize::from(self.entry);
        // The last byte is checked for; the header is zero and stays so: it asks the device for nothing.
        let _: u8 = self.buffers.read(piece, HEADER + length - 1);
        // SAFETY: the piece has the bytes, and it is not the device's until it is offered.
        let frame = unsafe { slice::from_raw_parts_mut(self.buffers.start(piece).add(HEADER), length) };
        let result = write(frame);
        let descriptor = Descriptor::read(self.buffers.address(piece, 0), (HEADER + length) as u32);
        self.free.pop();
        self.queue.describe(self.entry, descriptor);
        self.queue.offer(self.entry);
        self.queue.publish();
        result
    }
}

//! What the programs for network cards share: the card with its two queues, and the frames that they know as their own.

use alloc::format;

use bare_guest::arguments::Arguments;

use crate::buffers::Buffers;
use crate::device::{self, Device, kind};
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, SplitQueue, flag};
use crate::registers::offset;

/// Bytes of `virtio_net_hdr_v1` (virtio 1.3 §5.1.6), and where in it the number of buffers is.
pub const HEADER: usize = 12;
pub const NUM_BUFFERS: usize = 10;
/// Bytes of a MAC address; the addresses' places in a frame, and the protocol's.
const MAC: usize = 6;
const TO: usize = HEADER;
const FROM: usize = HEADER + MAC;
const PROTOCOL: usize = HEADER + 2 * MAC;
/// The first bytes of a frame, which is not shorter.
pub const FRAME_HEADER: usize = 14;
/// A protocol for experiments (IEEE Std 802, "Local Experimental EtherType 1"), big-endian.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF (virtio 1.3 §5.1.3).
const HAS_MAC: u64 = 1 << 5;
const MERGEABLE: u64 = 1 << 15;

/// Queues of the first pair (virtio 1.3 §5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A network card that works.
pub struct Card {
    /// Frames for the guest.
    pub receive: SplitQueue,
    /// Frames of the guest's.
    pub transmit: SplitQueue,
    mac: [u8; MAC],
}

impl Card {
    /// Starts the card that the arguments name, with queues of at most `depth`.
    pub fn start(arguments: &Arguments<'_>, depth: u16, interrupts: bool) -> Outcome<Self> {
        let registers = device::find(arguments, kind::NETWORK)?;
        let device = Device::negotiate(registers, device::event_idx(arguments)? | HAS_MAC | MERGEABLE)?;
        let word = |at| registers.read(offset::CONFIG + at).to_le_bytes();
        let ([a, b, c, d], [e, f, ..]) = (word(0), word(4));
        // A locally administered address for a card that has none.
        let own = [2, 0, 0, 0, 0, 1];
        let card = Self {
            receive: device.queue(RECEIVE, depth)?,
            transmit: device.queue(TRANSMIT, depth)?,
            mac: if device.has(HAS_MAC) {
                [a, b, c, d, e, f]
            } else {
                own
            },
        };
        if interrupts {
            device.enable_interrupts();
        }
        device.start();
        Ok(card)
    }

    /// The address that its frames are from.
    pub fn mac(&self) -> [u8; MAC] {
        self.mac
    }

    /// Makes buffers of `size` bytes for every entry of the receive queue, and hands them to the device.
    pub fn post_buffers(&mut self, size: usize) -> Buffers {
        let buffers = Buffers::new(self.receive.size().into(), size);
        for index in 0..self.receive.size() {
            let descriptor = Descriptor {
                address: buffers.address(index.into(), 0),
                length: size as u32,
                flags: flag::WRITE,
                next: 0,
            };
            self.receive.describe(index, descriptor);
            self.receive.offer(index);
        }
        self.receive.publish();
        buffers
    }

    /// Writes an experimental frame to everybody from this card.
    pub fn address_frame(&self, buffers: &Buffers, piece: usize) {
        buffers.write(piece, TO, [0xff_u8; MAC]);
        buffers.write(piece, FROM, self.mac);
        buffers.write(piece, PROTOCOL, EXPERIMENTAL);
    }

    /// Makes a frame that has come one that goes back.
    pub fn turn_around(&self, buffers: &Buffers, piece: usize) {
        // The header of a frame that comes tells what the host has checked and merged; one that goes asks for nothing.
        buffers.write(piece, 0, [0_u8; HEADER]);
        let sender: [u8; MAC] = buffers.read(piece, FROM);
        buffers.write(piece, TO, sender);
        buffers.write(piece, FROM, self.mac);
    }
}

/// Whether a frame is of these programs' protocol.
pub fn is_ours(buffers: &Buffers, piece: usize, length: u32) -> bool {
    length as usize >= HEADER + FRAME_HEADER && buffers.read::<[u8; 2]>(piece, PROTOCOL) == EXPERIMENTAL
}

/// The argument `size=`: bytes of a frame.
pub fn frame_size(arguments: &Arguments<'_>, default: u64) -> Outcome<usize> {
    let size = arguments.number("size")?.unwrap_or(default) as usize;
    if !(FRAME_HEADER..=65535).contains(&size) {
        return Err(Failure::new(format!(
            "size={size}: a frame has 14 to 65535 bytes"
        )));
    }
    Ok(size)
}

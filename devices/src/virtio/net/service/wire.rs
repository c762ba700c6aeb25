//! The wire between a service's stack and the guest, as `smoltcp` wants one: a frame that has come, and those that are to go.

use std::collections::VecDeque;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Bytes of an Ethernet header and a packet of an MTU that every guest can take.
const FRAME: usize = 14 + 1500;
/// Most frames that wait until the guest has buffers for them.
const WAITING: usize = 64;

/// Frames both ways.
#[derive(Default)]
pub struct Wire {
    /// One that has come, until it is received.
    pub coming: Option<Vec<u8>>,
    going: VecDeque<Vec<u8>>,
}

impl Wire {
    /// The frame that is next to go.
    pub fn next(&self) -> Option<&[u8]> {
        self.going.front().map(Vec::as_slice)
    }

    /// It has gone.
    pub fn forward(&mut self) {
        self.going.pop_front();
    }

    fn has_room(&self) -> bool {
        self.going.len() < WAITING
    }
}

impl Device for Wire {
    type RxToken<'a> = Coming;
    type TxToken<'a> = Going<'a>;

    /// A frame for whose answer there is no room is lost.
    fn receive(&mut self, _: Instant) -> Option<(Coming, Going<'_>)> {
        let frame = self.coming.take().filter(|_| self.has_room())?;
        Some((Coming(frame), Going(&mut self.going)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Going<'_>> {
        self.has_room().then_some(Going(&mut self.going))
    }

    /// Nothing changes on the way here. What the guest sends has no checksums yet if it leaves them to the host.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A frame that has come.
pub struct Coming(Vec<u8>);

impl RxToken for Coming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        look(&self.0)
    }
}

/// Room for one that is to go.
pub struct Going<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Going<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.push_back(frame);
        result
    }
}

//! Buffers to receive in, of devices that say something by themselves, or as an answer.

use super::live::Live;
use super::victim::{PIECE, SPARE};
use crate::queue::Descriptor;

/// The queue to receive from, for networks and sockets alike (virtio 1.3 §5.1.2, §5.10.2).
pub const RECEIVE: usize = 0;

/// Two buffers to receive in.
pub fn prepare(live: &mut Live<'_>) {
    let receive = &mut live.queues[RECEIVE];
    for (index, piece) in (0..).zip(SPARE) {
        receive.describe(index, Descriptor::write(live.victim.piece(piece), PIECE as u32));
        receive.offer(index);
    }
    receive.publish();
}

/// Hands each piece with something in it to `look`, and gives the buffers back.
pub fn take_all(live: &mut Live<'_>, mut look: impl FnMut(&Live<'_>, usize)) {
    while let Some(used) = live.queues[RECEIVE].take() {
        look(live, SPARE[used.head as usize % SPARE.len()]);
        live.queues[RECEIVE].offer(used.head as u16);
        live.queues[RECEIVE].publish();
    }
}

/// Offers a buffer that is no good, so many times, to a device that has no other.
pub fn offer_bad(live: &mut Live<'_>, times: u16, buffer: Descriptor) {
    let receive = &mut live.queues[RECEIVE];
    receive.describe(0, buffer);
    for _ in 0..times {
        receive.offer(0);
    }
    receive.publish();
}

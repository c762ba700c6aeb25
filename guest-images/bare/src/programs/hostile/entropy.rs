//! The entropy device (virtio 1.3 §5.4).

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked};
use super::victim::{Kind, PIECE, QUEUE_SIZE, Victim, must};
use crate::device::kind;
use crate::failure::Outcome;
use crate::pool;
use crate::queue::{Descriptor, Used};

/// Bytes that a sound request asks for: that they are all 0 is not going to happen.
const BYTES: u32 = 64;

/// How it is used.
pub const KIND: Kind = Kind {
    name: "rng",
    id: kind::ENTROPY,
    features: 0,
    queue: 0,
    request,
    prepare: |_| {},
    check,
    cases: &CASES,
};

const CASES: [Case; 3] = [
    Case {
        name: "rng-nothing-to-write",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            live.submit(0, &[Descriptor::read(victim.piece(0), BYTES)]);
            let used = live.wait_for(0)?;
            must(
                used.length == 0,
                "the device says that it has written to a buffer to read",
            )?;
            live.must_serve()
        },
    },
    Case {
        name: "rng-something-to-read-first",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            victim.data.fill(0, 0);
            let (to_read, to_write) = (victim.piece(0), victim.piece(1));
            let chain = vec![
                Descriptor::read(to_read, BYTES),
                Descriptor::write(to_write, BYTES),
            ];
            live.submit(0, &linked(0, chain));
            live.wait_for(0)?;
            let untouched = (0..PIECE).all(|byte| victim.data.read::<u8>(0, byte) == 0);
            must(untouched, "the device has written to a buffer to read")?;
            live.must_serve()
        },
    },
    Case {
        name: "rng-as-much-as-there-is-memory-many-times",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            // All of memory at once would be what this program stands on; a MiB as often as a chain goes is more than one
            // request may cost.
            let behind = pool::ram_end() - (1 << 20);
            let chain = vec![Descriptor::write(behind, (1 << 20) - PIECE as u32); usize::from(QUEUE_SIZE)];
            live.submit(0, &linked(0, chain));
            live.wait_for(0)?;
            live.must_serve()
        },
    },
];

fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    vec![Descriptor::write(victim.piece(piece), BYTES)]
}

fn check(live: &mut Live<'_>, piece: usize, used: Used) -> Outcome {
    must(
        used.length > 0 && used.length <= BYTES,
        "no random bytes, or too many",
    )?;
    let random = (0..BYTES as usize).any(|byte| live.victim.data.read::<u8>(piece, byte) != 0);
    must(random, "the random bytes are all 0")
}

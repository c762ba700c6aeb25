//! The memory balloon (virtio 1.3 §5.5).

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::Live;
use super::victim::{Kind, PIECE, SPARE, Victim, must};
use crate::device::kind;
use crate::failure::Outcome;
use crate::pool;
use crate::queue::{Descriptor, Used};
use crate::registers::offset;

/// Bytes of a page, and of its number.
const PAGE: u64 = 4096;
const NUMBER: u32 = 4;
/// What a page holds that the driver has not given away.
const FULL: u8 = 0xa5;
/// VIRTIO_BALLOON_F_PAGE_REPORTING, and the queue for that (virtio 1.3 §5.5.2, §5.5.3).
const PAGE_REPORTING: u64 = 1 << 5;
const REPORTING: usize = 4;

/// How it is used.
pub const KIND: Kind = Kind {
    name: "balloon",
    id: kind::BALLOON,
    features: PAGE_REPORTING,
    queue: 0,
    request,
    prepare: |_| {},
    check,
    cases: &CASES,
};

const CASES: [Case; 6] = [
    Case {
        name: "balloon-list-of-odd-length",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for bytes in [1, 3, 5, 4095] {
                inflate(&mut live, u64::from(u32::MAX), bytes)?;
            }
            live.must_serve()
        },
    },
    Case {
        name: "balloon-pages-that-are-no-memory",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let registers = u64::from(victim.registers.place().base);
            for page in [
                pool::ram_end() / PAGE,
                registers / PAGE,
                0xfee00,
                u64::from(u32::MAX),
                1 << 31,
            ] {
                inflate(&mut live, page, PIECE as u32)?;
            }
            live.must_serve()
        },
    },
    Case {
        name: "balloon-the-same-page-again-and-again",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for _ in 0..8 {
                inflate(&mut live, victim.piece(SPARE[0]) / PAGE, PIECE as u32)?;
            }
            live.must_serve()
        },
    },
    Case {
        name: "balloon-list-that-is-to-be-written",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            live.submit(0, &[Descriptor::write(victim.piece(0), PIECE as u32)]);
            live.wait_for(0)?;
            live.must_serve()
        },
    },
    Case {
        name: "balloon-list-as-long-as-it-can-be",
        deed: |victim| {
            // One descriptor over and over: a list of many pages that are no memory.
            let mut live = Live::start(victim)?;
            fill_list(victim, 0, u64::from(u32::MAX));
            let piece = Descriptor::read(victim.piece(0), PIECE as u32);
            let chain = vec![piece; usize::from(super::victim::QUEUE_SIZE)];
            live.submit(0, &super::live::linked(0, chain));
            live.wait_for(0)?;
            live.must_serve()
        },
    },
    Case {
        name: "balloon-reports-of-less-than-a-page",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let around = victim.piece(SPARE[1]);
            victim.data.fill(SPARE[1], FULL);
            for (address, bytes) in [
                (around, 1),
                (around + 1, 100),
                (around + 2048, 2048),
                (around + 4095, 1),
            ] {
                let Some(queue) = live.queues.get_mut(REPORTING) else {
                    return Ok(());
                };
                queue.describe(0, Descriptor::write(address, bytes));
                queue.offer(0);
                queue.publish();
                live.let_happen();
            }
            let kept = (0..PIECE).all(|byte| victim.data.read::<u8>(SPARE[1], byte) == FULL);
            must(kept, "the balloon has taken more than was reported")?;
            victim.registers.write(offset::QUEUE_NOTIFY, REPORTING as u32);
            live.must_serve()
        },
    },
];

fn fill_list(victim: &Victim, piece: usize, page: u64) {
    for at in (0..PIECE).step_by(NUMBER as usize) {
        victim.data.write(piece, at, page as u32);
    }
}

/// A list of `bytes` bytes with nothing but this page in it.
fn inflate(live: &mut Live<'_>, page: u64, bytes: u32) -> Outcome {
    fill_list(live.victim, 0, page);
    live.submit(0, &[Descriptor::read(live.victim.piece(0), bytes)]);
    live.wait_for(0).map(drop)
}

/// Gives a page away that is the balloon's own business.
fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    victim.data.fill(SPARE[0], FULL);
    let page = victim.piece(SPARE[0]) / PAGE;
    victim.data.write(piece, 0, page as u32);
    vec![Descriptor::read(victim.piece(piece), NUMBER)]
}

/// The host has another page for whoever touches one that was given away.
fn check(live: &mut Live<'_>, _piece: usize, _used: Used) -> Outcome {
    let gone = (0..PIECE).all(|byte| live.victim.data.read::<u8>(SPARE[0], byte) == 0);
    must(gone, "the page is not given back to the host")
}

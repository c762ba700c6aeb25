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

/// Bytes of a page, and of its number.
const PAGE: u64 = 4096;
const NUMBER: u32 = 4;
/// What a page holds that the driver has not given away.
const FULL: u8 = 0xa5;
/// VIRTIO_BALLOON_F_PAGE_REPORTING (virtio 1.3 §5.5.3).
const PAGE_REPORTING: u64 = 1 << 5;
/// The queues (virtio 1.3 §5.5.2).
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORTING: u16 = 4;

/// How pages are given to it.
pub const INFLATED: Kind = Kind {
    name: "balloon",
    id: kind::BALLOON,
    features: PAGE_REPORTING,
    queue: INFLATE,
    request: give_away,
    prepare: |_| {},
    check: is_gone,
    cases: &LISTS,
};

/// How pages are taken back.
pub const DEFLATED: Kind = Kind {
    name: "balloon-deflate",
    queue: DEFLATE,
    check: |_, _, used| must(used.length == 0, "the balloon says that it has written to a list"),
    ..INFLATED
};

/// How free pages are reported.
pub const REPORTED: Kind = Kind {
    name: "balloon-reports",
    queue: REPORTING,
    request: report,
    cases: &REPORTS,
    ..INFLATED
};

/// Of lists of pages, whether they are given or taken back.
const LISTS: [Case; 5] = [
    Case {
        name: "balloon-list-of-odd-length",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for bytes in [1, 3, 5, 4095] {
                list(&mut live, u64::from(u32::MAX), bytes)?;
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
                list(&mut live, page, PIECE as u32)?;
            }
            live.must_serve()
        },
    },
    Case {
        name: "balloon-the-same-page-again-and-again",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for _ in 0..8 {
                list(&mut live, victim.piece(SPARE[0]) / PAGE, PIECE as u32)?;
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
];

const REPORTS: [Case; 2] = [
    Case {
        name: "report-of-less-than-a-page",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let around = victim.piece(SPARE[1]);
            victim.data.fill(SPARE[1], FULL);
            for (from, bytes) in [(0, 1), (1, 100), (2048, 2048), (4095, 1)] {
                live.submit(0, &[Descriptor::write(around + from, bytes)]);
                live.wait_for(0)?;
            }
            kept(victim)?;
            live.must_serve()
        },
    },
    Case {
        name: "report-that-is-to-be-read",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            victim.data.fill(SPARE[1], FULL);
            live.submit(0, &[Descriptor::read(victim.piece(SPARE[1]), PIECE as u32)]);
            live.wait_for(0)?;
            kept(victim)?;
            live.must_serve()
        },
    },
];

/// The second spare piece is no page that was reported.
fn kept(victim: &Victim) -> Outcome {
    let kept = (0..PIECE).all(|byte| victim.data.read::<u8>(SPARE[1], byte) == FULL);
    must(kept, "the balloon has taken more than was reported")
}

fn fill_list(victim: &Victim, piece: usize, page: u64) {
    for at in (0..PIECE).step_by(NUMBER as usize) {
        victim.data.write(piece, at, page as u32);
    }
}

/// A list of `bytes` bytes with nothing but this page in it.
fn list(live: &mut Live<'_>, page: u64, bytes: u32) -> Outcome {
    fill_list(live.victim, 0, page);
    live.submit(0, &[Descriptor::read(live.victim.piece(0), bytes)]);
    live.wait_for(0).map(drop)
}

/// Gives a page away that is the balloon's own business.
fn give_away(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    victim.data.fill(SPARE[0], FULL);
    let page = victim.piece(SPARE[0]) / PAGE;
    victim.data.write(piece, 0, page as u32);
    vec![Descriptor::read(victim.piece(piece), NUMBER)]
}

/// The same by a report.
fn report(victim: &Victim, _piece: usize) -> Vec<Descriptor> {
    victim.data.fill(SPARE[0], FULL);
    vec![Descriptor::write(victim.piece(SPARE[0]), PIECE as u32)]
}

/// The host has another page for whoever touches one that was given away.
fn is_gone(live: &mut Live<'_>, _piece: usize, _used: Used) -> Outcome {
    let gone = (0..PIECE).all(|byte| live.victim.data.read::<u8>(SPARE[0], byte) == 0);
    must(gone, "the page is not given back to the host")
}

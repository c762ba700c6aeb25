//! The block device (virtio 1.3 §5.2).

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked, stands};
use super::victim::{Kind, Victim, must};
use crate::device::kind;
use crate::failure::Outcome;
use crate::queue::{Descriptor, Used};
use crate::registers::offset;

/// VIRTIO_BLK_F_FLUSH, _DISCARD and _WRITE_ZEROES (virtio 1.3 §5.2.3).
const FEATURES: u64 = 1 << 9 | 1 << 13 | 1 << 14;

/// Where in a piece a request's parts are.
const HEADER: usize = 0;
const STATUS: usize = 64;
const RANGE: usize = 128;
const DATA: usize = 512;
const HEADER_BYTES: u32 = 16;
const SECTOR: u32 = 512;

/// Request types (virtio 1.3 §5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// VIRTIO_BLK_S_OK, and what no device writes.
const OK: u8 = 0;
const UNWRITTEN: u8 = 0xff;

/// How it is used.
pub const KIND: Kind = Kind {
    name: "disk",
    id: kind::BLOCK,
    features: FEATURES,
    queue: 0,
    request,
    prepare: |_| {},
    check,
    cases: &CASES,
};

const CASES: [Case; 17] = [
    Case {
        name: "disk-type-that-does-not-exist",
        deed: |victim| {
            for kind in [2, 3, 5, 7, 9, 0x100, 0x8000_0000, u32::MAX] {
                refused(victim, kind, 0, |at| vec![at.data(SECTOR)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-read-behind-the-end",
        deed: |victim| {
            for sector in beyond(victim) {
                refused(victim, IN, sector, |at| vec![at.data(2 * SECTOR)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-write-behind-the-end",
        deed: |victim| {
            for sector in beyond(victim) {
                refused(victim, OUT, sector, |at| vec![at.source(2 * SECTOR)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-read-of-part-of-a-sector",
        deed: |victim| {
            for bytes in [1, SECTOR - 1, SECTOR + 1] {
                refused(victim, IN, 0, |at| vec![at.data(bytes)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-write-of-part-of-a-sector",
        deed: |victim| {
            for bytes in [1, SECTOR - 1, SECTOR + 1] {
                refused(victim, OUT, 0, |at| vec![at.source(bytes)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-read-into-a-buffer-to-read",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let at = Request::write(victim, 0, IN, 0);
            live.submit(0, &at.chain(vec![at.source(SECTOR)]));
            live.wait_for_either(0)?;
            let untouched = (0..SECTOR as usize).all(|byte| victim.data.read::<u8>(0, DATA + byte) == 0);
            must(untouched, "the disk has written to a buffer to read")
        },
    },
    Case {
        name: "disk-write-from-a-buffer-to-write",
        deed: |victim| {
            let at = Request::write(victim, 0, OUT, 0);
            stands(victim, &at.chain(vec![at.data(SECTOR)]))
        },
    },
    Case {
        name: "disk-header-too-short",
        deed: |victim| {
            for bytes in [1, HEADER_BYTES - 1] {
                not_done(victim, |at| {
                    vec![Descriptor::read(at.header, bytes), at.data(SECTOR), at.status()]
                })?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-header-to-be-written",
        deed: |victim| {
            let header = |at: &Request| Descriptor::write(at.header, HEADER_BYTES);
            not_done(victim, |at| vec![header(at), at.data(SECTOR), at.status()])
        },
    },
    Case {
        name: "disk-header-alone",
        deed: |victim| not_done(victim, |at| vec![Descriptor::read(at.header, HEADER_BYTES)]),
    },
    Case {
        name: "disk-status-alone",
        deed: |victim| not_done(victim, |at| vec![at.status()]),
    },
    Case {
        name: "disk-no-room-for-a-status",
        deed: |victim| {
            let at = Request::write(victim, 0, OUT, 0);
            let header = Descriptor::read(at.header, HEADER_BYTES);
            stands(victim, &linked(0, vec![header, at.source(SECTOR)]))
        },
    },
    Case {
        name: "disk-id-into-too-little-room",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for bytes in [1, 19] {
                let at = Request::write(victim, 0, GET_ID, 0);
                live.submit(0, &at.chain(vec![at.data(bytes)]));
                live.wait_for_either(0)?;
                let behind: u8 = victim.data.read(0, DATA + bytes as usize);
                must(behind == 0, "the disk has written behind the buffer")?;
            }
            Ok(())
        },
    },
    Case {
        name: "disk-flush-with-data-and-a-sector",
        deed: |victim| {
            let at = Request::write(victim, 0, FLUSH, u64::MAX);
            stands(victim, &at.chain(vec![at.source(SECTOR)]))
        },
    },
    Case {
        name: "disk-discard-and-write-zeroes-of-nonsense",
        deed: |victim| {
            let end = capacity(victim);
            for kind in [DISCARD, WRITE_ZEROES] {
                let known = if kind == DISCARD { 0 } else { 1 };
                for (sector, sectors, flags) in [
                    (end, 8, 0),
                    (end - 1, 2, 0),
                    (u64::MAX, 1, 0),
                    (u64::MAX, u32::MAX, 0),
                    (0, u32::MAX, 0),
                    (0, 8, known + 1),
                    (0, 8, 0x8000_0000),
                ] {
                    refused(victim, kind, 0, |at| {
                        at.range(sector, sectors, flags);
                        vec![Descriptor::read(at.range, 16)]
                    })?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "disk-discard-and-write-zeroes-of-odd-length",
        deed: |victim| {
            for kind in [DISCARD, WRITE_ZEROES] {
                for bytes in [1, 8, 15, 17, 24, 32] {
                    refused(victim, kind, 0, |at| {
                        at.range(0, 8, 0);
                        vec![Descriptor::read(at.range, bytes)]
                    })?;
                }
                refused(victim, kind, 0, |_| Vec::new())?;
            }
            Ok(())
        },
    },
    Case {
        // Nothing is wrong with it: how a message is cut into buffers is the driver's business (virtio 1.3 §2.7.4.3).
        name: "disk-request-cut-into-odd-buffers",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let at = Request::write(victim, 0, IN, 0);
            let byte = |n: u64| Descriptor::read(at.header + n, 1);
            let mut chain: Vec<_> = (0..u64::from(HEADER_BYTES)).map(byte).collect();
            // 512 bytes of data, and the status right behind.
            chain.extend([at.data(1), Descriptor::write(at.data(1).address + 1, SECTOR)]);
            victim.data.write(0, DATA + SECTOR as usize, UNWRITTEN);
            live.submit(0, &linked(0, chain));
            live.wait_for(0)?;
            let status: u8 = victim.data.read(0, DATA + SECTOR as usize);
            must(status == OK, "a request in odd buffers has failed")?;
            live.must_serve()
        },
    },
];

/// A request in a piece, with the addresses of its parts.
struct Request<'a> {
    victim: &'a Victim,
    piece: usize,
    header: u64,
    range: u64,
}

impl<'a> Request<'a> {
    /// Writes the header; nothing is in the rest.
    fn write(victim: &'a Victim, piece: usize, kind: u32, sector: u64) -> Self {
        victim.data.fill(piece, 0);
        victim.data.write(piece, HEADER, kind);
        victim.data.write(piece, HEADER + 8, sector);
        victim.data.write(piece, STATUS, UNWRITTEN);
        Self {
            victim,
            piece,
            header: victim.data.address(piece, HEADER),
            range: victim.data.address(piece, RANGE),
        }
    }

    /// Room for what is read from the disk.
    fn data(&self, bytes: u32) -> Descriptor {
        Descriptor::write(self.victim.data.address(self.piece, DATA), bytes)
    }

    /// What is written to the disk.
    fn source(&self, bytes: u32) -> Descriptor {
        Descriptor::read(self.victim.data.address(self.piece, DATA), bytes)
    }

    fn status(&self) -> Descriptor {
        Descriptor::write(self.victim.data.address(self.piece, STATUS), 1)
    }

    /// A range of sectors (`virtio_blk_discard_write_zeroes`).
    fn range(&self, sector: u64, sectors: u32, flags: u32) {
        self.victim.data.write(self.piece, RANGE, sector);
        self.victim.data.write(self.piece, RANGE + 8, sectors);
        self.victim.data.write(self.piece, RANGE + 12, flags);
    }

    /// The header, this, and the status.
    fn chain(&self, middle: Vec<Descriptor>) -> Vec<Descriptor> {
        let mut chain = vec![Descriptor::read(self.header, HEADER_BYTES)];
        chain.extend(middle);
        chain.push(self.status());
        linked(0, chain)
    }
}

fn capacity(victim: &Victim) -> u64 {
    let word = |at| u64::from(victim.registers.read(offset::CONFIG + at));
    word(0) | word(4) << 32
}

/// Sectors at which two sectors are not all on the disk.
fn beyond(victim: &Victim) -> [u64; 6] {
    let end = capacity(victim);
    [end - 1, end, end + 1, 1 << 55, 1 << 63, u64::MAX]
}

/// The request must come back with an error, and the disk goes on.
fn refused(victim: &Victim, kind: u32, sector: u64, middle: impl Fn(&Request) -> Vec<Descriptor>) -> Outcome {
    let mut live = Live::start(victim)?;
    let at = Request::write(victim, 0, kind, sector);
    let middle = middle(&at);
    live.submit(0, &at.chain(middle));
    live.wait_for(0)?;
    let status: u8 = victim.data.read(0, STATUS);
    must(status != UNWRITTEN, "the request has come back without a status")?;
    must(status != OK, "the disk says that it has done it")?;
    live.must_serve()
}

/// A read that no device can make out: it must not say that it has done it.
fn not_done(victim: &Victim, chain: impl Fn(&Request) -> Vec<Descriptor>) -> Outcome {
    let mut live = Live::start(victim)?;
    let at = Request::write(victim, 0, IN, 0);
    live.submit(0, &linked(0, chain(&at)));
    live.wait_for_either(0)?;
    must(
        victim.data.read::<u8>(0, STATUS) != OK,
        "the disk says that it has done it",
    )
}

/// Reads the first sector.
fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    let at = Request::write(victim, piece, IN, 0);
    vec![
        Descriptor::read(at.header, HEADER_BYTES),
        at.data(SECTOR),
        at.status(),
    ]
}

fn check(live: &mut Live<'_>, piece: usize, used: Used) -> Outcome {
    let status: u8 = live.victim.data.read(piece, STATUS);
    must(status == OK, "the disk cannot read its first sector")?;
    must(
        used.length == SECTOR + 1,
        "the disk has not written as much as was asked for",
    )
}

//! The network card (virtio 1.3 §5.1). Its other end is a host that has an address and answers who asks for it.

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked, stands};
use super::receive::{self, prepare};
use super::victim::{Kind, PIECE, SPARE, Victim, eventually, must};
use crate::device::kind;
use crate::failure::Outcome;
use crate::queue::{Descriptor, Used};

/// The queue to send by, of the first pair (virtio 1.3 §5.1.2).
const TRANSMIT: u16 = 1;
/// VIRTIO_NET_F_CSUM, _HOST_TSO4 and _CTRL_VQ (virtio 1.3 §5.1.3): so that headers may ask for something, and commands be sent.
pub const FEATURES: u64 = 1 | 1 << 11 | 1 << 17;
/// Bytes of `virtio_net_hdr_v1` (virtio 1.3 §5.1.6), and of an ARP frame as Ethernet pads it.
const HEADER: usize = 12;
const FRAME: usize = 60;
const ALL: u32 = (HEADER + FRAME) as u32;

/// `virtio_net_hdr_v1` up to the number of buffers: flags, type of segments, header length, segment size, checksum start and offset.
type Offload = (u8, u8, u16, u16, u16, u16);

/// How it is used.
pub const KIND: Kind = Kind {
    name: "net",
    id: kind::NETWORK,
    features: FEATURES,
    queue: TRANSMIT,
    request,
    prepare,
    check,
    cases: &CASES,
};

const CASES: [Case; 7] = [
    Case {
        name: "net-frame-without-a-whole-header",
        deed: |victim| {
            request(victim, 0);
            for bytes in [1, HEADER as u32 - 1, HEADER as u32, HEADER as u32 + 13] {
                stands(victim, &[Descriptor::read(victim.piece(0), bytes)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "net-frame-that-is-to-be-written",
        deed: |victim| stands(victim, &[Descriptor::write(victim.piece(0), ALL)]),
    },
    Case {
        name: "net-frame-of-more-than-64-kib",
        deed: |victim| {
            request(victim, 0);
            let chain = vec![Descriptor::read(victim.piece(0), PIECE as u32); 24];
            stands(victim, &linked(0, chain))
        },
    },
    Case {
        name: "net-header-that-lies",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let lies: [Offload; 10] = [
                (1, 0, 0, 0, u16::MAX, u16::MAX),
                (1, 0, 0, 0, 0, u16::MAX),
                (1, 0, 0, 0, 59, 0),
                (0, 1, u16::MAX, 1, 0, 0),
                (1, 1, 54, 0, 34, 16),
                (1, 1, 0, u16::MAX, 34, 16),
                (1, 3, 42, 8, 34, 6),
                (1, 5, 42, 8, 34, 6),
                (0xff, 0xff, u16::MAX, u16::MAX, u16::MAX, u16::MAX),
                (2, 0x81, 1, 1, 1, 1),
            ];
            for lie in lies {
                request(victim, 0);
                write_offload(victim, 0, lie);
                live.submit(0, &[Descriptor::read(victim.piece(0), ALL)]);
                live.wait_for(0)?;
            }
            live.must_serve()
        },
    },
    Case {
        name: "net-receive-buffers-that-are-too-small",
        deed: |victim| {
            for bytes in [1, HEADER as u32 - 1, HEADER as u32, HEADER as u32 + 1] {
                receive_in(victim, Descriptor::write(victim.piece(SPARE[0]), bytes))?;
            }
            Ok(())
        },
    },
    Case {
        name: "net-receive-buffers-that-are-to-be-read",
        deed: |victim| receive_in(victim, Descriptor::read(victim.piece(SPARE[0]), PIECE as u32)),
    },
    Case {
        name: "net-receive-buffers-of-no-memory",
        deed: |victim| receive_in(victim, Descriptor::write(1 << 60, PIECE as u32)),
    },
];

/// Has the host answer when there are only such buffers. What the device does is its own business.
fn receive_in(victim: &Victim, buffer: Descriptor) -> Outcome {
    let mut live = Live::prepare_bare(victim)?;
    live.let_work();
    receive::offer_bad(&mut live, 4, buffer);
    for slot in 0..4 {
        live.ask(slot);
    }
    live.let_happen();
    Ok(())
}

fn write_offload(victim: &Victim, piece: usize, offload: Offload) {
    let (flags, kind, header, segment, start, offset) = offload;
    victim.data.write(piece, 0, flags);
    victim.data.write(piece, 1, kind);
    for (at, word) in [(2, header), (4, segment), (6, start), (8, offset)] {
        victim.data.write(piece, at, word);
    }
}

/// The addresses of the host's end and of ours (RFC 5737, TEST-NET-1).
const HOST: [u8; 4] = [192, 0, 2, 1];
const OURS: [u8; 4] = [192, 0, 2, 2];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// The protocol of ARP in Ethernet, and where in the frame an answer has it and the address that it is about.
const ARP: [u8; 2] = [0x08, 0x06];
const PROTOCOL: usize = HEADER + 12;
const SENDER: usize = HEADER + 28;

/// Asks who has the host's address (RFC 826).
fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    victim.data.fill(piece, 0);
    let mut frame = Vec::with_capacity(FRAME);
    frame.extend([0xff; 6]);
    frame.extend(MAC);
    frame.extend(ARP);
    // Ethernet and IPv4, with addresses of 6 and of 4 bytes; a question.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(OURS);
    frame.extend([0; 6]);
    frame.extend(HOST);
    victim.write_data(piece, HEADER, &frame);
    vec![Descriptor::read(victim.piece(piece), ALL)]
}

/// The host must answer; what else comes is let go.
fn check(live: &mut Live<'_>, _piece: usize, _used: Used) -> Outcome {
    let mut answered = false;
    eventually("the host does not answer", || {
        receive::take_all(live, |live, from| {
            let protocol: [u8; 2] = live.victim.data.read(from, PROTOCOL);
            let sender: [u8; 4] = live.victim.data.read(from, SENDER);
            answered |= protocol == ARP && sender == HOST;
        });
        answered || !live.runs()
    })?;
    must(answered, "the device needs a reset, and did not have to")
}

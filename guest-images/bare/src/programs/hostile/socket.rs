//! The socket device (virtio 1.3 §5.10).

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked, stands};
use super::receive::{self, prepare};
use super::victim::{Kind, PIECE, QUEUE_SIZE, SPARE, Victim, eventually, must};
use crate::device::kind;
use crate::failure::{Failure, Outcome};
use crate::pool;
use crate::queue::{Descriptor, Used};
use crate::registers::offset;

/// The queues beside that to receive from (virtio 1.3 §5.10.2).
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// VIRTIO_VSOCK_F_STREAM (virtio 1.3 §5.10.3).
const STREAMS: u64 = 1 << 0;

/// Bytes of a packet's header, and the host (virtio 1.3 §5.10.4, §5.10.6).
const HEADER: u32 = 44;
const HOST: u64 = 2;
/// The type of streams, and operations (virtio 1.3 §5.10.6).
const STREAM: u16 = 1;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// A port where nobody listens on the host.
const NOBODY: u32 = 0x7fff_fff0;
/// A port where a program must listen on the host that accepts connections and does not read.
const LISTENER: u32 = 5000;
/// The first of the ports that the guest says that it comes from.
const FROM: u32 = 10_000;

/// How it is used.
pub const KIND: Kind = Kind {
    name: "vsock",
    id: kind::SOCKET,
    features: STREAMS,
    queue: TRANSMIT,
    request,
    prepare,
    check,
    cases: &CASES,
};

const CASES: [Case; 11] = [
    Case {
        name: "vsock-more-than-there-is-credit-for",
        deed: overrun,
    },
    Case {
        name: "vsock-connections-without-end",
        deed: connect_without_end,
    },
    Case {
        name: "vsock-header-too-short",
        deed: |victim| {
            Packet::default().write(victim, 0);
            for bytes in [1, HEADER - 1] {
                stands(victim, &[Descriptor::read(victim.piece(0), bytes)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-header-to-be-written",
        deed: |victim| stands(victim, &[Descriptor::write(victim.piece(0), HEADER)]),
    },
    Case {
        name: "vsock-length-that-lies",
        deed: |victim| {
            for len in [1, 4096, 0x1_0000, 0x7fff_ffff, u32::MAX] {
                for op in [REQUEST, RW] {
                    send(
                        victim,
                        Packet {
                            op,
                            len,
                            ..Packet::default()
                        },
                    )?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-addresses-of-others",
        deed: |victim| {
            for cid in [0, 1, 2, 3, u64::from(u32::MAX), 1 << 32, u64::MAX] {
                send(
                    victim,
                    Packet {
                        from_cid: Some(cid),
                        ..Packet::default()
                    },
                )?;
                send(
                    victim,
                    Packet {
                        to_cid: cid,
                        ..Packet::default()
                    },
                )?;
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-operations-and-types-that-do-not-exist",
        deed: |victim| {
            for op in [0, 8, 0x100, u16::MAX] {
                send(
                    victim,
                    Packet {
                        op,
                        ..Packet::default()
                    },
                )?;
            }
            for kind in [0, 2, 3, u16::MAX] {
                send(
                    victim,
                    Packet {
                        kind,
                        ..Packet::default()
                    },
                )?;
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-packets-of-no-connection",
        deed: |victim| {
            for op in [RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST] {
                for flags in [0, 3, u32::MAX] {
                    send(
                        victim,
                        Packet {
                            op,
                            flags,
                            ..Packet::default()
                        },
                    )?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-credit-of-nonsense",
        deed: |victim| {
            for (buf_alloc, fwd_cnt) in [(0, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (1, 0x8000_0000)] {
                for op in [REQUEST, CREDIT_UPDATE, CREDIT_REQUEST, RW] {
                    send(
                        victim,
                        Packet {
                            op,
                            buf_alloc,
                            fwd_cnt,
                            ..Packet::default()
                        },
                    )?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-nowhere-to-receive",
        deed: |victim| {
            // Answers that nobody takes, more of them than any queue is long; then buffers that are too small, and to be read.
            let mut live = Live::prepare_bare(victim)?;
            live.let_work();
            for round in 0..8 {
                for slot in 0..QUEUE_SIZE {
                    let packet = Packet {
                        from_port: FROM + u32::from(slot) + 100 * round,
                        ..Packet::default()
                    };
                    packet.write(victim, 0);
                    live.submit(slot, &[Descriptor::read(victim.piece(0), HEADER)]);
                }
                live.let_happen();
            }
            for buffer in [
                Descriptor::write(victim.piece(SPARE[0]), HEADER - 1),
                Descriptor::write(victim.piece(SPARE[0]), HEADER),
                Descriptor::read(victim.piece(SPARE[0]), PIECE as u32),
            ] {
                receive::offer_bad(&mut live, 1, buffer);
                live.let_happen();
            }
            Ok(())
        },
    },
    Case {
        name: "vsock-buffers-for-events-of-nonsense",
        deed: |victim| {
            // The one event there is (virtio 1.3 §5.10.6.7) is for guests that have moved: no buffer is looked at.
            let mut live = Live::start(victim)?;
            for buffer in [
                Descriptor::write(victim.piece(0), 1),
                Descriptor::write(victim.piece(0), 0),
                Descriptor::read(victim.piece(0), PIECE as u32),
                Descriptor::write(pool::ram_end(), u32::MAX),
                Descriptor::write(victim.piece(0), 8).to(0),
                Descriptor::indirect(victim.piece(0), 7),
            ] {
                live.submit_to(EVENT, 0, &[buffer]);
                live.queues[usize::from(EVENT)].kick();
                live.must_serve()?;
            }
            for entries in [1, QUEUE_SIZE, u16::MAX] {
                live.queues[usize::from(EVENT)].jump(entries);
                live.must_serve()?;
            }
            let event = live.queues[usize::from(EVENT)].take();
            must(event.is_none(), "there is an event that is none")
        },
    },
];

/// A packet's header.
#[derive(Clone, Copy)]
struct Packet {
    /// The guest's own, if there is none.
    from_cid: Option<u64>,
    to_cid: u64,
    from_port: u32,
    to_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Default for Packet {
    /// Asks for a connection to a port where nobody listens.
    fn default() -> Self {
        Self {
            from_cid: None,
            to_cid: HOST,
            from_port: FROM,
            to_port: NOBODY,
            len: 0,
            kind: STREAM,
            op: REQUEST,
            flags: 0,
            buf_alloc: 4096,
            fwd_cnt: 0,
        }
    }
}

impl Packet {
    fn write(&self, victim: &Victim, piece: usize) {
        let word = |at| u64::from(victim.registers.read(offset::CONFIG + at));
        let from_cid = self.from_cid.unwrap_or_else(|| word(0) | word(4) << 32);
        let data = &victim.data;
        data.write(piece, 0, from_cid);
        data.write(piece, 8, self.to_cid);
        data.write(piece, 16, self.from_port);
        data.write(piece, 20, self.to_port);
        data.write(piece, 24, self.len);
        data.write(piece, 28, self.kind);
        data.write(piece, 30, self.op);
        data.write(piece, 32, self.flags);
        data.write(piece, 36, self.buf_alloc);
        data.write(piece, 40, self.fwd_cnt);
    }
}

/// Sends it with some bytes behind. The device must take it, or say that it needs a reset.
fn send(victim: &Victim, packet: Packet) -> Outcome {
    let mut live = Live::start(victim)?;
    victim.data.fill(0, 0);
    packet.write(victim, 0);
    let chain = vec![
        Descriptor::read(victim.piece(0), HEADER),
        Descriptor::read(victim.piece(1), 100),
    ];
    live.submit(0, &linked(0, chain));
    if live.wait_for_either(0)?.is_some() {
        live.must_serve()?;
    }
    Ok(())
}

fn port(piece: usize) -> u32 {
    FROM + 1 + piece as u32
}

fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    let packet = Packet {
        from_port: port(piece),
        ..Packet::default()
    };
    packet.write(victim, piece);
    vec![Descriptor::read(victim.piece(piece), HEADER)]
}

/// The connection must be refused.
fn check(live: &mut Live<'_>, piece: usize, _used: Used) -> Outcome {
    let op = answer(live, port(piece))?;
    must(op == RST, "a connection to nobody is not refused")
}

/// What the host says first to this port; what it says to others is let go.
fn answer(live: &mut Live<'_>, port: u32) -> Outcome<u16> {
    let mut answer = None;
    eventually("the host does not answer", || {
        take_packets(live, |to_port, op| {
            if to_port == port {
                answer.get_or_insert(op);
            }
        });
        answer.is_some() || !live.runs()
    })?;
    answer.ok_or_else(|| Failure::new("the device needs a reset, and did not have to"))
}

/// Takes what has come: the ports that it is for, and operations.
fn take_packets(live: &mut Live<'_>, mut packet: impl FnMut(u32, u16)) {
    receive::take_all(live, |live, from| {
        packet(live.victim.data.read(from, 20), live.victim.data.read(from, 30));
    });
}

/// A packet to the program that listens on the host, which a test has started.
fn to_listener(from_port: u32, op: u16, len: u32) -> Packet {
    Packet {
        from_port,
        to_port: LISTENER,
        op,
        len,
        ..Packet::default()
    }
}

/// Sends data, more of it than there can be credit for, to a program that does not read.
fn overrun(victim: &Victim) -> Outcome {
    const PIECES: u32 = QUEUE_SIZE as u32 - 1;
    let mut live = Live::start(victim)?;
    to_listener(FROM, REQUEST, 0).write(victim, 0);
    live.submit(0, &[Descriptor::read(victim.piece(0), HEADER)]);
    let connected = answer(&mut live, FROM)? == RESPONSE;
    must(
        connected,
        "no program listens on the host at the port that this case is for",
    )?;
    for _ in 0..32 {
        to_listener(FROM, RW, PIECES * PIECE as u32).write(victim, 0);
        let mut chain = vec![Descriptor::read(victim.piece(0), HEADER)];
        chain.extend((0..PIECES).map(|_| Descriptor::read(victim.piece(1), PIECE as u32)));
        live.submit(0, &linked(0, chain));
        if live.wait_for_either(0)?.is_none() {
            return Ok(());
        }
        take_packets(&mut live, |_, _| {});
    }
    live.must_serve()
}

/// Opens connection after connection, and sends something over each.
fn connect_without_end(victim: &Victim) -> Outcome {
    let mut live = Live::start(victim)?;
    for from_port in FROM..FROM + 700 {
        for (op, len) in [(REQUEST, 0), (RW, PIECE as u32)] {
            to_listener(from_port, op, len).write(victim, 0);
            let chain = vec![
                Descriptor::read(victim.piece(0), HEADER),
                Descriptor::read(victim.piece(1), PIECE as u32),
            ];
            live.submit(0, &linked(0, chain));
            if live.wait_for_either(0)?.is_none() {
                return Ok(());
            }
            take_packets(&mut live, |_, _| {});
        }
    }
    live.must_serve()
}

//! The control queue of a network with two queue pairs (virtio 1.3 §5.1.6.5).

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked};
use super::network;
use super::victim::{Kind, PIECE, Victim, must};
use crate::device::kind;
use crate::failure::Outcome;
use crate::queue::{Descriptor, Used};

/// How many pairs the network must have, and the queue behind all of them (virtio 1.3 §5.1.2).
const PAIRS: u16 = 2;
const CONTROL: u16 = 2 * PAIRS;
/// VIRTIO_NET_F_MQ (virtio 1.3 §5.1.3).
const SEVERAL_PAIRS: u64 = 1 << 22;

/// A command is a class, a number and, for this one, how many pairs are used (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, virtio 1.3 §5.1.6.5.5).
const MULTIQUEUE: u8 = 4;
const PAIRS_SET: u8 = 0;
const COMMAND: u32 = 4;
/// Where in a piece the answer is: one byte (virtio 1.3 §5.1.6.5).
const ANSWER: usize = 64;
/// VIRTIO_NET_OK and VIRTIO_NET_ERR, and what no device writes.
const OK: u8 = 0;
const ERROR: u8 = 1;
const UNWRITTEN: u8 = 0xff;

/// How it is used.
pub const KIND: Kind = Kind {
    name: "net-control",
    id: kind::NETWORK,
    features: network::FEATURES | SEVERAL_PAIRS,
    queue: CONTROL,
    request,
    prepare: |_| {},
    check,
    cases: &CASES,
};

const CASES: [Case; 10] = [
    Case {
        name: "control-pairs-that-there-are-not",
        deed: |victim| {
            for pairs in [0, PAIRS + 1, 0x100, 0x8000, u16::MAX] {
                refused(victim, MULTIQUEUE, PAIRS_SET, pairs)?;
            }
            Ok(())
        },
    },
    Case {
        name: "control-classes-that-do-not-exist",
        deed: |victim| {
            for class in [0, 1, 2, 3, 5, 6, 0x80, 0xff] {
                refused(victim, class, 0, 1)?;
            }
            Ok(())
        },
    },
    Case {
        name: "control-commands-that-do-not-exist",
        deed: |victim| {
            for number in [1, 2, 3, 0x80, 0xff] {
                refused(victim, MULTIQUEUE, number, 1)?;
            }
            Ok(())
        },
    },
    Case {
        name: "control-command-too-short",
        deed: |victim| {
            for bytes in 1..COMMAND {
                write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
                answers(victim, vec![command(victim, bytes), answer(victim)], ERROR)?;
            }
            Ok(())
        },
    },
    Case {
        name: "control-answer-alone",
        deed: |victim| {
            write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
            answers(victim, vec![answer(victim)], ERROR)
        },
    },
    Case {
        name: "control-no-room-for-an-answer",
        deed: |victim| {
            for bytes in [1, COMMAND] {
                let mut live = Live::start(victim)?;
                write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
                live.submit(0, &[command(victim, bytes)]);
                let used = live.wait_for(0)?;
                must(used.length == 0, "the device says that it has written an answer")?;
                live.must_serve()?;
            }
            Ok(())
        },
    },
    Case {
        name: "control-command-that-is-to-be-written",
        deed: |victim| {
            // The answer goes into the first byte that there is to write.
            let mut live = Live::start(victim)?;
            write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
            let command = Descriptor::write(victim.piece(0), COMMAND);
            live.submit(0, &linked(0, vec![command, answer(victim)]));
            let used = live.wait_for(0)?;
            let refused = used.length == 1 && victim.data.read::<u8>(0, 0) == ERROR;
            must(refused, "a command that is none is not refused")?;
            live.must_serve()
        },
    },
    Case {
        name: "control-far-more-than-a-command",
        deed: |victim| {
            // A device may take the command in front for what it is, and may not.
            let mut live = Live::start(victim)?;
            write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
            let more = Descriptor::read(victim.piece(1), PIECE as u32);
            let mut chain = vec![command(victim, COMMAND)];
            chain.extend([more; 28]);
            chain.push(Descriptor::write(victim.piece(2), PIECE as u32));
            victim.data.fill(2, UNWRITTEN);
            live.submit(0, &linked(0, chain));
            let used = live.wait_for(0)?;
            let rest = (1..PIECE).all(|byte| victim.data.read::<u8>(2, byte) == UNWRITTEN);
            let answered = used.length == 1 && victim.data.read::<u8>(2, 0) != UNWRITTEN;
            must(answered && rest, "the answer is not one byte")?;
            live.must_serve()
        },
    },
    Case {
        // Nothing is wrong with it: how a message is cut into buffers is the driver's business (virtio 1.3 §2.7.4.3).
        name: "control-command-cut-into-bytes",
        deed: |victim| {
            write(victim, 0, MULTIQUEUE, PAIRS_SET, 1);
            let byte = |n: u32| Descriptor::read(victim.piece(0) + u64::from(n), 1);
            let mut chain: Vec<_> = (0..COMMAND).map(byte).collect();
            chain.push(answer(victim));
            answers(victim, chain, OK)
        },
    },
    Case {
        name: "control-pairs-turned-on-and-off-many-times",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for turn in 0..32 {
                write(victim, 0, MULTIQUEUE, PAIRS_SET, turn % (PAIRS + 1));
                live.submit(0, &linked(0, vec![command(victim, COMMAND), answer(victim)]));
                live.wait_for(0)?;
                let expected = if turn % (PAIRS + 1) == 0 { ERROR } else { OK };
                let answer: u8 = victim.data.read(0, ANSWER);
                must(answer == expected, "the device has not done as it was told")?;
            }
            live.must_serve()
        },
    },
];

/// Writes a command, without an answer, into a piece.
fn write(victim: &Victim, piece: usize, class: u8, number: u8, pairs: u16) {
    victim.data.write(piece, 0, class);
    victim.data.write(piece, 1, number);
    victim.data.write(piece, 2, pairs);
    victim.data.write(piece, ANSWER, UNWRITTEN);
}

/// So many bytes of the first piece's command.
fn command(victim: &Victim, bytes: u32) -> Descriptor {
    Descriptor::read(victim.piece(0), bytes)
}

/// Room for the first piece's answer.
fn answer(victim: &Victim) -> Descriptor {
    Descriptor::write(victim.data.address(0, ANSWER), 1)
}

/// The chain must come back with this answer, and the device goes on.
fn answers(victim: &Victim, chain: Vec<Descriptor>, expected: u8) -> Outcome {
    let mut live = Live::start(victim)?;
    live.submit(0, &linked(0, chain));
    live.wait_for(0)?;
    let answer: u8 = victim.data.read(0, ANSWER);
    must(answer == expected, "the command is not answered as it should be")?;
    live.must_serve()
}

/// The command must be answered with an error.
fn refused(victim: &Victim, class: u8, number: u8, pairs: u16) -> Outcome {
    write(victim, 0, class, number, pairs);
    answers(victim, vec![command(victim, COMMAND), answer(victim)], ERROR)
}

/// Has all pairs used.
fn request(victim: &Victim, piece: usize) -> Vec<Descriptor> {
    write(victim, piece, MULTIQUEUE, PAIRS_SET, PAIRS);
    vec![
        Descriptor::read(victim.piece(piece), COMMAND),
        Descriptor::write(victim.data.address(piece, ANSWER), 1),
    ]
}

fn check(live: &mut Live<'_>, piece: usize, used: Used) -> Outcome {
    let answer: u8 = live.victim.data.read(piece, ANSWER);
    must(
        answer == OK && used.length == 1,
        "the device does not use all pairs",
    )
}

//! Chains of descriptors that no driver should make (virtio 1.3 §2.7.5, §2.7.4.2, §2.7.5.3.1): the device must need a reset.

use alloc::vec;
use alloc::vec::Vec;

use super::Case;
use super::live::{Live, linked};
use super::victim::{PIECE, QUEUE_SIZE, Victim};
use crate::device::feature;
use crate::failure::Outcome;
use crate::pool;
use crate::queue::{Descriptor, flag};

/// Bytes of a descriptor.
const ENTRY: u32 = size_of::<Descriptor>() as u32;
/// A buffer of any size.
const SOME: u32 = 64;

/// All of them.
pub const CASES: [Case; 36] = [
    Case {
        name: "chain-that-leads-to-itself",
        deed: |victim| fails(victim, &[some(victim).to(0)]),
    },
    Case {
        name: "chain-of-two-in-a-circle",
        deed: |victim| fails(victim, &[some(victim).to(1), some(victim).to(0)]),
    },
    Case {
        name: "chain-of-all-in-a-circle",
        deed: |victim| {
            let next = |index| some(victim).to((index + 1) % QUEUE_SIZE);
            fails(victim, &(0..QUEUE_SIZE).map(next).collect::<Vec<_>>())
        },
    },
    Case {
        name: "chain-that-leads-behind-the-table",
        deed: |victim| fails(victim, &[some(victim).to(QUEUE_SIZE)]),
    },
    Case {
        name: "chain-that-leads-far-behind-the-table",
        deed: |victim| fails(victim, &[some(victim).to(u16::MAX)]),
    },
    Case {
        name: "buffer-of-no-bytes",
        deed: |victim| fails(victim, &[Descriptor::write(victim.piece(0), 0)]),
    },
    Case {
        name: "buffer-of-no-bytes-behind-others",
        deed: |victim| {
            let empty = Descriptor::write(victim.piece(1), 0);
            fails(victim, &[Descriptor::read(victim.piece(0), SOME).to(1), empty])
        },
    },
    Case {
        name: "buffer-of-no-bytes-where-there-is-no-memory",
        deed: |victim| fails(victim, &[Descriptor::read(u64::MAX, 0)]),
    },
    Case {
        name: "buffer-of-4-gib",
        deed: |victim| fails(victim, &[Descriptor::write(victim.piece(0), u32::MAX)]),
    },
    Case {
        name: "buffer-across-the-end-of-memory",
        deed: |victim| fails(victim, &[Descriptor::write(pool::ram_end() - 16, SOME)]),
    },
    Case {
        name: "buffer-behind-memory",
        deed: |victim| fails(victim, &[Descriptor::read(pool::ram_end(), SOME)]),
    },
    Case {
        name: "buffer-in-registers",
        deed: |victim| {
            let registers = u64::from(victim.registers.place().base);
            fails(victim, &[Descriptor::write(registers, SOME)])?;
            fails(victim, &[Descriptor::read(registers, SOME)])
        },
    },
    Case {
        name: "buffer-in-interrupt-controllers",
        deed: |victim| {
            fails(victim, &[Descriptor::write(0xfec0_0000, SOME)])?;
            fails(victim, &[Descriptor::write(0xfee0_0000, SOME)])
        },
    },
    Case {
        name: "buffer-across-the-end-of-the-address-space",
        deed: |victim| {
            fails(victim, &[Descriptor::write(0_u64.wrapping_sub(16), SOME)])?;
            fails(victim, &[Descriptor::read(0_u64.wrapping_sub(16), 16)])?;
            fails(victim, &[Descriptor::read(0_u64.wrapping_sub(1), u32::MAX)])
        },
    },
    Case {
        name: "buffer-with-a-high-address",
        deed: |victim| {
            for bit in [32, 40, 52, 63] {
                fails(victim, &[Descriptor::write(victim.piece(0) | 1 << bit, SOME)])?;
            }
            Ok(())
        },
    },
    Case {
        name: "buffers-of-4-gib-together",
        deed: |victim| {
            let all = u32::try_from(pool::ram_end()).unwrap_or(u32::MAX);
            let buffers = vec![Descriptor::write(0, all); usize::from(QUEUE_SIZE)];
            // As many as it takes, and one that is wrong in any case: nothing of it all may be written.
            let mut chain = linked(0, buffers);
            chain[usize::from(QUEUE_SIZE) - 1] = Descriptor::write(pool::ram_end() - 1, 2);
            fails(victim, &chain)
        },
    },
    Case {
        name: "buffer-to-read-behind-one-to-write",
        deed: |victim| {
            let to_read = Descriptor::read(victim.piece(1), SOME);
            fails(victim, &[Descriptor::write(victim.piece(0), SOME).to(1), to_read])
        },
    },
    Case {
        name: "buffers-to-read-and-to-write-by-turns",
        deed: |victim| {
            let turn = |n| match n % 2 {
                0 => Descriptor::read(victim.piece(0), SOME),
                _ => Descriptor::write(victim.piece(1), SOME),
            };
            fails(victim, &linked(0, (0..6).map(turn).collect()))
        },
    },
    Case {
        name: "indirect-without-the-feature",
        deed: |victim| {
            let table = victim.table(0, &[some(victim)]);
            let mut live = Live::start_with(victim, 0)?;
            live.submit(0, &[Descriptor::indirect(table, ENTRY)]);
            victim.must_need_reset()
        },
    },
    Case {
        name: "indirect-in-indirect",
        deed: |victim| {
            let inner = victim.table(1, &[some(victim)]);
            indirect(victim, &[Descriptor::indirect(inner, ENTRY)])
        },
    },
    Case {
        name: "indirect-in-itself",
        deed: |victim| {
            let itself = victim.table(0, &[]);
            indirect(victim, &[Descriptor::indirect(itself, ENTRY)])
        },
    },
    Case {
        name: "indirect-in-indirect-behind-others",
        deed: |victim| {
            let inner = victim.table(1, &[some(victim)]);
            indirect(victim, &[some(victim).to(1), Descriptor::indirect(inner, ENTRY)])
        },
    },
    Case {
        name: "indirect-of-the-queues-own-table",
        deed: |victim| {
            let own = victim.rings.address(victim.kind.queue.into(), 0);
            fails(
                victim,
                &[Descriptor::indirect(own, ENTRY * u32::from(QUEUE_SIZE))],
            )
        },
    },
    Case {
        name: "indirect-with-another-behind-it",
        deed: |victim| {
            let table = victim.table(0, &[some(victim)]);
            fails(victim, &[Descriptor::indirect(table, ENTRY).to(1), some(victim)])
        },
    },
    Case {
        name: "indirect-of-no-bytes",
        deed: |victim| indirect_bytes(victim, 0),
    },
    Case {
        name: "indirect-of-less-than-a-descriptor",
        deed: |victim| indirect_bytes(victim, ENTRY - 1),
    },
    Case {
        name: "indirect-of-odd-length",
        deed: |victim| {
            indirect_bytes(victim, ENTRY + 1)?;
            indirect_bytes(victim, ENTRY + ENTRY / 2)
        },
    },
    Case {
        name: "indirect-longer-than-the-queue",
        deed: |victim| indirect_bytes(victim, ENTRY * (u32::from(QUEUE_SIZE) + 1)),
    },
    Case {
        name: "indirect-of-4-gib",
        deed: |victim| indirect_bytes(victim, 0_u32.wrapping_sub(ENTRY)),
    },
    Case {
        name: "indirect-behind-memory",
        deed: |victim| fails(victim, &[Descriptor::indirect(pool::ram_end(), ENTRY)]),
    },
    Case {
        name: "indirect-across-the-end-of-memory",
        deed: |victim| fails(victim, &[Descriptor::indirect(pool::ram_end() - 16, 2 * ENTRY)]),
    },
    Case {
        name: "indirect-across-the-end-of-the-address-space",
        deed: |victim| fails(victim, &[Descriptor::indirect(0_u64.wrapping_sub(16), 2 * ENTRY)]),
    },
    Case {
        name: "indirect-chain-in-a-circle",
        deed: |victim| indirect(victim, &[some(victim).to(1), some(victim).to(0)]),
    },
    Case {
        name: "indirect-chain-that-leads-behind-the-table",
        deed: |victim| indirect(victim, &[some(victim).to(1)]),
    },
    Case {
        // Nothing is wrong with these: a device must ignore flags that it does not know, and WRITE of a table.
        name: "flags-to-be-ignored",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            victim.data.fill(0, 0);
            let mut request = linked(0, (victim.kind.request)(victim, 0));
            let table = victim.table(0, &request);
            let length = ENTRY * request.len() as u32;
            live.submit(0, &[Descriptor::indirect(table, length).with(flag::WRITE)]);
            live.wait_for(0)?;
            for descriptor in &mut request {
                descriptor.flags |= !(flag::NEXT | flag::WRITE | flag::INDIRECT);
            }
            victim.data.fill(0, 0);
            (victim.kind.request)(victim, 0);
            live.submit(0, &request);
            live.wait_for(0)?;
            live.must_serve()
        },
    },
    Case {
        name: "buffers-that-overlap",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let at = |byte| Descriptor::write(victim.piece(0) + byte, SOME);
            let read = Descriptor::read(victim.piece(0), PIECE as u32);
            live.submit(0, &linked(0, vec![read, at(0), at(0), at(8), at(1)]));
            live.queue().kick();
            live.let_happen();
            Ok(())
        },
    },
];

fn some(victim: &Victim) -> Descriptor {
    Descriptor::write(victim.piece(0), SOME)
}

/// The descriptors from 0 on are these, and 0 is offered.
fn fails(victim: &Victim, chain: &[Descriptor]) -> Outcome {
    let mut live = Live::start_with(victim, feature::INDIRECT)?;
    live.submit(0, chain);
    victim.must_need_reset()
}

/// The same with the descriptors in a table.
fn indirect(victim: &Victim, chain: &[Descriptor]) -> Outcome {
    let table = victim.table(0, chain);
    fails(victim, &[Descriptor::indirect(table, ENTRY * chain.len() as u32)])
}

/// A table of this many bytes, in which every descriptor is sound.
fn indirect_bytes(victim: &Victim, bytes: u32) -> Outcome {
    let chain = vec![some(victim); usize::from(QUEUE_SIZE) + 1];
    let table = victim.table(0, &linked(0, chain));
    fails(victim, &[Descriptor::indirect(table, bytes)])
}

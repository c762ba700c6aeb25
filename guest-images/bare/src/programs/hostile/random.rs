//! Descriptors and rings of random numbers, from a few that are likely to matter.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use bare_guest::numbers::Random;

use super::Case;
use super::live::Live;
use super::victim::{PIECE, QUEUE_SIZE, SLOTS, Victim};
use crate::device::feature;
use crate::pool;
use crate::queue::{Descriptor, flag};

/// All of them.
pub const CASES: [Case; 1] = [Case {
    name: "random-descriptors-and-rings",
    deed: |victim| {
        /// Every round has its own numbers; every run has the same.
        static SEED: AtomicU64 = AtomicU64::new(1);
        for _ in 0..16 {
            let mut random = Random::new(SEED.fetch_add(1, Ordering::Relaxed));
            let mut live = Live::start_with(victim, feature::INDIRECT | random.draw() & feature::EVENT_IDX)?;
            victim.table(0, &descriptors(victim, &mut random));
            for _ in 0..4 {
                for (index, descriptor) in (0..).zip(descriptors(victim, &mut random)) {
                    live.queue().describe(index, descriptor);
                }
                for _ in 0..random.draw() % 8 {
                    live.queue().offer(head(&mut random));
                }
                live.queue().publish();
                live.queue().kick();
            }
            live.let_happen();
        }
        Ok(())
    },
}];

/// Mostly one of the queue's.
fn head(random: &mut Random) -> u16 {
    (random.draw() % (u64::from(QUEUE_SIZE) * 33 / 32)) as u16
}

fn descriptors(victim: &Victim, random: &mut Random) -> Vec<Descriptor> {
    let one = |_| {
        let descriptor = Descriptor {
            address: address(victim, random),
            length: length(random),
            flags: (random.draw() % 8) as u16
                & if random.draw().is_multiple_of(4) {
                    !0
                } else {
                    !flag::INDIRECT
                },
            next: head(random),
        };
        // Never to be read: a balloon would take what is in it for pages of this program's.
        if descriptor.address == victim.rings.address(victim.kind.queue.into(), 0) {
            return descriptor.with(flag::WRITE);
        }
        descriptor
    };
    (0..QUEUE_SIZE).map(one).collect()
}

fn length(random: &mut Random) -> u32 {
    match random.draw() % 8 {
        0 => 0,
        1 => u32::MAX,
        2 => 16,
        3 => 1,
        _ => (random.draw() % (PIECE as u64)) as u32,
    }
}

/// Memory of the victim's, so that nothing else is overwritten; or none.
fn address(victim: &Victim, random: &mut Random) -> u64 {
    let piece = (random.draw() % u64::from(SLOTS)) as usize;
    match random.draw() % 16 {
        0 => pool::ram_end() - 16,
        1 => random.draw() | 1 << 63,
        2 => victim.registers.place().base.into(),
        3 => victim.rings.address(victim.kind.queue.into(), 0),
        _ => victim.piece(piece),
    }
}

//! The queues beside the one that the other cases misuse: to receive from, for events, for reports, of other pairs. A device may take
//! chains from them at once, later or never: it either serves on or says that it needs a reset, and always when their place is bad.

use super::Case;
use super::live::{Live, linked};
use super::placement::start_with_queue;
use super::victim::{QUEUE_SIZE, Victim};
use crate::failure::Outcome;
use crate::pool;
use crate::queue::Descriptor;

/// Bytes of a buffer.
const SOME: u32 = 64;

/// All of them.
pub const CASES: [Case; 8] = [
    Case {
        name: "beside-queues-behind-memory",
        deed: |victim| {
            each(victim, |queue| {
                start_with_queue(victim, queue, |queue| queue.descriptors = pool::ram_end())?;
                victim.must_need_reset()?;
                start_with_queue(victim, queue, |queue| queue.device = pool::ram_end() - 4)?;
                victim.must_need_reset()
            })
        },
    },
    Case {
        name: "beside-queue-sizes-no-power-of-two",
        deed: |victim| {
            each(victim, |queue| {
                start_with_queue(victim, queue, |queue| queue.size = 3)?;
                victim.must_need_reset()
            })
        },
    },
    Case {
        name: "beside-queues-not-ready",
        deed: |victim| {
            each(victim, |queue| {
                let mut live = start_with_queue(victim, queue, |queue| queue.ready = 0)?;
                live.queues[usize::from(queue)].jump(1);
                live.let_happen();
                Ok(())
            })
        },
    },
    Case {
        name: "beside-chains-in-a-circle",
        deed: |victim| {
            stands(victim, |live, queue| {
                live.submit_to(queue, 0, &[some(victim).to(0)])
            })
        },
    },
    Case {
        name: "beside-buffers-where-there-is-no-memory",
        deed: |victim| {
            stands(victim, |live, queue| {
                for (head, address) in [
                    (0, pool::ram_end() - 16),
                    (1, 0_u64.wrapping_sub(16)),
                    (2, 1 << 60),
                ] {
                    live.submit_to(queue, head, &[Descriptor::write(address, SOME)]);
                }
            })
        },
    },
    Case {
        name: "beside-buffers-of-the-wrong-direction",
        deed: |victim| {
            stands(victim, |live, queue| {
                let (read, write) = (Descriptor::read(victim.piece(0), SOME), some(victim));
                live.submit_to(queue, 0, &[read]);
                live.submit_to(queue, 1, &[write]);
                live.submit_to(queue, 2, &linked(2, [write, read].into()));
            })
        },
    },
    Case {
        name: "beside-heads-behind-the-table",
        deed: |victim| {
            stands(victim, |live, queue| {
                let queue = &mut live.queues[usize::from(queue)];
                queue.offer(QUEUE_SIZE);
                queue.offer(u16::MAX);
                queue.publish();
            })
        },
    },
    Case {
        name: "beside-available-indices-that-jump",
        deed: |victim| {
            stands(victim, |live, queue| {
                live.queues[usize::from(queue)].jump(QUEUE_SIZE + 1);
            })
        },
    },
];

fn some(victim: &Victim) -> Descriptor {
    Descriptor::write(victim.piece(0), SOME)
}

/// Does something with every queue but the one that the other cases misuse.
fn each(victim: &Victim, deed: impl Fn(u16) -> Outcome) -> Outcome {
    (0..victim.queues())
        .filter(|queue| *queue != victim.kind.queue)
        .try_for_each(deed)
}

/// The same with a device that works: it goes on doing so, or says that it does not.
fn stands(victim: &Victim, deed: impl Fn(&mut Live<'_>, u16)) -> Outcome {
    each(victim, |queue| {
        let mut live = Live::start(victim)?;
        deed(&mut live, queue);
        live.queues[usize::from(queue)].kick();
        match live.must_serve() {
            Err(_) if !live.runs() => Ok(()),
            other => other,
        }
    })
}

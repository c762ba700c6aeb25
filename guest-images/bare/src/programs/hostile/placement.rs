//! Queues of impossible sizes and in impossible places (virtio 1.3 §2.7, §4.2.2): the device must not start with them.

use super::Case;
use super::live::Live;
use super::victim::{QUEUE_SIZE, Victim};
use crate::device::feature;
use crate::failure::Outcome;
use crate::pool;
use crate::queue::{Descriptor, Parts, SplitQueue};
use crate::registers::offset;

/// What a driver tells of a queue.
#[derive(Clone, Copy)]
pub struct Placement {
    pub size: u32,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
    pub ready: u32,
}

/// All of them.
pub const CASES: [Case; 21] = [
    Case {
        name: "queue-of-no-entries",
        deed: |victim| fails(victim, |queue| queue.size = 0),
    },
    Case {
        name: "queue-size-no-power-of-two",
        deed: |victim| fails(victim, |queue| queue.size = 3),
    },
    Case {
        name: "queue-larger-than-the-device-allows",
        deed: |victim| {
            let max = victim.largest[usize::from(victim.kind.queue)];
            fails(victim, |queue| queue.size = 2 * max)
        },
    },
    Case {
        name: "queue-size-of-more-than-16-bits",
        deed: |victim| fails(victim, |queue| queue.size += 0x1_0000),
    },
    Case {
        name: "queue-not-ready",
        deed: |victim| {
            // A device that can do without it may also work.
            let mut live = start_with(victim, |queue| queue.ready = 0)?;
            live.queue().kick();
            live.let_happen();
            Ok(())
        },
    },
    Case {
        name: "descriptors-not-aligned",
        deed: |victim| fails(victim, |queue| queue.descriptors += 8),
    },
    Case {
        name: "available-ring-not-aligned",
        deed: |victim| fails(victim, |queue| queue.driver += 1),
    },
    Case {
        name: "used-ring-not-aligned",
        deed: |victim| fails(victim, |queue| queue.device += 2),
    },
    Case {
        name: "descriptors-behind-memory",
        deed: |victim| fails(victim, |queue| queue.descriptors = pool::ram_end()),
    },
    Case {
        name: "available-ring-behind-memory",
        deed: |victim| fails(victim, |queue| queue.driver = pool::ram_end()),
    },
    Case {
        name: "used-ring-behind-memory",
        deed: |victim| fails(victim, |queue| queue.device = pool::ram_end()),
    },
    Case {
        name: "descriptors-across-the-end-of-memory",
        deed: |victim| fails(victim, |queue| queue.descriptors = pool::ram_end() - 16),
    },
    Case {
        name: "available-ring-across-the-end-of-memory",
        deed: |victim| fails(victim, |queue| queue.driver = pool::ram_end() - 2),
    },
    Case {
        name: "used-ring-across-the-end-of-memory",
        deed: |victim| fails(victim, |queue| queue.device = pool::ram_end() - 4),
    },
    Case {
        name: "queue-across-the-end-of-the-address-space",
        deed: |victim| {
            fails(victim, |queue| queue.descriptors = 0_u64.wrapping_sub(16))?;
            fails(victim, |queue| queue.driver = 0_u64.wrapping_sub(2))?;
            fails(victim, |queue| queue.device = 0_u64.wrapping_sub(4))
        },
    },
    Case {
        name: "queue-in-registers",
        deed: |victim| {
            let registers = u64::from(victim.registers.place().base);
            fails(victim, |queue| queue.descriptors = registers)?;
            fails(victim, |queue| queue.driver = registers)?;
            fails(victim, |queue| queue.device = registers + offset::CONFIG as u64)
        },
    },
    Case {
        name: "queue-with-high-addresses",
        deed: |victim| {
            for bit in [32, 40, 52, 63] {
                fails(victim, |queue| queue.descriptors |= 1 << bit)?;
                fails(victim, |queue| queue.device |= 1 << bit)?;
            }
            Ok(())
        },
    },
    Case {
        name: "queue-at-address-zero",
        deed: |victim| {
            let mut live = start_with(victim, |queue| {
                (queue.descriptors, queue.driver, queue.device) = (0, 0, 0);
            })?;
            live.queue().kick();
            live.let_happen();
            Ok(())
        },
    },
    Case {
        name: "queue-with-all-parts-in-one-place",
        deed: |victim| {
            let mut live = start_with(victim, |queue| {
                (queue.driver, queue.device) = (queue.descriptors, queue.descriptors);
            })?;
            live.ask(0);
            live.queue().jump(1);
            live.let_happen();
            Ok(())
        },
    },
    Case {
        name: "queue-ready-with-another-value-than-one",
        deed: |victim| {
            for ready in [2, 0x100, u32::MAX] {
                let mut live = start_with(victim, |queue| queue.ready = ready)?;
                live.queue().kick();
                live.let_happen();
            }
            Ok(())
        },
    },
    Case {
        // Nothing is wrong with it: the check that finds those above must not go too far.
        name: "descriptors-at-the-very-end-of-memory",
        deed: |victim| {
            let mut live = Live::prepare(victim, feature::EVENT_IDX)?;
            let queue = victim.kind.queue;
            let bytes = usize::from(QUEUE_SIZE) * size_of::<Descriptor>();
            let descriptors = (pool::ram_end() as usize) - bytes;
            victim.rings.fill(queue.into(), 0);
            // The queue that has been made ready is made anew.
            victim.registers.write(offset::QUEUE_SELECT, queue.into());
            victim.registers.write(offset::QUEUE_READY, 0);
            // SAFETY: the last page of RAM is nobody's, and the piece is the victim's, which uses it for nothing else.
            *live.queue() = unsafe {
                let parts = Parts {
                    descriptors: core::ptr::with_exposed_provenance_mut(descriptors),
                    ..Parts::at(victim.rings.start(queue.into()), QUEUE_SIZE)
                };
                SplitQueue::of(&victim.registers, queue, QUEUE_SIZE, true, parts)
            };
            live.let_work();
            live.must_serve()
        },
    },
];

/// Starts the device with all queues as they should be but for this one; it must say that it needs a reset.
fn fails(victim: &Victim, change: impl FnOnce(&mut Placement)) -> Outcome {
    start_with(victim, change)?;
    victim.must_need_reset()
}

fn start_with(victim: &Victim, change: impl FnOnce(&mut Placement)) -> Outcome<Live<'_>> {
    start_with_queue(victim, victim.kind.queue, change)
}

/// The same with any queue.
pub fn start_with_queue(
    victim: &Victim,
    queue: u16,
    change: impl FnOnce(&mut Placement),
) -> Outcome<Live<'_>> {
    let live = Live::prepare(victim, 0)?;
    let registers = &victim.registers;
    let parts = live.queues[usize::from(queue)].parts();
    let mut placement = Placement {
        size: live.queues[usize::from(queue)].size().into(),
        descriptors: parts.descriptors.addr() as u64,
        driver: parts.available.addr() as u64,
        device: parts.used.addr() as u64,
        ready: 1,
    };
    change(&mut placement);
    registers.write(offset::QUEUE_SELECT, queue.into());
    registers.write(offset::QUEUE_READY, 0);
    registers.write(offset::QUEUE_SIZE, placement.size);
    registers.write_address(offset::QUEUE_DESCRIPTORS, placement.descriptors);
    registers.write_address(offset::QUEUE_DRIVER, placement.driver);
    registers.write_address(offset::QUEUE_DEVICE, placement.device);
    registers.write(offset::QUEUE_READY, placement.ready);
    live.let_work();
    Ok(live)
}

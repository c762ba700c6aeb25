//! Rings with contents that no driver should write (virtio 1.3 §2.7.6, §2.7.13).

use super::Case;
use super::live::Live;
use super::victim::{QUEUE_SIZE, SLOTS, Victim, must};
use crate::device::feature;
use crate::failure::Outcome;
use crate::queue::Descriptor;
use crate::registers::offset;

/// All of them.
pub const CASES: [Case; 10] = [
    Case {
        name: "available-index-jumps-a-little-too-far",
        deed: |victim| jumps(victim, QUEUE_SIZE + 1),
    },
    Case {
        name: "available-index-jumps-far",
        deed: |victim| jumps(victim, 0x8000),
    },
    Case {
        name: "available-index-goes-back",
        deed: |victim| jumps(victim, u16::MAX),
    },
    Case {
        name: "head-behind-the-table",
        deed: |victim| bad_head(victim, QUEUE_SIZE),
    },
    Case {
        name: "head-far-behind-the-table",
        deed: |victim| bad_head(victim, u16::MAX),
    },
    Case {
        name: "head-offered-again-and-again",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let head = live.ask(0);
            for _ in 1..QUEUE_SIZE {
                live.queue().offer(head);
            }
            live.queue().publish();
            live.let_happen();
            Ok(())
        },
    },
    Case {
        name: "suppression-fields-of-nonsense",
        deed: |victim| {
            for features in [0, feature::EVENT_IDX] {
                let mut live = Live::start_with(victim, features)?;
                for (flags, used_event) in [(0xffff, 0xffff), (0xfffe, 0x8000), (1, 0), (0, 0x1234)] {
                    live.queue().write_suppression(flags, used_event);
                    live.must_serve()?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "rings-with-requests-of-every-slot-rung-for-each-time",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let mut last = 0;
            for slot in 0..SLOTS {
                last = live.ask(slot);
                live.queue().kick();
            }
            live.wait_for(last)?;
            live.must_serve()
        },
    },
    Case {
        name: "rings-as-a-buffer-to-write",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let ring = victim.rings.address(victim.kind.queue.into(), 0);
            live.submit(0, &[Descriptor::write(ring, super::victim::PIECE as u32)]);
            live.queue().kick();
            live.let_happen();
            live.queue().jump(1);
            live.let_happen();
            Ok(())
        },
    },
    Case {
        name: "queue-taken-back-while-it-runs",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for slot in 0..SLOTS {
                live.ask(slot);
            }
            for queue in 0..victim.queues() {
                victim.registers.write(offset::QUEUE_SELECT, queue.into());
                victim.registers.write(offset::QUEUE_READY, 0);
                let ready = victim.registers.read(offset::QUEUE_READY);
                must(ready == 0, "the device does not give the queue back")?;
                victim.registers.write(offset::QUEUE_NOTIFY, queue.into());
            }
            live.let_happen();
            Ok(())
        },
    },
];

fn jumps(victim: &Victim, by: u16) -> Outcome {
    let mut live = Live::start(victim)?;
    live.queue().jump(by);
    victim.must_need_reset()
}

fn bad_head(victim: &Victim, head: u16) -> Outcome {
    let mut live = Live::start(victim)?;
    live.queue().offer(head);
    live.queue().jump(0);
    victim.must_need_reset()
}

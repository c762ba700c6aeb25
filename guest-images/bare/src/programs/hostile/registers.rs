//! Register and configuration accesses that no driver should make (virtio 1.3 §4.2.2.2, §4.2.3.3).

use super::Case;
use super::live::Live;
use super::victim::{QUEUE_SIZE, Victim, must};
use crate::device::feature;
use crate::registers::{self, offset};

/// Registers that a driver only reads, with numbers that do not change while nobody writes others.
const READ_ONLY: [usize; 5] = [
    offset::MAGIC,
    offset::VERSION,
    offset::DEVICE_ID,
    offset::VENDOR_ID,
    offset::CONFIG_GENERATION,
];
/// Offsets where no register is, or a legacy one (virtio 1.3 table 4.1, §4.2.4), or one to read.
const NOTHING_TO_WRITE: [usize; 14] = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x028, 0x034, 0x03c, 0x040, 0x060, 0x0b0, 0x0bc, 0x0f8, 0x0fc,
];
/// The most that is known of any device's configuration space, with room behind it; and the end of the page.
const CONFIGURATION: [core::ops::Range<usize>; 2] = [offset::CONFIG..offset::CONFIG + 0x50, 0xff0..0x1000];

/// All of them.
pub const CASES: [Case; 12] = [
    Case {
        name: "registers-of-odd-widths-read",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            odd_accesses(|at, bytes| _ = victim.registers.read_any(at, bytes));
            live.must_serve()
        },
    },
    Case {
        name: "registers-of-odd-widths-written",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for value in [0, u64::MAX] {
                odd_accesses(|at, bytes| victim.registers.write_any(at, bytes, value));
            }
            live.must_serve()
        },
    },
    Case {
        name: "registers-to-read-written",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            let read = || READ_ONLY.map(|at| victim.registers.read(at));
            let before = read();
            for at in NOTHING_TO_WRITE {
                victim.registers.write(at, u32::MAX);
            }
            must(before == read(), "a register to read has been written")?;
            live.must_serve()
        },
    },
    Case {
        name: "registers-of-shared-memory",
        deed: |victim| {
            for region in [0, 1, u32::MAX] {
                victim.registers.write(0x0ac, region);
                let length = [0x0b0, 0x0b4].map(|at| victim.registers.read(at));
                must(length == [u32::MAX; 2], "there is a region of shared memory")?;
            }
            Ok(())
        },
    },
    Case {
        name: "registers-across-two-devices",
        deed: |victim| {
            // The last byte and the next device's first: the bytes are nobody's as a whole.
            let last = registers::Registers::at(bare_guest::arguments::Placement {
                size: 0x1008,
                ..victim.registers.place()
            });
            last.read_any(0xffc, 8);
            last.write_any(0xffc, 8, u64::MAX);
            last.write_any(0xfff, 2, u64::MAX);
            Ok(())
        },
    },
    Case {
        name: "configuration-reads-of-every-width",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            configuration(|at, bytes| _ = victim.registers.read_any(at, bytes));
            live.must_serve()
        },
    },
    Case {
        name: "configuration-writes-of-every-width",
        deed: |victim| {
            victim.set_status(0);
            configuration(|at, bytes| victim.registers.write_any(at, bytes, u64::MAX));
            let mut live = Live::start(victim)?;
            configuration(|at, bytes| victim.registers.write_any(at, bytes, u64::MAX));
            configuration(|at, bytes| victim.registers.write_any(at, bytes, 0));
            live.must_serve()
        },
    },
    Case {
        name: "interrupts-acknowledged-that-were-none",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for bits in [0, 1, 2, u32::MAX] {
                victim.registers.write(offset::INTERRUPT_ACK, bits);
                live.must_serve()?;
            }
            Ok(())
        },
    },
    Case {
        name: "notification-of-queues-that-do-not-exist",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for index in [u32::from(victim.queues()), 0x7fff, 0xffff, 0x1_0000, u32::MAX] {
                victim.registers.write(offset::QUEUE_NOTIFY, index);
            }
            live.must_serve()
        },
    },
    Case {
        name: "notification-before-the-device-is-started",
        deed: |victim| {
            victim.set_status(0);
            notify_all(victim);
            let mut live = Live::prepare(victim, feature::EVENT_IDX)?;
            let head = live.ask(0);
            notify_all(victim);
            live.let_happen();
            must(
                live.queue().take().is_none(),
                "the device has taken a chain before it was started",
            )?;
            live.let_work();
            notify_all(victim);
            live.wait_for(head)?;
            live.must_serve()
        },
    },
    Case {
        name: "queue-registers-written-while-it-runs",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for queue in 0..victim.queues() {
                victim.registers.write(offset::QUEUE_SELECT, queue.into());
                for value in [u32::MAX, 0, u32::from(QUEUE_SIZE) * 2] {
                    for at in (offset::QUEUE_DESCRIPTORS..offset::QUEUE_DEVICE + 8).step_by(4) {
                        victim.registers.write(at, value);
                    }
                    victim.registers.write(offset::QUEUE_SIZE, value);
                }
                for ready in [1, 2, u32::MAX] {
                    victim.registers.write(offset::QUEUE_READY, ready);
                }
            }
            live.must_serve()
        },
    },
    Case {
        name: "queue-registers-of-queues-that-do-not-exist",
        deed: |victim| {
            let mut live = Live::prepare(victim, 0)?;
            for queue in [u32::from(victim.queues()), 0x7fff, 0xffff, 0x1_0000, u32::MAX] {
                victim.registers.write(offset::QUEUE_SELECT, queue);
                must(
                    victim.registers.read(offset::QUEUE_SIZE_MAX) == 0,
                    "there is a queue that does not exist",
                )?;
                for at in [offset::QUEUE_SIZE, offset::QUEUE_READY, offset::QUEUE_DESCRIPTORS] {
                    victim.registers.write(at, 1);
                }
            }
            live.let_work();
            live.must_serve()
        },
    },
];

/// Every width but that of registers at each of them, and theirs across two.
fn odd_accesses(mut access: impl FnMut(usize, usize)) {
    for at in (0..offset::CONFIG).step_by(4) {
        for (at, bytes) in [(at, 1), (at, 2), (at + 2, 4)] {
            access(at, bytes);
        }
        if at + 8 <= offset::CONFIG {
            access(at, 8);
        }
    }
}

fn configuration(mut access: impl FnMut(usize, usize)) {
    for range in CONFIGURATION {
        for at in range.clone() {
            for bytes in [1, 2, 4, 8] {
                if at + bytes <= range.end {
                    access(at, bytes);
                }
            }
        }
    }
}

fn notify_all(victim: &Victim) {
    for queue in 0..victim.queues() {
        victim.registers.write(offset::QUEUE_NOTIFY, queue.into());
    }
}

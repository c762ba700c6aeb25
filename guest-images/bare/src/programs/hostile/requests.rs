//! Requests that are sound, and are not let alone: reset while they are in flight, changed after they were offered.

use super::Case;
use super::live::Live;
use super::victim::{PIECE, SLOTS, must};
use crate::device::feature;
use crate::queue::Descriptor;

/// What memory is filled with that the device has no business in any more.
const SEAL: u8 = 0x5a;

/// All of them.
pub const CASES: [Case; 3] = [
    Case {
        name: "reset-in-flight",
        deed: |victim| {
            for round in 0..16 {
                let mut live = Live::start(victim)?;
                for slot in 0..SLOTS {
                    live.ask(slot);
                }
                if round % 2 == 0 {
                    live.queue().kick();
                }
                victim.set_status(0);
                must(victim.status() == 0, "the device is not reset")?;
                // From here on (virtio 1.3 §2.4.1) it must neither write nor interrupt.
                for piece in 0..usize::from(SLOTS) {
                    victim.data.fill(piece, SEAL);
                }
                for queue in 0..usize::from(victim.queues()) {
                    victim.rings.fill(queue, SEAL);
                }
                live.queue().kick();
                live.let_happen();
                let kept = |byte: u8| byte == SEAL;
                for byte in 0..PIECE {
                    let data = (0..usize::from(SLOTS)).all(|piece| kept(victim.data.read(piece, byte)));
                    let rings =
                        (0..usize::from(victim.queues())).all(|ring| kept(victim.rings.read(ring, byte)));
                    must(data && rings, "the device has written to memory after its reset")?;
                }
            }
            Ok(())
        },
    },
    Case {
        name: "chains-changed-after-they-were-offered",
        deed: |victim| {
            for round in 0..8 {
                let mut live = Live::start_with(victim, feature::INDIRECT)?;
                for slot in 0..SLOTS {
                    live.ask(slot);
                    for turn in 0..64 {
                        let bad = match (turn + round) % 4 {
                            0 => Descriptor::write(u64::MAX, u32::MAX),
                            1 => Descriptor::read(victim.piece(0), 0).to(0),
                            2 => Descriptor::indirect(victim.piece(0), 7),
                            _ => Descriptor::write(victim.piece(0), 1),
                        };
                        live.queue().describe(turn, bad);
                    }
                }
                live.queue().kick();
                live.let_happen();
            }
            Ok(())
        },
    },
    Case {
        name: "requests-changed-after-they-were-offered",
        deed: |victim| {
            let mut live = Live::start(victim)?;
            for turn in 0..64_u8 {
                for slot in 0..SLOTS - 1 {
                    live.ask(slot);
                    for byte in 0..32 {
                        victim.data.write(slot.into(), byte, turn.wrapping_mul(0x35));
                    }
                }
                live.queue().kick();
                if !live.runs() {
                    return Ok(());
                }
                live.must_serve()?;
            }
            Ok(())
        },
    },
];

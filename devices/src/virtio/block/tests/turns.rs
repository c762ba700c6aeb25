//! How much of a thread one disk has before it is the turn of others.

use super::*;

/// Bytes of the largest request that fits the tests' disk and memory.
const LARGE: u32 = 1 << 20;

#[test]
fn a_turn_ends_after_some_megabytes_and_the_rest_comes_in_the_next() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        rig.header(HEADER, IN, 0);
        for _ in 0..6 {
            rig.disk.queues[0].add(&[
                Buffer::Read(HEADER, 16),
                Buffer::Write(DATA, LARGE),
                Buffer::Write(STATUS, 1),
            ]);
        }
        rig.disk.knock(0);
        let served = [(); 3].map(|()| {
            rig.disk.turns.run_within(0);
            rig.disk.queues[0].take_used().len()
        });
        assert_eq!(served, [4, 2, 0]);
        assert_eq!(rig.bytes(DATA, LARGE as usize), rig.on_disk(0, SECTORS as usize));
    }
}

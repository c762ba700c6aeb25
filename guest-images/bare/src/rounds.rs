//! What `blk-renew` has on its disk: a pattern for each round, so that what is lost, old or in another's place is told.

use crate::numbers::Random;

/// Bytes that are read or written at a time.
pub const PIECE: usize = 4096;

/// What the given piece of the disk has after the given round. Before the first one, it is zeros.
pub fn words(round: u64, piece: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(round << 32 | piece);
    (0..PIECE / size_of::<u64>()).map(move |_| match round {
        0 => 0,
        _ => random.draw(),
    })
}

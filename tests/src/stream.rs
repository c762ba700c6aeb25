//! Streams of pseudo-random bytes between a test and a guest, as the bare guest makes and checks them.

use std::io::{Read, Write};

use bare_guest::numbers::{CHECKSUM_START, Random, checksum};

/// Bytes that are made and taken at a time: whole numbers of the generator.
const PIECE: usize = 64 << 10;

/// Pieces of the first `bytes` that the generator makes of `seed`.
fn pieces(seed: u64, bytes: usize, mut each: impl FnMut(&[u8])) {
    let (mut random, mut piece) = (Random::new(seed), vec![0; PIECE]);
    for begun in (0..bytes).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(bytes - begun)];
        random.fill(piece);
        each(piece);
    }
}

/// The checksum of what [`send`] sends.
pub fn sum(seed: u64, bytes: usize) -> u64 {
    let mut sum = CHECKSUM_START;
    pieces(seed, bytes, |piece| sum = checksum(sum, piece));
    sum
}

/// Sends `bytes` that are made of `seed`, and returns their checksum. `sent` hears before each piece how many there were.
///
/// # Panics
/// If they are not taken.
pub fn send(mut to: impl Write, seed: u64, bytes: usize, mut sent: impl FnMut(usize)) -> u64 {
    let (mut sum, mut count) = (CHECKSUM_START, 0);
    pieces(seed, bytes, |piece| {
        sent(count);
        sum = checksum(sum, piece);
        to.write_all(piece).expect("the stream takes everything");
        count += piece.len();
    });
    sum
}

/// Takes what comes, up to `most` bytes, and returns how many there were and their checksum. `taken` hears how many there are.
///
/// # Panics
/// If the stream fails.
pub fn take(from: impl Read, most: usize, mut taken: impl FnMut(usize)) -> (usize, u64) {
    let (mut bytes, mut sum, mut piece) = (0, CHECKSUM_START, vec![0; PIECE]);
    let mut from = from.take(most as u64);
    loop {
        match from.read(&mut piece).expect("the stream goes on") {
            0 => return (bytes, sum),
            count => {
                sum = checksum(sum, &piece[..count]);
                bytes += count;
                taken(bytes);
            }
        }
    }
}

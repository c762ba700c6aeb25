//! Pseudo-random numbers, checksums and medians.

/// A xorshift generator (Marsaglia, "Xorshift RNGs", 2003): the same numbers in every run, which never are 0.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`. Seeds that differ give different numbers.
    pub const fn new(seed: u64) -> Self {
        // An odd factor, so that no two seeds become one; a state of 0 would stay 0.
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(if state == 0 { 1 } else { state })
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Fills `bytes` with the next numbers, little-endian. Pieces of a stream must be whole numbers, but for the last.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(size_of::<u64>()) {
            piece.copy_from_slice(&self.draw().to_le_bytes()[..piece.len()]);
        }
    }
}

/// The start of a [`checksum`].
pub const CHECKSUM_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Continues a 64-bit FNV-1a checksum with bytes (IETF draft-eastlake-fnv).
pub fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The middle one of the values, which are sorted for that; 0 if there are none.
pub fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_differ_and_can_be_repeated() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            [random.draw(), random.draw(), random.draw()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(draw(0)[0], draw(0)[1]);
    }

    #[test]
    fn a_stream_is_the_same_in_pieces() {
        let mut whole = [0; 45];
        Random::new(3).fill(&mut whole);
        let (mut random, mut pieces) = (Random::new(3), [0; 45]);
        pieces.chunks_mut(16).for_each(|piece| random.fill(piece));
        assert_eq!(whole, pieces);
        assert_eq!(whole[..8], Random::new(3).draw().to_le_bytes());
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        // Test vectors of the draft's appendix C.
        assert_eq!(checksum(CHECKSUM_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(CHECKSUM_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        let foo = checksum(CHECKSUM_START, b"foo");
        assert_eq!(checksum(foo, b"bar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&mut [9, 1, 5]), 5);
        assert_eq!(median(&mut [9, 1]), 9);
        assert_eq!(median(&mut []), 0);
    }
}

//! What the worker writes to its disk and says on its streams, for itself and for the host's end of them: numbered pieces, every byte
//! of which is known beforehand, so that what is lost, old, changed or in another's place is told.

use bare_guest::numbers::{CHECKSUM_START, Random, checksum};

/// Bytes of a piece.
pub const PIECE: usize = 4096;
/// Pieces that the worker writes to a file of its disk before it begins the next one.
pub const FILE_PIECES: u64 = 8;
/// The host's address, and the TCP port there at which the worker's other end listens.
pub const TCP_HOST: &str = "10.9.0.1:8000";
/// The port of the host's at which the worker's stream through vsock ends.
pub const HOST_PORT: u32 = 5000;
/// The guest's port at which the worker sends back what streams bring.
pub const ECHO_PORT: u32 = 6000;

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the disk.
    Disk,
    /// On the way to the host, through TCP.
    TcpToHost,
    /// On the way to the guest, through TCP.
    TcpToGuest,
    /// On the way to the host, through vsock.
    VsockToHost,
    /// On the way to the guest, through vsock.
    VsockToGuest,
}

/// A piece: its number, from 0 on, and a word that goes with it.
///
/// The bytes are both numbers, little-endian, noise that depends on the place and the number, and a checksum of all that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many pieces were there before it.
    pub number: u64,
    /// To the host: how many pieces are on the disk for certain. To the guest: [`ENOUGH`] if it is to end, else 0. On the disk: 0.
    pub word: u64,
}

/// The [word](Piece::word) that tells the worker to end.
pub const ENOUGH: u64 = 1;

impl Piece {
    /// The piece as bytes.
    pub fn at(self, place: Place) -> [u8; PIECE] {
        let mut bytes = [0; PIECE];
        let (body, sum) = bytes.split_at_mut(PIECE - 8);
        body[..8].copy_from_slice(&self.number.to_le_bytes());
        body[8..16].copy_from_slice(&self.word.to_le_bytes());
        Random::new((place as u64 + 1) << 56 | self.number).fill(&mut body[16..]);
        sum.copy_from_slice(&checksum(CHECKSUM_START, body).to_le_bytes());
        bytes
    }

    /// The piece that these bytes are, if they are one of this place.
    pub fn read(place: Place, bytes: &[u8; PIECE]) -> Option<Self> {
        let word = |at: usize| bytes[at..].first_chunk().copied().map(u64::from_le_bytes);
        let piece = Self {
            number: word(0)?,
            word: word(8)?,
        };
        (piece.at(place) == *bytes).then_some(piece)
    }
}

/// The name of the file of the disk that has the piece of this number.
pub fn file_of(number: u64) -> String {
    format!("{:06}", number / FILE_PIECES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_read_where_it_is_and_nowhere_else() {
        let piece = Piece { number: 7, word: 3 };
        let bytes = piece.at(Place::Disk);
        assert_eq!(Piece::read(Place::Disk, &bytes), Some(piece));
        assert_eq!(Piece::read(Place::TcpToHost, &bytes), None);
    }

    #[test]
    fn a_piece_with_any_bit_flipped_is_none() {
        let bytes = Piece { number: 1, word: 0 }.at(Place::VsockToGuest);
        for at in 0..PIECE {
            let mut other = bytes;
            other[at] ^= 1 << (at % 8);
            assert_eq!(Piece::read(Place::VsockToGuest, &other), None, "byte {at}");
        }
    }

    #[test]
    fn files_follow_each_other_by_name() {
        assert_eq!(file_of(FILE_PIECES - 1), "000000");
        assert_eq!(file_of(FILE_PIECES), "000001");
    }
}

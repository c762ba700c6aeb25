//! The first bytes of an overlay: what it is, and which base it belongs to. docs/disks.md describes them.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk::SECTOR;

/// How an overlay begins.
pub const MAGIC: &[u8; 8] = b"posadaOV";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Bytes of the header: the fields, and a path of up to PATH_MAX bytes.
pub const SIZE: usize = 8192;
/// Where the bitmap begins.
pub const BITMAP: u64 = SIZE as u64;

/// Where the fields are; what follows the check sum is what it is of.
const VERSION_AT: usize = 8;
const CHECKSUM_AT: usize = 12;
const CLUSTER_AT: usize = 16;
const BASE_SIZE_AT: usize = 24;
const SECONDS_AT: usize = 32;
const NANOSECONDS_AT: usize = 40;
const PATH_LEN_AT: usize = 44;
const DATA_AT: usize = 48;
const PATH_AT: usize = 64;

/// What tells a base from others, and from itself after it was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is, without symbolic links.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// When it was modified last, in seconds and nanoseconds since 1970; zeros for a block device, of which nothing tells.
    pub modified: (i64, u32),
}

impl Base {
    /// The base at `path`, which is open as `file` and has `size` bytes.
    pub fn of(path: &Path, file: &File, size: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.canonicalize()?,
            size,
            modified: if metadata.is_file() {
                (metadata.mtime(), metadata.mtime_nsec() as u32)
            } else {
                (0, 0)
            },
        })
    }
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The base that the overlay lies over.
    pub base: Base,
    /// Where the data begins.
    pub data: u64,
}

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It does not begin like one.
    Magic,
    /// It is of this other version.
    Version(u32),
    /// What is in it is not what was written.
    Damaged,
}

impl Header {
    /// Its bytes; `None` if the base's path is longer than paths can be.
    pub fn encode(&self) -> Option<[u8; SIZE]> {
        let path = self.base.path.as_os_str().as_bytes();
        let mut bytes = [0; SIZE];
        bytes
            .get_mut(PATH_AT..)?
            .get_mut(..path.len())?
            .copy_from_slice(path);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(CLUSTER_AT, &SECTOR.to_le_bytes());
        put(BASE_SIZE_AT, &self.base.size.to_le_bytes());
        put(SECONDS_AT, &self.base.modified.0.to_le_bytes());
        put(NANOSECONDS_AT, &self.base.modified.1.to_le_bytes());
        put(PATH_LEN_AT, &u32::try_from(path.len()).ok()?.to_le_bytes());
        put(DATA_AT, &self.data.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[CLUSTER_AT..]);
        bytes[CHECKSUM_AT..CLUSTER_AT].copy_from_slice(&checksum.to_le_bytes());
        Some(bytes)
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; SIZE]) -> Result<Self, Unreadable> {
        if !bytes.starts_with(MAGIC) {
            return Err(Unreadable::Magic);
        }
        let version = u32::from_le_bytes(field(bytes, VERSION_AT));
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let checksum = u32::from_le_bytes(field(bytes, CHECKSUM_AT));
        let cluster = u32::from_le_bytes(field(bytes, CLUSTER_AT));
        if checksum != crc32fast::hash(&bytes[CLUSTER_AT..]) || cluster != SECTOR {
            return Err(Unreadable::Damaged);
        }
        let path_len = u32::from_le_bytes(field(bytes, PATH_LEN_AT)) as usize;
        let path = bytes[PATH_AT..].get(..path_len).ok_or(Unreadable::Damaged)?;
        Ok(Self {
            base: Base {
                path: OsStr::from_bytes(path).into(),
                size: u64::from_le_bytes(field(bytes, BASE_SIZE_AT)),
                modified: (
                    i64::from_le_bytes(field(bytes, SECONDS_AT)),
                    u32::from_le_bytes(field(bytes, NANOSECONDS_AT)),
                ),
            },
            data: u64::from_le_bytes(field(bytes, DATA_AT)),
        })
    }
}

fn field<const N: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            base: Base {
                path: "/images/b\u{e4}se.img".into(),
                size: 3 << 40,
                modified: (-5, 999_999_999),
            },
            data: 1 << 20,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Header::decode(&header().encode().unwrap()), Ok(header()));
    }

    #[test]
    fn every_bit_counts() {
        let bytes = header().encode().unwrap();
        for at in 0..128 {
            for bit in 0..8 {
                let mut flipped = bytes;
                flipped[at] ^= 1 << bit;
                let expected = match at {
                    0..8 => Unreadable::Magic,
                    8..12 => Unreadable::Version(VERSION ^ 1 << (8 * (at - 8) + bit)),
                    _ => Unreadable::Damaged,
                };
                assert_eq!(Header::decode(&flipped), Err(expected), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_path_that_does_not_fit_is_none() {
        let mut header = header();
        header.base.path = "x".repeat(SIZE).into();
        assert_eq!(header.encode(), None);
    }
}

//! What a driver asks of a disk (§5.2.6): parsed from a chain by the position of bytes, whatever buffers they are in.
//!
//! The header is the first 16 bytes that the driver wrote, and the status the last byte that it lets the device write
//! (§2.7.4.3: the framing of a message is the driver's business). What is in between is data.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::disk::SECTOR;
use crate::virtio::{Chain, QueueError};

/// Bytes of a request's header: type, reserved, sector.
pub const HEADER: u32 = 16;
/// Bytes of a serial number.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the range that a DISCARD or WRITE_ZEROES names: sector, number of sectors, flags.
const RANGE: u32 = 16;

/// How a request ended, as the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Not done: an error of the host's, or a range that the disk does not have.
    IoError = VIRTIO_BLK_S_IOERR as u8,
    /// Nothing that this disk can do.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Bytes on the disk, all of which exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Position in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill what the driver wants written, but for its last byte, from here.
    Read(Extent),
    /// Write what the driver wrote, but for its header, to here.
    Write(Extent),
    /// Let what was written reach the disk.
    Flush,
    /// Tell the serial number.
    GetId,
    /// Forget what is there.
    Discard(Extent),
    /// Make all of it zeros; they need not take up room if `unmap`.
    WriteZeroes {
        /// Where.
        extent: Extent,
        /// The driver lets go of the room.
        unmap: bool,
    },
    /// Nothing but to answer this.
    Refuse(Status),
}

impl Request {
    /// Bytes to be read or written.
    #[inline]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.len,
            _ => 0,
        }
    }
}

/// What requests are measured by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The size of the disk.
    pub sectors: u64,
    /// Nothing may be written.
    pub readonly: bool,
    /// The largest DISCARD and the largest WRITE_ZEROES.
    pub extent_sectors: u32,
}

/// Reads what the chain asks for.
///
/// # Errors
/// It has no header or no room for a status, so that not even an error can be answered.
#[inline]
pub fn parse(chain: &Chain, limits: &Limits) -> Result<Request, QueueError> {
    let mut header = [0; HEADER as usize];
    if !chain.read(0, &mut header) || chain.writable_len() == 0 {
        return Err(QueueError::NoRequest);
    }
    let [kind, _reserved, low, high] = words(header);
    let sector = u64::from(high) << 32 | u64::from(low);
    let (to_device, to_driver) = (chain.readable_len() - HEADER, chain.writable_len() - 1);
    Ok(match kind {
        VIRTIO_BLK_T_IN => data(sector, to_driver, limits).map_or_else(Request::Refuse, Request::Read),
        VIRTIO_BLK_T_OUT if limits.readonly => Request::Refuse(Status::IoError),
        VIRTIO_BLK_T_OUT => data(sector, to_device, limits).map_or_else(Request::Refuse, Request::Write),
        VIRTIO_BLK_T_FLUSH => Request::Flush,
        VIRTIO_BLK_T_GET_ID => Request::GetId,
        // A disk that is only read does not offer these (§5.2.6.2).
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.readonly => {
            Request::Refuse(Status::Unsupported)
        }
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            range_request(kind, chain, limits).unwrap_or_else(Request::Refuse)
        }
        _ => Request::Refuse(Status::Unsupported),
    })
}

/// The bytes that a read or write of `len` bytes is about: whole sectors that the disk has.
#[inline]
fn data(sector: u64, len: u32, limits: &Limits) -> Result<Extent, Status> {
    if !len.is_multiple_of(SECTOR) {
        return Err(Status::IoError);
    }
    bytes(sector, len / SECTOR, limits)
}

#[inline]
fn bytes(sector: u64, sectors: u32, limits: &Limits) -> Result<Extent, Status> {
    let end = sector.checked_add(sectors.into()).ok_or(Status::IoError)?;
    if end > limits.sectors {
        return Err(Status::IoError);
    }
    // The disk is a file, so its end in bytes is a number of 63 bits.
    Ok(Extent {
        offset: sector * u64::from(SECTOR),
        len: u64::from(sectors) * u64::from(SECTOR),
    })
}

/// §5.2.6: one range, as the configuration space says (`max_discard_seg`, `max_write_zeroes_seg`).
fn range_request(kind: u32, chain: &Chain, limits: &Limits) -> Result<Request, Status> {
    let mut range = [0; RANGE as usize];
    if chain.readable_len() != HEADER + RANGE || !chain.read(HEADER, &mut range) {
        return Err(Status::IoError);
    }
    let [low, high, sectors, flags] = words(range);
    // §5.2.6.2: of the flags a WRITE_ZEROES has one, and a DISCARD none.
    let known = if kind == VIRTIO_BLK_T_WRITE_ZEROES {
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    } else {
        0
    };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > limits.extent_sectors {
        return Err(Status::IoError);
    }
    let extent = bytes(u64::from(high) << 32 | u64::from(low), sectors, limits)?;
    Ok(if kind == VIRTIO_BLK_T_DISCARD {
        Request::Discard(extent)
    } else {
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Request::WriteZeroes { extent, unmap }
    })
}

/// Four little-endian words.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

//! What only ioctls and statx tell of a file: the block sizes of a device, and those of direct I/O.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::{Blocks, SECTOR};

/// Linux, include/uapi/linux/fs.h: BLKSSZGET is `_IO(0x12, 104)`, BLKPBSZGET `_IO(0x12, 123)`.
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKPBSZGET: libc::c_ulong = 0x127b;
/// Where nothing tells: the largest block that disks have.
const LARGEST_BLOCK: u32 = 4096;

/// The logical and the physical block size of a block device.
pub(super) fn blocks(file: &File) -> io::Result<Blocks> {
    let ask = |request, answer: *mut u32| {
        // SAFETY: both requests store one 32-bit number, for which `answer` has room, and touch nothing else.
        match unsafe { libc::ioctl(file.as_raw_fd(), request, answer) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let (mut logical, mut physical) = (SECTOR, SECTOR);
    ask(BLKSSZGET, &raw mut logical)?;
    ask(BLKPBSZGET, &raw mut physical)?;
    Ok(Blocks {
        logical: logical.max(SECTOR),
        physical: physical.max(logical),
    })
}

/// What positions and lengths of direct I/O on a regular file are multiples of.
pub(super) fn direct_block(file: &File) -> io::Result<u32> {
    // SAFETY: a struct of integers, for which zeros are a value.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, empty as AT_EMPTY_PATH wants it, and `answer` has room for the answer.
    let asked = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    let told = answer.stx_mask & libc::STATX_DIOALIGN != 0 && answer.stx_dio_offset_align.is_power_of_two();
    Ok(if told {
        answer.stx_dio_offset_align.max(SECTOR)
    } else {
        LARGEST_BLOCK
    })
}

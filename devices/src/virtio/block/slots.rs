//! The requests of one queue that are under way, in room that is set aside once: there is no allocation for a request.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use libc::iovec;

use super::request::{Extent, HEADER, Status};
use crate::disk::{Flush, Image, Layer, Operation, Place};
use crate::virtio::Chain;

/// What is being done in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Reading into the slot's buffers.
    Read,
    /// Writing the slot's buffers; `durable`: on to the disk.
    Write {
        /// The driver takes a write that is done for one that has reached the disk.
        durable: bool,
    },
    /// Making what was written before durable.
    Flush(Flush),
    /// Changing what is allocated, by `fallocate` with this mode.
    Allocate(Allocate),
    /// Writing zeros, for file systems that have no way to allocate them.
    Zero,
}

/// The ways to change a range without writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Forget the range.
    Discard,
    /// Make it zeros that take up no room.
    Unmap,
    /// Make it zeros and keep its room.
    Zero,
}

impl Allocate {
    fn mode(self) -> i32 {
        libc::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::Discard | Self::Unmap => libc::FALLOC_FL_PUNCH_HOLE,
                Self::Zero => libc::FALLOC_FL_ZERO_RANGE,
            }
    }
}

/// One request under way.
pub struct Slot {
    /// What is being done.
    pub doing: Doing,
    /// The chain's head, by which it is given back.
    pub head: u16,
    /// What the driver is told of bytes that were written to its buffers, should the request succeed.
    pub written: u32,
    /// A flush follows before the request is done.
    pub then_flush: bool,
    /// What is left to do on the disk.
    extent: Extent,
    /// Where the driver wants the status.
    status: *mut u8,
    /// The buffers that are left, as indices into the slot's row.
    buffers: Range<usize>,
    /// What of the buffers the present step leaves out, as it reads from one of the disk's files only.
    left_out: Option<LeftOut>,
}

/// Buffers after the last one of a step, and bytes of that.
struct LeftOut {
    end: usize,
    bytes: usize,
}

/// Zeros to write; as large and as aligned as a page, so that direct I/O takes them.
#[repr(align(4096))]
struct Zeroes([u8; 4096]);

static ZEROES: Zeroes = Zeroes([0; 4096]);

/// Room for the requests of a queue.
pub struct Slots {
    slots: Vec<Slot>,
    /// Indices of the slots that nothing is done in; the last one is used next.
    free: Vec<u16>,
    /// A row of `width` iovecs for each slot, of which the slot's `buffers` are initialised. Rows that were never used
    /// take up no memory.
    rows: Box<[MaybeUninit<iovec>]>,
    width: usize,
}

// SAFETY: the pointers are addresses in guest memory that is shared between threads anyway, and which the queue keeps
// mapped that the requests came from: it lives in the same worker.
unsafe impl Send for Slots {}

impl Slots {
    /// Room for `count` requests at once, with at most as many buffers each.
    pub fn new(count: u16) -> Self {
        let width = usize::from(count);
        Self {
            slots: (0..count).map(|_| Slot::idle()).collect(),
            free: (0..count).rev().collect(),
            rows: Box::new_uninit_slice(width * width),
            width,
        }
    }

    /// Whether there is no room for another request.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Makes `chain` the next request under way, on `extent` of the disk. `None` if there is no room, or the chain
    /// has none for a status.
    #[inline]
    pub fn add(&mut self, chain: &Chain, doing: Doing, extent: Extent) -> Option<u16> {
        let status = status(chain)?;
        let tag = self.free.pop()?;
        let row = &mut self.rows[usize::from(tag) * self.width..][..self.width];
        let (count, written) = match doing {
            Doing::Read => {
                let count = cut(chain.writable(), 0, extent.len, row);
                (count, chain.writable_len())
            }
            Doing::Write { .. } => {
                let count = cut(chain.readable(), HEADER as usize, extent.len, row);
                (count, 1)
            }
            _ => (0, 1),
        };
        self.slots[usize::from(tag)] = Slot {
            doing,
            head: chain.head(),
            written,
            then_flush: false,
            extent,
            status,
            buffers: 0..count,
            left_out: None,
        };
        Some(tag)
    }

    /// The request with this tag.
    #[inline]
    pub fn get(&mut self, tag: u16) -> &mut Slot {
        &mut self.slots[usize::from(tag)]
    }

    /// What is to be done next for a request to `image`. Its buffers stay in place until the request goes on or ends.
    #[inline]
    pub fn operation(&mut self, tag: u16, image: &Image) -> Operation<'_> {
        let slot = &mut self.slots[usize::from(tag)];
        let row = &mut self.rows[usize::from(tag) * self.width..][..self.width];
        let Extent { offset, len } = slot.extent;
        let mut place = Place {
            layer: Layer::Top,
            offset: image.position(offset),
            len,
        };
        if slot.doing == Doing::Read {
            slot.take_back(row);
            place = image.find(offset, len);
            if place.len < len {
                slot.leave_out_after(place.len, row);
            }
        } else if slot.doing == Doing::Zero {
            slot.buffers = 0..zeroes(len, row);
        }
        let row = &row[slot.buffers.clone()];
        // SAFETY: `cut` and `zeroes` have initialised these of the row's iovecs.
        let buffers = unsafe { slice::from_raw_parts(row.as_ptr().cast::<iovec>(), row.len()) };
        slot.doing.at(place, buffers)
    }

    /// `done` bytes of a request have been read or written; returns whether that was all.
    #[inline]
    pub fn advance(&mut self, tag: u16, done: usize) -> bool {
        let slot = &mut self.slots[usize::from(tag)];
        slot.extent.len = slot.extent.len.saturating_sub(done as u64);
        slot.extent.offset += done as u64;
        if slot.extent.len == 0 {
            return true;
        }
        let row = &mut self.rows[usize::from(tag) * self.width..][..self.width];
        slot.take_back(row);
        drop_first(&mut slot.buffers, row, done);
        false
    }

    /// Ends a request: writes its status and makes room for another. Returns what the driver's chain is given back with.
    #[inline]
    pub fn end(&mut self, tag: u16, status: Status) -> (u16, u32) {
        let slot = &self.slots[usize::from(tag)];
        // SAFETY: a byte of guest memory that the chain let the device write, in a mapping that the worker's queue keeps;
        // no Rust reference to it exists. The guest may read it at any time, as of any device.
        unsafe { slot.status.write_volatile(status as u8) };
        self.free.push(tag);
        (slot.head, if status == Status::Ok { slot.written } else { 1 })
    }
}

impl Doing {
    /// The system call for it.
    #[inline]
    fn at(self, place: Place, buffers: &[iovec]) -> Operation<'_> {
        let Place { layer, offset, len } = place;
        match self {
            Self::Read => Operation::Read {
                layer,
                buffers,
                offset,
            },
            Self::Write { durable } => Operation::Write {
                buffers,
                offset,
                durable,
            },
            Self::Zero => Operation::Write {
                buffers,
                offset,
                durable: false,
            },
            Self::Flush(flush) => Operation::Flush {
                little: flush.is_little(),
            },
            Self::Allocate(how) => Operation::Allocate {
                mode: how.mode(),
                offset,
                len,
            },
        }
    }
}

impl Slot {
    /// What is left to do on the disk.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Makes the buffers those of the next `len` bytes, of which there are more.
    fn leave_out_after(&mut self, len: u64, row: &mut [MaybeUninit<iovec>]) {
        let (mut left, end) = (len as usize, self.buffers.end);
        for index in self.buffers.clone() {
            // SAFETY: `buffers` are those of the row that are initialised.
            let buffer = unsafe { row[index].assume_init_mut() };
            if left <= buffer.iov_len {
                let bytes = buffer.iov_len - left;
                buffer.iov_len = left;
                self.buffers.end = index + 1;
                self.left_out = Some(LeftOut { end, bytes });
                return;
            }
            left -= buffer.iov_len;
        }
    }

    /// Takes back what was left out.
    #[inline]
    fn take_back(&mut self, row: &mut [MaybeUninit<iovec>]) {
        if let Some(LeftOut { end, bytes }) = self.left_out.take() {
            // SAFETY: the last one of `buffers` is one of those of the row that are initialised.
            unsafe { row[self.buffers.end - 1].assume_init_mut() }.iov_len += bytes;
            self.buffers.end = end;
        }
    }

    fn idle() -> Self {
        Self {
            doing: Doing::Zero,
            head: 0,
            written: 0,
            then_flush: false,
            extent: Extent { offset: 0, len: 0 },
            status: std::ptr::null_mut(),
            buffers: 0..0,
            left_out: None,
        }
    }
}

/// The last byte that the driver lets the device write.
#[inline]
fn status(chain: &Chain) -> Option<*mut u8> {
    let last = chain.writable().last()?;
    Some(last.iov_base.cast::<u8>().wrapping_add(last.iov_len - 1))
}

/// Copies to `row` what `len` bytes from `offset` on of `buffers` lie in; returns how many iovecs that are.
#[inline]
fn cut(buffers: &[iovec], offset: usize, len: u64, row: &mut [MaybeUninit<iovec>]) -> usize {
    // A chain is shorter than 4 GiB.
    let (mut skip, mut left, mut count) = (offset, len as usize, 0);
    for buffer in buffers {
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let len = (buffer.iov_len - skip).min(left);
        if len == 0 || count == row.len() {
            break;
        }
        row[count].write(iovec {
            iov_base: buffer.iov_base.wrapping_byte_add(skip),
            iov_len: len,
        });
        (skip, left, count) = (0, left - len, count + 1);
    }
    count
}

/// Drops the first `done` bytes of the buffers.
fn drop_first(buffers: &mut Range<usize>, row: &mut [MaybeUninit<iovec>], mut done: usize) {
    for place in &mut row[buffers.clone()] {
        // SAFETY: `buffers` are those of the row that are initialised.
        let buffer = unsafe { place.assume_init_mut() };
        let here = done.min(buffer.iov_len);
        buffer.iov_base = buffer.iov_base.wrapping_byte_add(here);
        buffer.iov_len -= here;
        done -= here;
        if buffer.iov_len > 0 {
            return;
        }
        buffers.start += 1;
    }
}

/// Fills `row` with zeros to write, `len` bytes or as many as fit; returns how many iovecs that are.
fn zeroes(len: u64, row: &mut [MaybeUninit<iovec>]) -> usize {
    let page = ZEROES.0.len() as u64;
    let count = usize::try_from(len.div_ceil(page)).map_or(row.len(), |count| count.min(row.len()));
    for (index, place) in (0u64..).zip(&mut row[..count]) {
        place.write(iovec {
            iov_base: (&raw const ZEROES).cast_mut().cast(),
            iov_len: (len - index * page).min(page) as usize,
        });
    }
    count
}

//! The buffers of one descriptor chain (§2.7.5), each checked to lie in guest memory, as the host's iovecs.
//!
//! A worker has one [`Chain`] and walks each chain of its queue into it, so there is no allocation for a request. The
//! iovecs go to system calls as they are: data moves straight between guest memory and a file.

use libc::iovec;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{Bitmap as _, RefSlice};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileSlice};

use super::{DirtyMap, GuestMemory, QueueError};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const DESCRIPTOR_SIZE: usize = size_of::<Descriptor>();

/// The buffers of one chain: first those that the device reads, then those that it writes.
///
/// They point into the guest's memory: they are good as long as the [`GuestMemory`] is mapped that they were walked
/// in, of which the worker's queue holds a share. The guest may change what they hold at any time.
pub struct Chain {
    head: u16,
    buffers: Vec<iovec>,
    /// How many of `buffers` the device reads.
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

// SAFETY: the pointers are plain addresses in a mapping that is shared between threads anyway; only the unsafe code of
// whoever uses them depends on that mapping, on whichever thread.
unsafe impl Send for Chain {}

impl Chain {
    /// Room for the chains of a queue of `queue_size` entries.
    pub fn new(queue_size: u16) -> Self {
        Self {
            head: 0,
            buffers: Vec::with_capacity(queue_size.into()),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        }
    }

    /// The index of its first descriptor, by which it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[iovec] {
        &self.buffers[..self.readable]
    }

    /// Where the driver wants the device's answer.
    pub fn writable(&self) -> &[iovec] {
        &self.buffers[self.readable..]
    }

    /// Bytes in [`readable`](Self::readable).
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Lists the buffers of the chain that begins at `head` of `table` (address and number of descriptors).
    ///
    /// Ends for every table: a chain has at most as many descriptors as the queue (§2.7.5.2, §2.7.5.3.1), counting those
    /// of an indirect table instead of the descriptor that names it.
    pub(super) fn walk(
        &mut self,
        memory: &GuestMemory,
        table: (GuestAddress, u16),
        head: u16,
        indirect_allowed: bool,
    ) -> Result<(), QueueError> {
        self.clear(head);
        let queue_size = table.1;
        let mut table = Table::at(memory, table.0, table.1).ok_or(QueueError::NotInMemory)?;
        let (mut next, mut in_indirect) = (head, false);
        loop {
            let descriptor = table.read(next)?;
            if descriptor.flags() & INDIRECT != 0 {
                if !indirect_allowed {
                    return Err(QueueError::IndirectNotNegotiated);
                }
                if in_indirect || descriptor.flags() & NEXT != 0 {
                    return Err(QueueError::BadIndirect);
                }
                table = Table::indirect(memory, &descriptor, queue_size)?;
                (next, in_indirect) = (0, true);
                continue;
            }
            if self.buffers.len() == usize::from(queue_size) {
                return Err(QueueError::TooLong);
            }
            self.add(memory, &descriptor)?;
            if descriptor.flags() & NEXT == 0 {
                return Ok(());
            }
            next = descriptor.next();
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.buffers.clear();
        (self.readable, self.readable_len, self.writable_len) = (0, 0, 0);
    }

    #[inline]
    fn add(&mut self, memory: &GuestMemory, descriptor: &Descriptor) -> Result<(), QueueError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 {
            return Err(QueueError::EmptyBuffer);
        }
        let slice = memory.get_slice(address, len as usize);
        let slice = slice.map_err(|_| QueueError::BadAddress {
            address: address.raw_value(),
            len,
        })?;
        let write = descriptor.flags() & WRITE != 0;
        let total = if write {
            slice.bitmap().mark_dirty(0, len as usize);
            &mut self.writable_len
        } else if self.buffers.len() > self.readable {
            return Err(QueueError::ReadAfterWrite);
        } else {
            self.readable += 1;
            &mut self.readable_len
        };
        *total = total.checked_add(len).ok_or(QueueError::TooLarge)?;
        self.buffers.push(iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: len as usize,
        });
        Ok(())
    }

    /// Copies from the start of what the driver wrote; `false`, and nothing copied, if that is shorter than `into`.
    #[inline]
    pub fn read(&self, offset: u32, into: &mut [u8]) -> bool {
        if !fits(offset, into.len(), self.readable_len) {
            return false;
        }
        for_each_piece(self.readable(), offset, into.len(), |guest, range| {
            let into = &mut into[range];
            // SAFETY: `guest` points to as many bytes of guest memory as `into` has, which is mapped (see the type) and
            // which no Rust reference is ever made to, so it does not overlap `into`. A guest that writes
            // at the same time changes which bytes are read, as with any device.
            unsafe { std::ptr::copy_nonoverlapping(guest, into.as_mut_ptr(), into.len()) }
        });
        true
    }

    /// Copies to `offset` in what the driver wants the device to write; `false`, and nothing copied, if there is no such room.
    #[inline]
    pub fn write(&self, offset: u32, from: &[u8]) -> bool {
        if !fits(offset, from.len(), self.writable_len) {
            return false;
        }
        for_each_piece(self.writable(), offset, from.len(), |guest, range| {
            let from = &from[range];
            // SAFETY: as in `read`; these buffers are for the device to write.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), guest, from.len()) }
        });
        true
    }
}

fn fits(offset: u32, len: usize, room: u32) -> bool {
    u32::try_from(len).is_ok_and(|len| offset.checked_add(len).is_some_and(|end| end <= room))
}

/// Calls `copy` for each stretch of `buffers` that `len` bytes from `offset` on lie in, with which of the bytes these are.
#[inline]
fn for_each_piece(
    buffers: &[iovec],
    offset: u32,
    len: usize,
    mut copy: impl FnMut(*mut u8, std::ops::Range<usize>),
) {
    let (mut skip, mut done) = (offset as usize, 0);
    for buffer in buffers {
        if done == len {
            return;
        }
        if skip >= buffer.iov_len {
            skip -= buffer.iov_len;
            continue;
        }
        let piece = (buffer.iov_len - skip).min(len - done);
        copy(
            buffer.iov_base.cast::<u8>().wrapping_add(skip),
            done..done + piece,
        );
        (skip, done) = (0, done + piece);
    }
}

/// A table of descriptors in guest memory, found there once for all of its entries.
struct Table<'a> {
    entries: VolatileSlice<'a, RefSlice<'a, DirtyMap>>,
    count: u16,
}

impl<'a> Table<'a> {
    #[inline]
    fn at(memory: &'a GuestMemory, address: GuestAddress, count: u16) -> Option<Self> {
        let entries = memory.get_slice(address, usize::from(count) * DESCRIPTOR_SIZE);
        let entries = entries.ok()?;
        Some(Self { entries, count })
    }

    /// §2.7.5.3: an indirect table has whole descriptors, at least one, and lies in memory.
    fn indirect(
        memory: &'a GuestMemory,
        descriptor: &Descriptor,
        queue_size: u16,
    ) -> Result<Self, QueueError> {
        let (address, len) = (descriptor.addr(), descriptor.len());
        if len == 0 || !(len as usize).is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(QueueError::BadIndirect);
        }
        let count = u16::try_from(len as usize / DESCRIPTOR_SIZE).unwrap_or(u16::MAX);
        if count > queue_size {
            return Err(QueueError::TooLong);
        }
        Self::at(memory, address, count).ok_or(QueueError::BadAddress {
            address: address.raw_value(),
            len,
        })
    }

    #[inline]
    fn read(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.count {
            return Err(QueueError::NoSuchDescriptor(index));
        }
        let entry = self.entries.get_ref(usize::from(index) * DESCRIPTOR_SIZE);
        entry
            .map(|entry| entry.load())
            .map_err(|_| QueueError::NotInMemory)
    }
}

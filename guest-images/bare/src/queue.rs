//! A split virtqueue with every step in the caller's hands (virtio 1.3 §2.7): descriptors are written raw, entries are offered,
//! published and taken one by one, notifications and interrupts are suppressed or asked for. Nothing is checked for the caller.

use alloc::alloc::{alloc_zeroed, handle_alloc_error};
use core::alloc::Layout;
use core::sync::atomic::{Ordering, fence};

use crate::registers::{Registers, offset};

/// A descriptor (virtio 1.3 §2.7.5).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Descriptor {
    /// Address of the buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub length: u32,
    /// [`flag`]s.
    pub flags: u16,
    /// The next descriptor, with [`flag::NEXT`].
    pub next: u16,
}

/// Flags of a descriptor (virtio 1.3 §2.7.5).
pub mod flag {
    /// `next` names another descriptor of the chain.
    pub const NEXT: u16 = 1;
    /// The device writes the buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// VIRTQ_AVAIL_F_NO_INTERRUPT, and VIRTQ_USED_F_NO_NOTIFY (virtio 1.3 §2.7.6, §2.7.8).
const SUPPRESS: u16 = 1;

/// An entry of the used ring (virtio 1.3 §2.7.8).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Used {
    /// The chain's first descriptor.
    pub head: u32,
    /// Bytes that the device has written.
    pub length: u32,
}

/// Where a queue's three parts are (virtio 1.3 §2.7).
#[derive(Clone, Copy)]
pub struct Parts {
    /// The descriptor table, aligned to 16 bytes.
    pub descriptors: *mut Descriptor,
    /// The available ring, aligned to 2 bytes.
    pub available: *mut u16,
    /// The used ring, aligned to 4 bytes.
    pub used: *mut u16,
}

impl Parts {
    /// One after the other from `start` on.
    ///
    /// # Safety
    /// There must be [`SplitQueue::bytes`] for `size` entries.
    pub unsafe fn at(start: *mut u8, size: u16) -> Self {
        let entries = usize::from(size);
        // SAFETY: both offsets are within those bytes.
        let (available, used) = unsafe { (start.add(16 * entries), start.add(Self::used_at(entries))) };
        Self {
            descriptors: start.cast(),
            available: available.cast(),
            used: used.cast(),
        }
    }

    const fn used_at(entries: usize) -> usize {
        (16 * entries + 2 * (entries + 3)).next_multiple_of(4)
    }
}

/// A queue. Its memory is never given back: a device may still write to it.
pub struct SplitQueue {
    index: u16,
    size: u16,
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    doorbell: *mut u32,
    event_idx: bool,
    interrupts: bool,
    /// The index up to which entries are offered, and the one that the device has been told.
    offered: u16,
    published: u16,
    /// The index up to which used entries are taken.
    taken: u16,
    kicks: u64,
}

impl Descriptor {
    /// A buffer for the device to read.
    pub const fn read(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            flags: 0,
            next: 0,
        }
    }

    /// A buffer for the device to write.
    pub const fn write(address: u64, length: u32) -> Self {
        Self::read(address, length).with(flag::WRITE)
    }

    /// A table of descriptors.
    pub const fn indirect(address: u64, length: u32) -> Self {
        Self::read(address, length).with(flag::INDIRECT)
    }

    /// The same with more flags.
    pub const fn with(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// The same with another descriptor behind it.
    pub const fn to(self, next: u16) -> Self {
        Self { next, ..self }.with(flag::NEXT)
    }
}

impl SplitQueue {
    /// Makes a queue of `size` entries, a power of two up to 32768, and tells the device. It asks for no interrupts.
    ///
    /// `event_idx`: VIRTIO_F_EVENT_IDX has been agreed on.
    pub fn new(registers: &Registers, index: u16, size: u16, event_idx: bool) -> Self {
        let layout = Layout::from_size_align(Self::bytes(size), 4096).expect("a queue is less than a MiB");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: it is zeroed, large enough, aligned to a page, and nobody else's.
        let parts = unsafe { Parts::at(start, size) };
        // SAFETY: as above.
        unsafe { Self::of(registers, index, size, event_idx, parts) }
    }

    /// Bytes that a queue of `size` entries takes.
    pub const fn bytes(size: u16) -> usize {
        let entries = size as usize;
        Parts::used_at(entries) + 8 * entries + 6
    }

    /// The same queue in memory of the caller's.
    ///
    /// # Safety
    /// The parts must be zeroed, aligned, large enough for `size`, and used by nobody else as long as the queue is.
    pub unsafe fn of(registers: &Registers, index: u16, size: u16, event_idx: bool, parts: Parts) -> Self {
        let Parts {
            descriptors,
            available,
            used,
        } = parts;
        let queue = Self {
            index,
            size,
            descriptors,
            available,
            used,
            doorbell: registers.register(offset::QUEUE_NOTIFY),
            event_idx,
            interrupts: false,
            offered: 0,
            published: 0,
            taken: 0,
            kicks: 0,
        };
        queue.suppress_interrupts();
        registers.write(offset::QUEUE_SELECT, index.into());
        registers.write(offset::QUEUE_SIZE, size.into());
        registers.write_address(offset::QUEUE_DESCRIPTORS, descriptors.expose_provenance() as u64);
        registers.write_address(offset::QUEUE_DRIVER, available.expose_provenance() as u64);
        registers.write_address(offset::QUEUE_DEVICE, used.expose_provenance() as u64);
        registers.write(offset::QUEUE_READY, 1);
        queue
    }

    /// Where it is.
    pub fn parts(&self) -> Parts {
        Parts {
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        }
    }

    /// How many entries it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// How often the device has been notified.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// Writes a descriptor. `index` counts modulo the size.
    pub fn describe(&mut self, index: u16, descriptor: Descriptor) {
        // SAFETY: the index is below the size. The device may read it at any time, as it may all of the queue: hence volatile.
        unsafe {
            self.descriptors
                .add(usize::from(index & (self.size - 1)))
                .write_volatile(descriptor)
        }
    }

    /// Puts a chain into the available ring; the device is not told yet.
    #[inline]
    pub fn offer(&mut self, head: u16) {
        let slot = 2 + usize::from(self.offered & (self.size - 1));
        // SAFETY: the ring has `size` entries after its two fields.
        unsafe { self.available.add(slot).write_volatile(head) };
        self.offered = self.offered.wrapping_add(1);
    }

    /// Tells the device of all that was offered, and notifies it if it wants that.
    #[inline]
    pub fn publish(&mut self) {
        // The entries before the index (virtio 1.3 §2.7.13.3), and the index before looking whether to notify (§2.7.13.4).
        fence(Ordering::Release);
        // SAFETY: the second field of the ring is the index.
        unsafe { self.available.add(1).write_volatile(self.offered) };
        fence(Ordering::SeqCst);
        let before = core::mem::replace(&mut self.published, self.offered);
        if self.device_wants_notification(before) {
            self.kick();
        }
    }

    fn device_wants_notification(&self, before: u16) -> bool {
        // SAFETY: `flags` is the first field of the used ring; `avail_event` follows its entries of four 16-bit words each.
        unsafe {
            if self.event_idx {
                let event = self.used.add(2 + 4 * usize::from(self.size)).read_volatile();
                // vring_need_event (virtio 1.3 §2.7.10.1).
                self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(before)
            } else {
                self.used.read_volatile() & SUPPRESS == 0
            }
        }
    }

    /// Tells the device of `more` entries than were offered, and notifies it whether or not it wants that.
    pub fn jump(&mut self, more: u16) {
        self.offered = self.offered.wrapping_add(more);
        self.publish();
        self.kick();
    }

    /// Writes what the driver has to say of interrupts: the flags of the available ring and its `used_event`.
    pub fn write_suppression(&mut self, flags: u16, used_event: u16) {
        // SAFETY: `flags` is the first field of the available ring; `used_event` follows its entries.
        unsafe {
            self.available.write_volatile(flags);
            self.available
                .add(2 + usize::from(self.size))
                .write_volatile(used_event);
        }
    }

    /// Notifies the device, whether or not it wants that.
    pub fn kick(&mut self) {
        // SAFETY: the doorbell is a register of the device.
        unsafe { self.doorbell.write_volatile(self.index.into()) };
        self.kicks += 1;
    }

    /// Takes the next used entry, if there is one.
    #[inline]
    pub fn take(&mut self) -> Option<Used> {
        // SAFETY: the second field of the used ring is the index.
        if unsafe { self.used.add(1).read_volatile() } == self.taken {
            return None;
        }
        fence(Ordering::Acquire);
        let slot = 2 + 4 * usize::from(self.taken & (self.size - 1));
        // SAFETY: the ring has `size` entries after its two fields; the ring is aligned to 4 bytes and so are they.
        let used = unsafe { self.used.add(slot).cast::<Used>().read_volatile() };
        self.taken = self.taken.wrapping_add(1);
        if self.interrupts {
            self.request_interrupt();
        } else if self.event_idx && self.taken & 0x3fff == 0 {
            self.suppress_interrupts();
        }
        Some(used)
    }

    /// Asks for an interrupt when the device uses the next entry. Look for one again after this: it may have come before.
    pub fn request_interrupt(&mut self) {
        self.interrupts = true;
        self.set_used_event(0, self.taken);
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts: with EVENT_IDX for one 2^16 - 1 entries from now, which [`take`](Self::take) puts off in time.
    fn suppress_interrupts(&self) {
        self.set_used_event(SUPPRESS, self.taken.wrapping_sub(1));
    }

    fn set_used_event(&self, flags: u16, event: u16) {
        // SAFETY: `flags` is the first field of the available ring; `used_event` follows its entries.
        unsafe {
            if self.event_idx {
                self.available
                    .add(2 + usize::from(self.size))
                    .write_volatile(event);
            } else {
                self.available.write_volatile(flags);
            }
        }
    }
}

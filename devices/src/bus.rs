//! The bus: finds the device that answers at an address, on the vCPU's hot path.
//!
//! A bus is put together while the machine is built and never changes afterwards, so a look-up takes no lock:
//! it is a binary search in a short sorted array. What a device must guard, it guards itself.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use thiserror::Error;

/// What a guest asked of the machine as a whole by writing to a device.
///
/// The vCPU that wrote it leaves its run loop with it at once, before the guest's next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestRequest {
    /// Switch the machine off.
    PowerOff,
    /// Start the machine anew.
    Reset,
    /// The guest's kernel has panicked and says so.
    Panicked,
}

/// A device on a bus.
///
/// Accesses come from every vCPU at once, hence `&self`. `offset` is relative to the start of the range and
/// `offset + data.len()` lies within it; the width `data.len()` is whatever the guest used, 1 to 8 bytes.
pub trait BusDevice: Send + Sync {
    /// Answers a guest's read: fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a guest's write. `Break` ends the run of the vCPU that wrote.
    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest>;
}

/// Why a device could not be placed on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Another device answers at some address of the range.
    #[error("the range {base:#x}..{end:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// First address after the refused range.
        end: u64,
        /// First address of the device that is there.
        other: u64,
    },
    /// The range is empty or reaches past the end of the address space.
    #[error("the range at {base:#x} of {len:#x} bytes is empty or wraps around")]
    BadRange {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
}

struct Slot {
    base: u64,
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// An address space with devices in it: the I/O ports, or the part of physical memory that is not RAM.
#[derive(Default)]
pub struct Bus {
    slots: Vec<Slot>,
    /// The slot that was found last, which is most often the next one too: a look-up there is one comparison, where
    /// the end of a search's loop, mispredicted after an exit, is 25 ns.
    recent: AtomicUsize,
}

impl Bus {
    /// Makes `device` answer at the `len` addresses from `base` on.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let end = base
            .checked_add(len)
            .filter(|end| *end > base)
            .ok_or(BusError::BadRange { base, len })?;
        let at = self.slots.partition_point(|slot| slot.end <= base);
        if let Some(next) = self.slots.get(at).filter(|next| next.base < end) {
            return Err(BusError::Overlap {
                base,
                end,
                other: next.base,
            });
        }
        self.slots.insert(at, Slot { base, end, device });
        Ok(())
    }

    /// Reads at `addr`. Where no device answers for the whole access, the bus floats: all bits are one.
    #[inline(always)]
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `addr`. Where no device answers for the whole access, the write is lost.
    #[inline(always)]
    pub fn write(&self, addr: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => ControlFlow::Continue(()),
        }
    }

    #[inline(always)]
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let recent = self.slots.get(self.recent.load(Ordering::Relaxed));
        let slot = match recent.filter(|slot| slot.base <= addr && addr < slot.end) {
            Some(slot) => slot,
            None => self.search(addr)?,
        };
        let offset = addr.checked_sub(slot.base)?;
        let room = slot.end.checked_sub(addr)?;
        (len as u64 <= room).then_some((&*slot.device, offset))
    }

    #[cold]
    fn search(&self, addr: u64) -> Option<&Slot> {
        let at = self.slots.partition_point(|slot| slot.end <= addr);
        let slot = self.slots.get(at).filter(|slot| slot.base <= addr)?;
        self.recent.store(at, Ordering::Relaxed);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Remembers what it was asked, and answers with its own number.
    #[derive(Default)]
    struct Recorder {
        number: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl BusDevice for Recorder {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.number);
        }

        fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
            if data == [0xee] {
                ControlFlow::Break(GuestRequest::Reset)
            } else {
                ControlFlow::Continue(())
            }
        }
    }

    fn recorder(number: u8) -> Arc<Recorder> {
        Arc::new(Recorder {
            number,
            ..Default::default()
        })
    }

    fn read(bus: &Bus, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        bus.read(addr, &mut data);
        data
    }

    #[test]
    fn finds_the_device_whose_range_holds_the_whole_access() {
        let mut bus = Bus::default();
        bus.insert(0x20, 0x10, recorder(2)).unwrap();
        bus.insert(0x10, 0x10, recorder(1)).unwrap();
        bus.insert(0x40, 1, recorder(4)).unwrap();
        assert_eq!(read(&bus, 0x10, 1), [1]);
        assert_eq!(read(&bus, 0x1f, 1), [1]);
        assert_eq!(read(&bus, 0x20, 4), [2; 4]);
        assert_eq!(read(&bus, 0x40, 1), [4]);
    }

    #[test]
    fn floats_where_nothing_answers() {
        let mut bus = Bus::default();
        bus.insert(0x10, 0x10, recorder(1)).unwrap();
        bus.insert(0x20, 0x10, recorder(2)).unwrap();
        for (addr, len) in [(0, 1), (0xf, 1), (0x30, 8), (u64::MAX, 4)] {
            assert_eq!(read(&bus, addr, len), vec![0xff; len]);
            assert_eq!(bus.write(addr, &vec![0; len]), ControlFlow::Continue(()));
        }
        assert_eq!(
            read(&bus, 0x1e, 4),
            [0xff; 4],
            "an access that straddles two devices reaches neither"
        );
    }

    #[test]
    fn gives_the_device_offsets_and_passes_its_request_on() {
        let device = recorder(0);
        let mut bus = Bus::default();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        assert_eq!(bus.write(0x3f9, &[7]), ControlFlow::Continue(()));
        assert_eq!(bus.write(0x3ff, &[0xee]), ControlFlow::Break(GuestRequest::Reset));
        assert_eq!(*device.writes.lock().unwrap(), [(1, vec![7]), (7, vec![0xee])]);
    }

    #[test]
    fn refuses_ranges_that_overlap_or_wrap() {
        let mut bus = Bus::default();
        bus.insert(0x10, 0x10, recorder(1)).unwrap();
        let overlap = |base, end| {
            Err(BusError::Overlap {
                base,
                end,
                other: 0x10,
            })
        };
        assert_eq!(bus.insert(0x0f, 2, recorder(2)), overlap(0x0f, 0x11));
        assert_eq!(bus.insert(0x1f, 1, recorder(2)), overlap(0x1f, 0x20));
        assert_eq!(bus.insert(0, 0x100, recorder(2)), overlap(0, 0x100));
        assert!(matches!(
            bus.insert(0x40, 0, recorder(2)),
            Err(BusError::BadRange { .. })
        ));
        assert!(matches!(
            bus.insert(u64::MAX, 2, recorder(2)),
            Err(BusError::BadRange { .. })
        ));
        bus.insert(0x20, 1, recorder(2)).unwrap();
        bus.insert(0x0f, 1, recorder(3)).unwrap();
    }
}

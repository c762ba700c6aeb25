//! Finding devices, and bringing one to life by hand or handing it to `virtio-drivers`.

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;

use bare_guest::arguments::Arguments;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::failure::{Failure, Outcome};
use crate::interrupts;
use crate::queue::SplitQueue;
use crate::registers::{self, Registers, offset, status};

/// Kinds of devices (virtio 1.3 §5).
pub mod kind {
    /// A network card.
    pub const NETWORK: u32 = 1;
    /// A block device.
    pub const BLOCK: u32 = 2;
    /// An entropy source.
    pub const ENTROPY: u32 = 4;
    /// A memory balloon.
    pub const BALLOON: u32 = 5;
    /// A socket device.
    pub const SOCKET: u32 = 19;
}

/// Features that are not a device's own (virtio 1.3 §6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// Notifications and interrupts are asked for by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not legacy.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What the argument `event-idx=` makes of it: [`feature::EVENT_IDX`], unless it is `no`.
pub fn event_idx(arguments: &Arguments<'_>) -> Outcome<u64> {
    let choices = [("yes", feature::EVENT_IDX), ("no", 0)];
    Ok(arguments.choice("event-idx", &choices, "yes or no")?)
}

/// All devices of the command line, in its order. A place without a device is left out.
pub fn all(arguments: &Arguments<'_>) -> Outcome<Vec<Registers>> {
    let mut devices = Vec::new();
    for place in arguments.devices() {
        let registers = Registers::at(place?);
        let (magic, version) = (registers.read(offset::MAGIC), registers.read(offset::VERSION));
        if magic != registers::MAGIC || version != registers::VERSION {
            let base = registers.place().base;
            return Err(Failure::new(format!(
                "no virtio device at {base:#x}: magic {magic:#x}, version {version}"
            )));
        }
        if registers.read(offset::DEVICE_ID) != 0 {
            devices.push(registers);
        }
    }
    Ok(devices)
}

/// The device of this kind that the argument `device=` counts to, from 0 on; without the argument the first.
pub fn find(arguments: &Arguments<'_>, kind: u32) -> Outcome<Registers> {
    let nth = arguments.number("device")?.unwrap_or(0);
    all(arguments)?
        .into_iter()
        .filter(|device| device.read(offset::DEVICE_ID) == kind)
        .nth(nth as usize)
        .ok_or_else(|| Failure::new(format!("there is no device {nth} of kind {kind}")))
}

/// The device for a driver of `virtio-drivers`.
pub fn transport(registers: Registers) -> Outcome<MmioTransport<'static>> {
    let place = registers.place();
    let header = NonNull::new(registers.register(0).cast()).expect("no device is at address 0");
    // SAFETY: the host says that a device's registers and configuration space are there, for as long as the machine lives.
    unsafe { MmioTransport::new(header, place.size as usize) }
        .map_err(|error| Failure::new(format!("{error}")))
}

/// A device with a driver that has agreed on features with it.
pub struct Device {
    /// Its registers.
    pub registers: Registers,
    /// The features agreed on.
    pub features: u64,
}

impl Device {
    /// Resets the device and agrees on those of the features `wanted` that it offers; VERSION_1 must be among them.
    pub fn negotiate(registers: Registers, wanted: u64) -> Outcome<Self> {
        Self::begin(&registers);
        let features = registers.features() & (wanted | feature::VERSION_1);
        Self::agree(registers, features)
    }

    /// The same with the features of a device that has been asked before what it offers.
    pub fn negotiate_again(registers: Registers, offered: u64, wanted: u64) -> Outcome<Self> {
        Self::begin(&registers);
        Self::agree(registers, offered & (wanted | feature::VERSION_1))
    }

    fn begin(registers: &Registers) {
        // One after the other, as §3.1.1 of virtio 1.3 has it: there are devices that insist.
        for status in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
            registers.write(offset::STATUS, status);
        }
    }

    fn agree(registers: Registers, features: u64) -> Outcome<Self> {
        registers.take_features(features);
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        registers.write(offset::STATUS, agreed);
        if registers.read(offset::STATUS) & status::FEATURES_OK == 0 {
            return Err(Failure::new(format!("the device refuses features {features:#x}")));
        }
        Ok(Self { registers, features })
    }

    /// Whether a feature has been agreed on.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Sets up a queue of `size` entries, or of the largest size the device has if that is less.
    pub fn queue(&self, index: u16, size: u16) -> Outcome<SplitQueue> {
        let max = self.registers.queue_size_max(index);
        if max == 0 {
            return Err(Failure::new(format!("the device has no queue {index}")));
        }
        let size = size.min(u16::try_from(max).unwrap_or(u16::MAX));
        let event_idx = self.has(feature::EVENT_IDX);
        Ok(SplitQueue::new(&self.registers, index, size, event_idx))
    }

    /// Lets the device work.
    pub fn start(&self) {
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.registers.write(offset::STATUS, agreed | status::DRIVER_OK);
    }

    /// Lets the device interrupt.
    pub fn enable_interrupts(&self) {
        let place = self.registers.place();
        interrupts::enable(place.irq, place.base);
    }
}

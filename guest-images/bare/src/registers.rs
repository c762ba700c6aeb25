//! A virtio-mmio device's registers, one by one (virtio 1.3 §4.2.2).

use core::arch::asm;
use core::ptr;

use bare_guest::arguments::Placement;

/// Offsets (virtio 1.3 table 4.1).
pub mod offset {
    /// "virt".
    pub const MAGIC: usize = 0x000;
    /// 2 for a device that is not legacy.
    pub const VERSION: usize = 0x004;
    /// What kind of device it is; 0 for none.
    pub const DEVICE_ID: usize = 0x008;
    /// Who made it.
    pub const VENDOR_ID: usize = 0x00c;
    /// 32 of the features that it offers.
    pub const DEVICE_FEATURES: usize = 0x010;
    /// Which 32.
    pub const DEVICE_FEATURES_SELECT: usize = 0x014;
    /// 32 of the features that the driver takes.
    pub const DRIVER_FEATURES: usize = 0x020;
    /// Which 32.
    pub const DRIVER_FEATURES_SELECT: usize = 0x024;
    /// The queue that the following are about.
    pub const QUEUE_SELECT: usize = 0x030;
    /// Its largest size; 0 if there is no such queue.
    pub const QUEUE_SIZE_MAX: usize = 0x034;
    /// Its size.
    pub const QUEUE_SIZE: usize = 0x038;
    /// Whether it is in use.
    pub const QUEUE_READY: usize = 0x044;
    /// Takes the number of a queue that has buffers.
    pub const QUEUE_NOTIFY: usize = 0x050;
    /// What the device has interrupted for.
    pub const INTERRUPT_STATUS: usize = 0x060;
    /// Takes the bits of it that have been heard.
    pub const INTERRUPT_ACK: usize = 0x064;
    /// The driver's progress.
    pub const STATUS: usize = 0x070;
    /// Address of the descriptor table, low half; the high half follows.
    pub const QUEUE_DESCRIPTORS: usize = 0x080;
    /// Address of the available ring, likewise.
    pub const QUEUE_DRIVER: usize = 0x090;
    /// Address of the used ring, likewise.
    pub const QUEUE_DEVICE: usize = 0x0a0;
    /// Changes whenever the configuration space does.
    pub const CONFIG_GENERATION: usize = 0x0fc;
    /// The configuration space.
    pub const CONFIG: usize = 0x100;
}

/// Bits of the device status (virtio 1.3 §2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// It is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device can do nothing more.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}

/// The value of the magic register.
pub const MAGIC: u32 = 0x7472_6976;
/// The version of a device that is not legacy.
pub const VERSION: u32 = 2;

/// The registers of one device.
#[derive(Clone, Copy)]
pub struct Registers {
    place: Placement,
}

impl Registers {
    /// The registers of the device that the host says is there.
    pub fn at(place: Placement) -> Self {
        Self { place }
    }

    /// Where they are.
    pub fn place(&self) -> Placement {
        self.place
    }

    /// Reads a register of 4 bytes.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: the host says that there are registers, not RAM: no access reaches memory that Rust knows of.
        unsafe { self.register(offset).read_volatile() }
    }

    /// Writes a register of 4 bytes.
    pub fn write(&self, offset: usize, value: u32) {
        // SAFETY: as above. What a device writes to memory because of it is what its queues name.
        unsafe { self.register(offset).write_volatile(value) }
    }

    /// A register's address.
    pub fn register(&self, offset: usize) -> *mut u32 {
        ptr::with_exposed_provenance_mut(self.place.base as usize + offset)
    }

    /// All 64 features that the device offers.
    pub fn features(&self) -> u64 {
        let half = |index| {
            self.write(offset::DEVICE_FEATURES_SELECT, index);
            u64::from(self.read(offset::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Tells the device which of its features the driver takes.
    pub fn take_features(&self, features: u64) {
        for half in 0..2 {
            self.write(offset::DRIVER_FEATURES_SELECT, half);
            self.write(offset::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    /// Reads 1, 2, 4 or 8 bytes at any offset.
    ///
    /// # Panics
    /// At other widths, and if the bytes are not all the device's.
    pub fn read_any(&self, offset: usize, bytes: usize) -> u64 {
        let address = self.any(offset, bytes);
        let mut value: u64 = 0;
        // SAFETY: as in `read`. Not by pointers, because these may not be aligned.
        unsafe {
            match bytes {
                1 => {
                    asm!("mov {0:l}, [{1}]", inout(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                2 => {
                    asm!("mov {0:x}, [{1}]", inout(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                4 => {
                    asm!("mov {0:e}, [{1}]", inout(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                8 => {
                    asm!("mov {0:r}, [{1}]", inout(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                _ => panic!("a CPU reads 1, 2, 4 or 8 bytes"),
            }
        }
        value
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value` at any offset.
    ///
    /// # Panics
    /// At other widths, and if the bytes are not all the device's.
    pub fn write_any(&self, offset: usize, bytes: usize, value: u64) {
        let address = self.any(offset, bytes);
        // SAFETY: as in `write`, and as in `read_any`.
        unsafe {
            match bytes {
                1 => {
                    asm!("mov [{1}], {0:l}", in(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                2 => {
                    asm!("mov [{1}], {0:x}", in(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                4 => {
                    asm!("mov [{1}], {0:e}", in(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                8 => {
                    asm!("mov [{1}], {0:r}", in(reg) value, in(reg) address, options(nostack, preserves_flags))
                }
                _ => panic!("a CPU writes 1, 2, 4 or 8 bytes"),
            }
        }
    }

    fn any(&self, offset: usize, bytes: usize) -> usize {
        assert!(offset + bytes <= self.place.size as usize);
        self.place.base as usize + offset
    }

    /// The largest size of a queue; 0 if there is no such queue.
    pub fn queue_size_max(&self, queue: u16) -> u32 {
        self.write(offset::QUEUE_SELECT, queue.into());
        self.read(offset::QUEUE_SIZE_MAX)
    }

    /// Writes an address of a queue: `offset` is that of the low half.
    pub fn write_address(&self, offset: usize, address: u64) {
        self.write(offset, address as u32);
        self.write(offset + 4, (address >> 32) as u32);
    }
}

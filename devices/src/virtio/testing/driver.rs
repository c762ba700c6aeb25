//! A driver at a transport's registers (§4.2.2).

use std::sync::Arc;

use super::{Line, Turns, memory};
use crate::bus::BusDevice;
use crate::virtio::mmio::registers as reg;
use crate::virtio::{GuestMemory, MmioTransport, QueueState, VirtioDevice};

/// Bits of the status that a driver sets first (§2.1).
pub const ACKNOWLEDGE: u32 = 1;
/// It knows how to drive the device.
pub const DRIVER: u32 = 2;
/// Status after all steps of §3.1.1.
pub const RUNNING: u32 = ACKNOWLEDGE | DRIVER | reg::FEATURES_OK | reg::DRIVER_OK;

/// A guest with one device, whose workers run when it rings a doorbell.
pub struct Driver {
    /// The device as the guest finds it.
    pub transport: MmioTransport,
    /// All of the guest's memory.
    pub memory: GuestMemory,
    /// The device's workers.
    pub turns: Arc<Turns>,
    /// Its interrupts.
    pub line: Line,
}

impl Driver {
    /// A guest with so many bytes of memory from address 0 on, and this device.
    pub fn new(device: Arc<dyn VirtioDevice>, bytes: usize) -> Self {
        Self::in_memory(memory(bytes), device)
    }

    /// A guest with this memory and this device.
    pub fn in_memory(memory: GuestMemory, device: Arc<dyn VirtioDevice>) -> Self {
        let (line, turns) = (Line::new(), Arc::new(Turns::new()));
        let transport = MmioTransport::new(device, turns.clone(), memory.clone(), line.device_side());
        Self {
            transport: transport.expect("the host has descriptors"),
            memory,
            turns,
            line,
        }
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    ///
    /// # Panics
    /// If the machine is to stop for it.
    pub fn write(&self, offset: u64, value: u32) {
        assert!(self.transport.write(offset, &value.to_le_bytes()).is_continue());
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.write(reg::STATUS, 0);
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |index| {
            self.write(reg::DEVICE_FEATURES_SEL, index);
            u64::from(self.read(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// §3.1.1 from a reset up to step 6, with these features.
    pub fn negotiate(&self, features: u64) {
        self.write(reg::STATUS, ACKNOWLEDGE);
        self.write(reg::STATUS, ACKNOWLEDGE | DRIVER);
        for half in [0, 1] {
            self.write(reg::DRIVER_FEATURES_SEL, half);
            self.write(reg::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(reg::STATUS, ACKNOWLEDGE | DRIVER | reg::FEATURES_OK);
    }

    /// Tells the device where a queue is.
    pub fn set_queue(&self, index: u32, state: &QueueState) {
        self.write(reg::QUEUE_SEL, index);
        self.write(reg::QUEUE_SIZE, state.size.into());
        for (low, address) in [
            (reg::QUEUE_DESC_LOW, state.desc_table),
            (reg::QUEUE_DRIVER_LOW, state.avail_ring),
            (reg::QUEUE_DEVICE_LOW, state.used_ring),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    /// DRIVER_OK, the last step.
    pub fn let_work(&self) {
        self.write(reg::STATUS, RUNNING);
    }

    /// Rings a queue's doorbell, and lets the workers work.
    pub fn ring(&self, queue: u32) {
        self.write(reg::QUEUE_NOTIFY, queue);
        self.turns.run();
    }
}

//! The transport over memory-mapped registers (§4.2): device status, feature negotiation, queue set-up, interrupts.
//!
//! What a driver does out of order or out of range is ignored as far as the specification lets it be, and else
//! ends in DEVICE_NEEDS_RESET; either way the log has a line about it once in the device's life.

pub(super) mod registers;
mod signals;
mod state;
#[cfg(test)]
mod tests;
mod workers;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{GuestMemory, Interrupt, IoThreads, QueueCounts, QueueState, Trouble, VirtioDevice};
use crate::bus::{BusDevice, GuestRequest};
use crate::counters::{Counters, Sample};
use registers as reg;
use signals::Signals;
use workers::Workers;

pub use state::{SignalsState, TransportState};

/// Bytes of guest-physical space that a device takes: a page, so that a guest can map each on its own.
pub const MMIO_SIZE: u64 = 0x1000;
/// Where a driver writes a queue's index to ring its doorbell: QueueNotify (§4.2.2), 32 bits.
pub const NOTIFY_OFFSET: u64 = reg::QUEUE_NOTIFY;

/// Features of the transport and the rings that every device has.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A virtio device as a guest finds it in memory.
pub struct MmioTransport {
    device: Arc<dyn VirtioDevice>,
    threads: Arc<dyn IoThreads>,
    memory: GuestMemory,
    doorbells: Vec<EventFd>,
    counts: Vec<Arc<QueueCounts>>,
    signals: Arc<Signals>,
    state: Mutex<State>,
}

/// What the driver has set up so far.
struct State {
    /// DEVICE_NEEDS_RESET is not in here but in the signals, where workers can set it.
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueState>,
    workers: Workers,
}

impl State {
    fn new(queue_sizes: &[u16]) -> Self {
        let queue = |&max_size| QueueState {
            max_size,
            size: max_size,
            ..Default::default()
        };
        Self {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
            workers: Workers::None,
        }
    }

    fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    fn queue(&mut self) -> Option<&mut QueueState> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }
}

impl MmioTransport {
    /// Shows `device` to the guest that has `memory`; its workers will run on `threads`, and its interrupts are told to `line`.
    ///
    /// # Errors
    /// The host has no descriptor left for a doorbell.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        threads: Arc<dyn IoThreads>,
        memory: GuestMemory,
        line: EventFd,
    ) -> io::Result<Self> {
        let queue_sizes = device.queue_sizes();
        let doorbells = queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            signals: Arc::new(Signals::new(device.name().to_owned(), line)),
            state: Mutex::new(State::new(queue_sizes)),
            counts: queue_sizes.iter().map(|_| Arc::default()).collect(),
            device,
            threads,
            memory,
            doorbells,
        })
    }

    /// By queue index, what is to be signalled when the guest writes that index to [`NOTIFY_OFFSET`].
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// What the device has done, and what went wrong with it.
    pub fn device_counts(&self) -> Vec<Sample> {
        let mut samples = self.device.counts();
        samples.extend(self.signals.counts().read());
        samples
    }

    /// What has happened on its queues, by their indices.
    pub fn queue_counts(&self) -> impl Iterator<Item = Vec<Sample>> {
        self.counts.iter().map(|counts| counts.read())
    }

    /// The device type (§5): `VIRTIO_ID_*`.
    pub fn id(&self) -> u32 {
        self.device.id()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest's mistake that the device survives.
    fn report(&self, what: impl fmt::Display) {
        self.signals.report(Trouble::Guest, &what);
    }

    /// What an interrupt's handler and a doorbell need, on any CPU, does not wait for another CPU that stops the device: the
    /// state is locked until all requests in flight are finished.
    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::INTERRUPT_STATUS => self.signals.interrupt_status(),
            reg::CONFIG_GENERATION => self.signals.generation(),
            _ => self.read_setup(offset),
        }
    }

    /// As [`read_register`](Self::read_register).
    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::INTERRUPT_ACK => self.signals.acknowledge(value),
            reg::QUEUE_NOTIFY => self.ring(value),
            _ => self.write_setup(offset, value),
        }
    }

    fn read_setup(&self, offset: u64) -> u32 {
        let mut state = self.lock();
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::MODERN,
            reg::DEVICE_ID => self.device.id(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => half(self.features(), state.device_features_select),
            reg::QUEUE_SIZE_MAX => state.queue().map_or(0, |queue| queue.max_size.into()),
            reg::QUEUE_READY => state.queue().map_or(0, |queue| queue.ready.into()),
            reg::STATUS => state.status | self.signals.status_bits(),
            // No shared memory region: its length is -1 (§4.2.2).
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_setup(&self, offset: u64, value: u32) {
        let mut state = self.lock();
        match offset {
            reg::DEVICE_FEATURES_SEL => state.device_features_select = value,
            reg::DRIVER_FEATURES_SEL => state.driver_features_select = value,
            reg::DRIVER_FEATURES => self.set_driver_features(&mut state, value),
            reg::QUEUE_SEL => state.queue_select = value,
            reg::STATUS => self.set_status(&mut state, value),
            reg::QUEUE_SIZE..=reg::QUEUE_DEVICE_HIGH => self.set_queue(&mut state, offset, value),
            // Read-only and reserved ones: such writes are lost (§4.2.2.2).
            _ => {}
        }
    }

    fn features(&self) -> u64 {
        self.device.features() & !(1 << VIRTIO_F_RING_RESET) | TRANSPORT_FEATURES
    }

    fn set_driver_features(&self, state: &mut State, value: u32) {
        if state.has(reg::FEATURES_OK) {
            return self.report("the driver changes features after it has agreed on them");
        }
        let shift = match state.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        state.driver_features &= !(u64::from(u32::MAX) << shift);
        state.driver_features |= u64::from(value) << shift;
    }

    /// Only ioeventfds for writes of another width than theirs leave anything to do here.
    fn ring(&self, index: u32) {
        if let Some(doorbell) = usize::try_from(index)
            .ok()
            .and_then(|index| self.doorbells.get(index))
        {
            // Fails only when the counter is full, and then it has rung.
            let _ = doorbell.write(1);
        }
    }

    fn set_queue(&self, state: &mut State, offset: u64, value: u32) {
        let running = state.has(reg::DRIVER_OK);
        let Some(queue) = state.queue() else { return };
        if offset == reg::QUEUE_READY && value == 0 {
            return self.retire_queue(state);
        }
        if running {
            return self.report("the driver changes a queue while the device runs");
        }
        if offset == reg::QUEUE_READY {
            queue.ready = value == 1;
            return;
        }
        if queue.ready {
            return self.report("the driver changes a queue that it has called ready");
        }
        match offset {
            // A size that does not fit is as bad as none, and found when the device starts.
            reg::QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            reg::QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut queue.avail_ring, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut queue.avail_ring, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut queue.used_ring, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }

    /// §4.2.2.2: a driver that is done with a queue writes 0 to QueueReady, and reads it back until it is 0. It does so on its
    /// way to a reset, so the device as a whole stops.
    fn retire_queue(&self, state: &mut State) {
        self.stop(state);
        if let Some(queue) = state.queue() {
            queue.ready = false;
        }
    }

    /// §3.1.1: the driver sets one bit after another, and clears them only all at once, which resets the device.
    fn set_status(&self, state: &mut State, value: u32) {
        if value == 0 {
            return self.reset(state);
        }
        if state.status & !value != 0 {
            return self.report("the driver clears status bits without a reset");
        }
        let mut set = value & !state.status & reg::DRIVER_STATUS;
        if set & reg::FEATURES_OK != 0 && !self.accepts(state) {
            set &= !reg::FEATURES_OK;
        }
        let start = set & reg::DRIVER_OK != 0;
        if start && (state.status | set) & reg::FEATURES_OK == 0 {
            self.report("the driver starts the device without agreed features");
            set &= !reg::DRIVER_OK;
        }
        state.status |= set;
        if set & reg::DRIVER_OK != 0
            && let Err(error) = self.start(state)
        {
            self.signals.needs_reset(&error);
        }
    }

    /// §3.1.1 step 5, §6: a driver takes only what was offered, and VERSION_1 always.
    fn accepts(&self, state: &State) -> bool {
        let foreign = state.driver_features & !self.features();
        if foreign != 0 {
            self.report(format_args!(
                "the driver takes features that were not offered: {foreign:#x}"
            ));
        } else if state.driver_features & 1 << VIRTIO_F_VERSION_1 == 0 {
            self.report("the driver does not know virtio 1");
        } else {
            return true;
        }
        false
    }

    fn reset(&self, state: &mut State) {
        self.stop(state);
        self.device.reset();
        *state = State::new(self.device.queue_sizes());
        self.signals.reset();
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> ControlFlow<GuestRequest> {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.write_config(offset, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
        ControlFlow::Continue(())
    }
}

/// One half of 64 feature bits, as selected (§4.2.2): there are no bits from 64 on.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

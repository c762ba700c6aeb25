//! Tests of the transport, driven by registers as a guest does it, in order and out of order.

mod snapshots;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::counters::Sample;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{ACKNOWLEDGE, Buffer, DRIVER, Driver, DriverQueue, RUNNING, memory};
use crate::virtio::{Activation, DeviceState, Difference, Worker};

const MEMORY: usize = 0x1_0000;
const QUEUE: u64 = 0x1000;
const DATA: u64 = 0x8000;
const SIZE: u16 = 8;
use reg::{DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK};

fn machine(device: Arc<dyn VirtioDevice>) -> Driver {
    Driver::new(device, MEMORY)
}

/// Starts the device with one queue; returns the driver's side of it.
fn start(guest: &Driver) -> DriverQueue {
    guest.negotiate(1 << VIRTIO_F_VERSION_1);
    let queue = DriverQueue::new(&guest.memory, QUEUE, SIZE);
    guest.set_queue(0, &queue.state());
    guest.let_work();
    queue
}

#[test]
fn a_driver_finds_negotiates_and_uses_a_device() {
    let guest = machine(Arc::new(Rng::default()));
    assert_eq!((guest.read(0), guest.read(4), guest.read(8)), (0x7472_6976, 2, 4));
    assert_ne!(guest.offered() & 1 << VIRTIO_F_VERSION_1, 0);
    assert_eq!(guest.read(reg::QUEUE_SIZE_MAX), 64);
    guest.write(reg::QUEUE_SEL, 1);
    assert_eq!(guest.read(reg::QUEUE_SIZE_MAX), 0, "there is one queue");

    let mut queue = start(&guest);
    assert_eq!(guest.status(), RUNNING);
    let head = queue.add(&[Buffer::Write(DATA, 64)]);
    guest.ring(0);
    assert_eq!(queue.take_used(), [(head.into(), 64)]);
    let mut random = [0; 64];
    guest.memory.read_slice(&mut random, GuestAddress(DATA)).unwrap();
    assert_ne!(random, [0; 64]);

    assert_eq!(guest.line.take_pulses(), 1);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), reg::INTERRUPT_QUEUE);
    guest.write(reg::INTERRUPT_ACK, reg::INTERRUPT_QUEUE);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_reset_stops_the_device_and_forgets_everything() {
    let guest = machine(Arc::new(Rng::default()));
    let mut queue = start(&guest);
    guest.reset();
    assert_eq!((guest.status(), guest.read(reg::QUEUE_READY)), (0, 0));
    queue.add(&[Buffer::Write(DATA, 64)]);
    guest.ring(0);
    assert_eq!(queue.take_used(), [], "the device does not run");
    let mut queue = start(&guest);
    assert_eq!(guest.status(), RUNNING);
    queue.add(&[Buffer::Write(DATA, 8)]);
    guest.ring(0);
    assert_eq!(queue.take_used().len(), 1, "and now it does again");
}

#[test]
fn features_are_agreed_on_before_the_device_runs() {
    for features in [0, 1 << VIRTIO_F_VERSION_1 | 1 << 63, u64::MAX] {
        let guest = machine(Arc::new(Rng::default()));
        guest.negotiate(features);
        assert_eq!(
            guest.status(),
            ACKNOWLEDGE | DRIVER,
            "no FEATURES_OK for {features:#x}"
        );
        guest.write(reg::STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(
            guest.status(),
            ACKNOWLEDGE | DRIVER,
            "and without it no DRIVER_OK"
        );
    }
    let guest = machine(Arc::new(Rng::default()));
    start(&guest);
    guest.write(reg::DRIVER_FEATURES, u32::MAX);
    guest.write(reg::STATUS, ACKNOWLEDGE);
    assert_eq!(
        guest.status(),
        RUNNING,
        "it neither renegotiates nor forgets a step"
    );
}

#[test]
fn a_malformed_queue_ends_in_needs_reset_and_a_reset_mends_it() {
    let good = DriverQueue::new(&memory(MEMORY), QUEUE, SIZE).state();
    let malformed: [fn(&mut QueueState); 5] = [
        |queue| queue.size = 0,
        |queue| queue.size = 7,
        |queue| queue.desc_table = MEMORY as u64,
        |queue| queue.avail_ring = u64::MAX - 1,
        |queue| queue.used_ring += 2,
    ];
    for change in malformed {
        let guest = machine(Arc::new(Rng::default()));
        guest.negotiate(1 << VIRTIO_F_VERSION_1);
        let mut queue = good;
        change(&mut queue);
        guest.set_queue(0, &queue);
        guest.let_work();
        assert_eq!(guest.status(), RUNNING | DEVICE_NEEDS_RESET, "{queue:?}");
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), reg::INTERRUPT_CONFIG);
        guest.ring(0);
        guest.reset();
        start(&guest);
        assert_eq!(guest.status(), RUNNING);
    }
}

#[test]
fn a_driver_without_the_queue_that_the_device_needs_is_told_to_reset() {
    let guest = machine(Arc::new(Rng::default()));
    guest.negotiate(1 << VIRTIO_F_VERSION_1);
    guest.let_work();
    assert_eq!(guest.status(), RUNNING | DEVICE_NEEDS_RESET);
}

#[test]
fn a_fault_while_running_is_told_and_other_rings_are_ignored() {
    let guest = machine(Arc::new(Rng::default()));
    let mut queue = start(&guest);
    queue.jump(SIZE + 1);
    guest.ring(0);
    assert_eq!(guest.status(), RUNNING | DEVICE_NEEDS_RESET);
    assert_ne!(guest.read(reg::CONFIG_GENERATION), u32::MAX);
    guest.ring(0);
    for index in [1, 2, u32::MAX] {
        guest.write(reg::QUEUE_NOTIFY, index);
    }
    guest.turns.run();
}

/// A device is stopped under the lock of its state, which takes as long as the host's disk does.
#[test]
fn interrupts_and_doorbells_do_not_wait_for_a_cpu_that_stops_the_device() {
    let guest = machine(Arc::new(Rng::default()));
    start(&guest);
    let (done, result) = mpsc::channel();
    thread::scope(|scope| {
        let stopping = guest.transport.lock();
        scope.spawn(|| {
            guest.read(reg::INTERRUPT_STATUS);
            guest.read(reg::CONFIG_GENERATION);
            guest.write(reg::INTERRUPT_ACK, reg::INTERRUPT_QUEUE);
            guest.write(reg::QUEUE_NOTIFY, 0);
            done.send(())
        });
        let answered = result.recv_timeout(Duration::from_secs(20));
        drop(stopping);
        answered.expect("they need nothing of the state");
    });
}

#[test]
fn a_queue_does_not_change_while_it_is_ready() {
    let guest = machine(Arc::new(Rng::default()));
    let mut queue = start(&guest);
    guest.write(reg::QUEUE_DESC_LOW, 0);
    guest.write(reg::QUEUE_READY, 1);
    assert_eq!(guest.read(reg::QUEUE_READY), 1);
    queue.add(&[Buffer::Write(DATA, 8)]);
    guest.ring(0);
    assert_eq!(queue.take_used().len(), 1);
}

#[test]
fn a_driver_can_be_done_with_a_queue_of_a_running_device() {
    let guest = machine(Arc::new(Rng::default()));
    let mut queue = start(&guest);
    queue.add(&[Buffer::Write(DATA, 8)]);
    guest.write(reg::QUEUE_READY, 0);
    assert_eq!(guest.read(reg::QUEUE_READY), 0);
    guest.ring(0);
    assert_eq!(queue.take_used(), []);
    guest.reset();
    start(&guest);
    assert_eq!(guest.status(), RUNNING);
}

/// A device with a configuration space that can be written, which counts what happens to it.
#[derive(Default)]
struct Notebook {
    config: Mutex<[u8; 6]>,
    resets: AtomicUsize,
}

impl VirtioDevice for Notebook {
    fn name(&self) -> &str {
        "notebook"
    }

    fn id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        1 << 5 | 1 << VIRTIO_F_RING_RESET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config_bytes(&*self.config.lock().unwrap(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        if let Some(there) = config.get_mut(offset as usize..offset as usize + data.len()) {
            there.copy_from_slice(data);
        }
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&self, _state: &DeviceState) -> Result<(), Difference> {
        Ok(())
    }

    fn start(&self, _activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        Err(io::Error::other("the host has run out of ink"))
    }

    fn counts(&self) -> Vec<Sample> {
        Vec::new()
    }
}

#[test]
fn the_configuration_space_takes_accesses_of_every_width() {
    let notebook = Arc::new(Notebook::default());
    let guest = machine(notebook);
    assert!(guest.transport.write(0x100, &[1, 2, 3, 4, 5, 6]).is_continue());
    for width in 1..=8 {
        for offset in 0..12 {
            let mut data = vec![0xee; width];
            guest.transport.read(0x100 + offset as u64, &mut data);
            let expected: Vec<u8> = (offset..offset + width)
                .map(|at| if at < 6 { at as u8 + 1 } else { 0 })
                .collect();
            assert_eq!(data, expected);
        }
    }
}

#[test]
fn registers_take_aligned_words_only() {
    let guest = machine(Arc::new(Rng::default()));
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0xfe, 4), (0xff, 8)] {
        let mut data = vec![0xee; width];
        guest.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{offset:#x}");
        assert!(guest.transport.write(offset, &data).is_continue());
    }
    for offset in (0..0x100).step_by(4).filter(|offset| *offset != reg::STATUS) {
        guest.write(offset, u32::MAX);
        guest.read(offset);
    }
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_host_that_cannot_start_a_device_leaves_it_in_need_of_a_reset() {
    let notebook = Arc::new(Notebook::default());
    let guest = machine(notebook.clone());
    guest.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << 5);
    guest.let_work();
    assert_eq!(guest.status(), RUNNING | DEVICE_NEEDS_RESET);
    guest.reset();
    assert_eq!((guest.status(), notebook.resets.load(Ordering::SeqCst)), (0, 1));
    guest.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_F_RING_RESET);
    assert_eq!(
        guest.status() & FEATURES_OK,
        0,
        "what the transport does not do is not offered"
    );
}

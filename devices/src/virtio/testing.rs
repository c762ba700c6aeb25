//! A driver for tests: lays queues out in memory, makes chains available, and reads what a device has answered.
//!
//! It does what it is told, however wrong that is, since devices have to stand drivers that do.

mod driver;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    Activation, GuestMemory, Interrupt, IoThreads, Queue, QueueError, QueueParts, QueueState, Trouble,
    VirtioDevice, Worker, WorkerId, lock,
};

pub use driver::{ACKNOWLEDGE, DRIVER, Driver, RUNNING};

/// Another descriptor follows (§2.7.5).
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Memory of `size` bytes from address 0 on, all zero.
pub fn memory(size: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), size)]).expect("the host has this memory")
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub enum Buffer {
    /// For the device to read: guest-physical address, length in bytes.
    Read(u64, u32),
    /// For the device to write: guest-physical address, length in bytes.
    Write(u64, u32),
}

/// The driver's side of one queue.
#[derive(Clone)]
pub struct DriverQueue {
    memory: GuestMemory,
    state: QueueState,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl DriverQueue {
    /// Bytes that a queue of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        // Descriptor table, available ring with used_event, used ring with avail_event (§2.7), generously aligned.
        (16 * size + (6 + 2 * size).next_multiple_of(16) + 6 + 8 * size).next_multiple_of(4096)
    }

    /// Lays a queue of `size` entries out at `base`, which is a multiple of 16.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let avail_ring = base + 16 * u64::from(size);
        let used_ring = (avail_ring + 6 + 2 * u64::from(size)).next_multiple_of(16);
        Self {
            memory: memory.clone(),
            state: QueueState {
                max_size: size,
                size,
                ready: true,
                desc_table: base,
                avail_ring,
                used_ring,
                ..Default::default()
            },
            next_descriptor: 0,
            available: 0,
            used: 0,
        }
    }

    /// Where it lies.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// The device's side of it: queue `index`, with indirect descriptors and, if asked for, EVENT_IDX.
    pub fn device_side(
        &self,
        index: u16,
        interrupt: Arc<dyn Interrupt>,
        event_idx: bool,
    ) -> Result<Queue, QueueError> {
        let state = QueueState {
            event_idx_enabled: event_idx,
            ..self.state
        };
        let parts = QueueParts {
            index,
            memory: self.memory.clone(),
            doorbell: eventfd(),
            interrupt,
            indirect: true,
            counts: Arc::default(),
        };
        Queue::new(state, parts)
    }

    /// Writes a descriptor as it is given.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(
            self.state.desc_table + 16 * u64::from(index),
            address,
            len,
            flags,
            next,
        );
    }

    /// Writes a descriptor anywhere: into an indirect table.
    pub fn descriptor_at(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor::new(address, len, flags, next);
        self.memory
            .write_obj(descriptor, GuestAddress(at))
            .expect("the table is in memory");
    }

    /// Makes a chain of these buffers available; returns its head. Descriptors are taken in a ring: at most a queueful is
    /// to be outstanding.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.state.size;
            let next = if n + 1 < buffers.len() { NEXT } else { 0 };
            let (address, len, write) = match *buffer {
                Buffer::Read(address, len) => (address, len, 0),
                Buffer::Write(address, len) => (address, len, WRITE),
            };
            self.descriptor(index, address, len, write | next, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Makes the chain that begins at `head` available.
    pub fn publish(&mut self, head: u16) {
        let entry = self.state.avail_ring + 4 + 2 * u64::from(self.available % self.state.size);
        self.store(entry, head);
        self.jump(1);
    }

    /// Moves the available index on by `entries`, whatever is in the ring.
    pub fn jump(&mut self, entries: u16) {
        self.available = self.available.wrapping_add(entries);
        self.store(self.state.avail_ring + 2, self.available);
    }

    /// Asks for no interrupts (without EVENT_IDX).
    pub fn suppress_interrupts(&self) {
        self.store(self.state.avail_ring, 1);
    }

    /// Asks for an interrupt when the used index goes past `index` (with EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        self.store(self.state.avail_ring + 4 + 2 * u64::from(self.state.size), index);
    }

    /// Whether the device wants to be rung for what is made available now (with EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.load(self.state.used_ring + 4 + 8 * u64::from(self.state.size))
    }

    /// What the device has used since the last call: heads, and how many bytes it wrote.
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.load(self.state.used_ring + 2);
        let mut taken = Vec::new();
        while self.used != index {
            let entry = GuestAddress(self.state.used_ring + 4 + 8 * u64::from(self.used % self.state.size));
            let (id, len) = self
                .memory
                .read_obj::<[u32; 2]>(entry)
                .map(Into::into)
                .expect("the ring is in memory");
            taken.push((id, len));
            self.used = self.used.wrapping_add(1);
        }
        taken
    }

    fn load(&self, at: u64) -> u16 {
        self.memory
            .load(GuestAddress(at), Ordering::Acquire)
            .expect("the ring is in memory")
    }

    fn store(&self, at: u64, value: u16) {
        self.memory
            .store(value, GuestAddress(at), Ordering::Release)
            .expect("the ring is in memory");
    }
}

/// Remembers what a device told its driver.
#[derive(Default)]
pub struct Recorder {
    queue_interrupts: AtomicUsize,
    config_interrupts: AtomicUsize,
    faults: Mutex<Vec<String>>,
    reports: Mutex<Vec<(Trouble, String)>>,
}

impl Recorder {
    /// Interrupts for used buffers so far.
    pub fn queue_interrupts(&self) -> usize {
        self.queue_interrupts.load(Ordering::SeqCst)
    }

    /// Interrupts for a changed configuration so far.
    pub fn config_interrupts(&self) -> usize {
        self.config_interrupts.load(Ordering::SeqCst)
    }

    /// Why the device needs a reset, each time that it said so.
    pub fn faults(&self) -> Vec<String> {
        lock(&self.faults).clone()
    }

    /// Everything that the device reported.
    pub fn reports(&self) -> Vec<(Trouble, String)> {
        lock(&self.reports).clone()
    }
}

impl Interrupt for Recorder {
    fn queue_used(&self, _index: u16) {
        self.queue_interrupts.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config_interrupts.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self, why: &dyn fmt::Display) {
        lock(&self.faults).push(why.to_string());
    }

    fn report(&self, trouble: Trouble, what: &dyn fmt::Display) {
        lock(&self.reports).push((trouble, what.to_string()));
    }
}

/// An interrupt line: what a transport pulses and nobody listens to.
pub struct Line(EventFd);

impl Line {
    /// A line without a pulse.
    pub fn new() -> Self {
        Self(eventfd())
    }

    /// The transport's end of it.
    pub fn device_side(&self) -> EventFd {
        self.0.try_clone().expect("the host has descriptors")
    }

    /// Pulses since the last call.
    pub fn take_pulses(&self) -> u64 {
        self.0.read().unwrap_or(0)
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// Workers that run when they are told to, on the thread of the test.
pub struct Turns(Mutex<EventManager<Box<dyn Worker>>>);

impl Turns {
    /// No workers yet.
    pub fn new() -> Self {
        Self(Mutex::new(EventManager::new().expect("the host has descriptors")))
    }

    /// Lets the workers handle what has happened, and what that brings about, until nothing is left. A guest can keep
    /// a device busy for ever, by a ring that lies over another one: then it ends after some rounds.
    pub fn run(&self) {
        const MAX_ROUNDS: usize = 1000;
        let mut workers = lock(&self.0);
        for _ in 0..MAX_ROUNDS {
            if workers.run_with_timeout(0).expect("epoll works") == 0 {
                return;
            }
        }
    }

    /// Waits until something happens, at most `milliseconds`, and lets the workers handle it.
    pub fn run_within(&self, milliseconds: i32) {
        lock(&self.0).run_with_timeout(milliseconds).expect("epoll works");
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl IoThreads for Turns {
    fn run(&self, worker: Box<dyn Worker>) -> io::Result<WorkerId> {
        let subscriber = lock(&self.0).add_subscriber(worker);
        Ok(WorkerId {
            thread: 0,
            subscriber,
        })
    }

    fn take_back(&self, id: WorkerId) -> Option<Box<dyn Worker>> {
        lock(&self.0).remove_subscriber(id.subscriber).ok()
    }
}

/// A device that runs, without a transport.
pub struct Started {
    /// The driver's side of its queues, by index.
    pub queues: Vec<DriverQueue>,
    /// What it told its driver.
    pub recorder: Arc<Recorder>,
    /// Its workers.
    pub turns: Turns,
    ids: Vec<WorkerId>,
    doorbells: Vec<EventFd>,
}

impl Started {
    /// Starts `device` with these features and all of its queues, of `size` entries each, laid out from `base` on.
    pub fn new(device: &dyn VirtioDevice, memory: &GuestMemory, base: u64, size: u16, features: u64) -> Self {
        let recorder = Arc::new(Recorder::default());
        let count = device.queue_sizes().len() as u64;
        let queues: Vec<_> = (0..count)
            .map(|n| DriverQueue::new(memory, base + n * DriverQueue::bytes(size), size))
            .collect();
        let event_idx = features & 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX != 0;
        let sides: Vec<_> = (0..)
            .zip(&queues)
            .map(|(index, queue)| {
                queue
                    .device_side(index, recorder.clone(), event_idx)
                    .expect("the queue is sound")
            })
            .collect();
        let doorbells = sides
            .iter()
            .map(|queue| queue.doorbell().try_clone().expect("a descriptor"))
            .collect();
        let activation = Activation {
            features,
            queues: sides.into_iter().map(Some).collect(),
            interrupt: recorder.clone(),
        };
        let turns = Turns::new();
        let workers = device.start(activation).expect("the device starts");
        let ids = workers
            .into_iter()
            .map(|worker| turns.run_worker(worker))
            .collect();
        Self {
            queues,
            recorder,
            turns,
            ids,
            doorbells,
        }
    }

    /// Rings queue `index` and lets the workers work.
    pub fn ring(&self, index: usize) {
        self.knock(index);
        self.turns.run();
    }

    /// Rings queue `index`, and leaves it to the caller when the workers work.
    pub fn knock(&self, index: usize) {
        self.doorbells[index].write(1).expect("a doorbell can be rung");
    }

    /// Stops the workers; returns the queues' states by index.
    pub fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let workers = self.ids.drain(..).filter_map(|id| self.turns.take_back(id));
        workers.flat_map(|mut worker| worker.quiesce()).collect()
    }
}

impl Turns {
    fn run_worker(&self, worker: Box<dyn Worker>) -> WorkerId {
        IoThreads::run(self, worker).expect("it never fails")
    }
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("the host has descriptors")
}

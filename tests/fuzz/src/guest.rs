//! A guest made of the input: it talks to a device by registers, memory and doorbells, in order or not.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use devices::BusDevice;
use devices::virtio::testing::{Buffer, Driver, DriverQueue};
use devices::virtio::{GuestMemory, MMIO_SIZE, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 0x2_0000;
/// Buffers lie in the first half of memory, queues in the second.
const QUEUES: u64 = 0x1_0000;
const SIZE: u16 = 16;
const MAX_STEPS: usize = 256;

/// One thing that a guest does. The values are mostly small, since those are what gets far.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Writes any register.
    Register { word: u8, value: u32 },
    /// Reads anything, at any width.
    Read { offset: u16, width: u8 },
    /// Writes the configuration space, or anything else, at any width.
    Write { offset: u16, data: [u8; 8], width: u8 },
    /// Sets the device up as a good driver does, with all features but these.
    Start { without: u64 },
    /// Writes to memory.
    Memory { address: u16, data: [u8; 16] },
    /// Makes a request with a header of the device's kind available.
    Request {
        queue: u8,
        header: Header,
        buffers: [Option<GoodBuffer>; 4],
    },
    /// Makes a chain of sound descriptors available.
    Chain {
        queue: u8,
        buffers: [Option<GoodBuffer>; 4],
    },
    /// Writes a descriptor, of whatever kind.
    Descriptor {
        queue: u8,
        index: u8,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    /// Makes whatever is there available.
    Publish { queue: u8, head: u16 },
    /// Moves the available index.
    Jump { queue: u8, entries: u16 },
    /// Rings a doorbell.
    Ring { queue: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct GoodBuffer {
    address: u16,
    len: u16,
    write: bool,
}

/// The first bytes of a request. Most fields are narrower than they are for a device, since small values get far.
#[derive(Arbitrary, Debug)]
enum Header {
    Anything([u8; 44]),
    /// `virtio_blk_req` (§5.2.6).
    Block {
        operation: u8,
        sector: u8,
    },
    /// `virtio_net_ctrl` with the data of the one command that there is (§5.1.6.5).
    Control {
        class: u8,
        number: u8,
        pairs: u8,
    },
    /// `virtio_vsock_hdr` (§5.10.6), with the CIDs of guest and host.
    Vsock {
        ports: [u8; 2],
        len: u16,
        stream: bool,
        operation: u8,
        flags: u8,
        room: u32,
        taken: u16,
    },
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Anything(bytes) => bytes.to_vec(),
            Self::Block { operation, sector } => {
                let mut bytes = u64::from(operation).to_le_bytes().to_vec();
                bytes.extend(u64::from(sector).to_le_bytes());
                bytes
            }
            Self::Control { class, number, pairs } => vec![class, number, pairs, 0],
            Self::Vsock {
                ports: [from, to],
                len,
                stream,
                operation,
                flags,
                room,
                taken,
            } => {
                let mut bytes = [3u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
                for word in [from.into(), to.into(), len.into()] {
                    bytes.extend(u32::to_le_bytes(word));
                }
                bytes.extend(u16::from(stream).to_le_bytes());
                bytes.extend(u16::from(operation).to_le_bytes());
                for word in [flags.into(), room, taken.into()] {
                    bytes.extend(u32::to_le_bytes(word));
                }
                bytes
            }
        }
    }
}

/// Where the headers of requests lie: in the last page before the queues.
const HEADERS: u64 = QUEUES - 0x1000;

struct Guest {
    driver: Driver,
    queues: Vec<DriverQueue>,
}

/// Lets the guest that `data` describes at `device`.
pub fn drive(device: Arc<dyn VirtioDevice>, data: &[u8]) {
    let queue_count = device.queue_sizes().len();
    let driver = Driver::new(device, MEMORY);
    let mut guest = Guest {
        queues: lay_out(&driver.memory, queue_count),
        driver,
    };
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        match Step::arbitrary(&mut input) {
            Ok(step) if !input.is_empty() => guest.step(step),
            _ => break,
        }
    }
    guest.driver.turns.run();
    guest.driver.reset();
    assert_eq!(guest.driver.status(), 0, "every device can be reset at any time");
}

fn lay_out(memory: &GuestMemory, count: usize) -> Vec<DriverQueue> {
    let queue = |n| DriverQueue::new(memory, QUEUES + n as u64 * DriverQueue::bytes(SIZE), SIZE);
    (0..count).map(queue).collect()
}

impl Guest {
    fn step(&mut self, step: Step) {
        match step {
            Step::Register { word, value } => self.driver.write(u64::from(word) * 4, value),
            Step::Read { offset, width } => {
                let (offset, width) = access(offset, width);
                self.driver.transport.read(offset, &mut [0; 8][..width]);
            }
            Step::Write { offset, data, width } => {
                let (offset, width) = access(offset, width);
                let _ = self.driver.transport.write(offset, &data[..width]);
            }
            Step::Start { without } => self.start(without),
            Step::Memory { address, data } => {
                self.driver
                    .memory
                    .write_slice(&data, GuestAddress(address.into()))
                    .expect("it is in memory");
            }
            Step::Request {
                queue,
                header,
                buffers,
            } => {
                let header = header.bytes();
                self.driver
                    .memory
                    .write_slice(&header, GuestAddress(HEADERS))
                    .expect("it is in memory");
                self.chain(queue, Some(header.len() as u32), &buffers);
            }
            Step::Chain { queue, buffers } => self.chain(queue, None, &buffers),
            Step::Descriptor {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => {
                if let Some(queue) = self.queue(queue) {
                    queue.descriptor(u16::from(index) % SIZE, address, len, flags, next);
                }
            }
            Step::Publish { queue, head } => {
                if let Some(queue) = self.queue(queue) {
                    queue.publish(head);
                }
            }
            Step::Jump { queue, entries } => {
                if let Some(queue) = self.queue(queue) {
                    queue.jump(entries);
                }
            }
            Step::Ring { queue } => {
                self.driver.ring(queue.into());
            }
        }
    }

    fn queue(&mut self, index: u8) -> Option<&mut DriverQueue> {
        let count = self.queues.len().max(1);
        self.queues.get_mut(usize::from(index) % count)
    }

    fn chain(&mut self, queue: u8, header: Option<u32>, buffers: &[Option<GoodBuffer>]) {
        let mut good: Vec<GoodBuffer> = buffers.iter().copied().flatten().collect();
        good.sort_by_key(|buffer| buffer.write);
        let header = header.map(|len| Buffer::Read(HEADERS, len));
        let buffers = good.iter().map(
            |buffer| match (u64::from(buffer.address), u32::from(buffer.len)) {
                (address, len) if buffer.write => Buffer::Write(address, len),
                (address, len) => Buffer::Read(address, len),
            },
        );
        let buffers: Vec<Buffer> = header.into_iter().chain(buffers).collect();
        if let Some(queue) = self.queue(queue)
            && !buffers.is_empty()
        {
            queue.add(&buffers);
        }
    }

    /// §3.1.1, after a reset, on fresh queues.
    fn start(&mut self, without: u64) {
        self.driver.reset();
        self.driver
            .memory
            .write_slice(&[0; MEMORY - QUEUES as usize], GuestAddress(QUEUES))
            .expect("it is in memory");
        self.queues = lay_out(&self.driver.memory, self.queues.len());
        self.driver.negotiate(self.driver.offered() & !without);
        for (index, queue) in (0..).zip(&self.queues) {
            self.driver.set_queue(index, &queue.state());
        }
        self.driver.let_work();
    }
}

/// An access within the device's page, of 1 to 8 bytes.
fn access(offset: u16, width: u8) -> (u64, usize) {
    let width = usize::from(width % 8) + 1;
    (u64::from(offset) % (MMIO_SIZE - 8), width)
}

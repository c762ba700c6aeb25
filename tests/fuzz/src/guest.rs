//! A guest made of the input: it talks to a device by registers, memory and doorbells, in order or not.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use devices::BusDevice;
use devices::virtio::testing::{Buffer, DriverQueue, Line, Turns, memory};
use devices::virtio::{GuestMemory, MmioTransport, VirtioDevice};
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
    transport: MmioTransport,
    turns: Arc<Turns>,
    memory: GuestMemory,
    queues: Vec<DriverQueue>,
}

/// Lets the guest that `data` describes at `device`.
pub fn drive(device: Arc<dyn VirtioDevice>, data: &[u8]) {
    let (memory, turns) = (memory(MEMORY), Arc::new(Turns::new()));
    let queue_count = device.queue_sizes().len();
    let line = Line::new();
    let transport = MmioTransport::new(device, turns.clone(), memory.clone(), line.device_side());
    let mut guest = Guest {
        transport: transport.expect("the host has descriptors"),
        turns,
        queues: lay_out(&memory, queue_count),
        memory,
    };
    let mut input = Unstructured::new(data);
    for _ in 0..MAX_STEPS {
        match Step::arbitrary(&mut input) {
            Ok(step) if !input.is_empty() => guest.step(step),
            _ => break,
        }
    }
    guest.turns.run();
    guest.write32(STATUS, 0);
    assert_eq!(guest.read32(STATUS), 0, "every device can be reset at any time");
}

// Registers (virtio 1.3 §4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const REGISTERS_END: u64 = 0x1000;

fn lay_out(memory: &GuestMemory, count: usize) -> Vec<DriverQueue> {
    let queue = |n| DriverQueue::new(memory, QUEUES + n as u64 * DriverQueue::bytes(SIZE), SIZE);
    (0..count).map(queue).collect()
}

impl Guest {
    fn step(&mut self, step: Step) {
        match step {
            Step::Register { word, value } => self.write32(u64::from(word) * 4, value),
            Step::Read { offset, width } => {
                let (offset, width) = access(offset, width);
                self.transport.read(offset, &mut [0; 8][..width]);
            }
            Step::Write { offset, data, width } => {
                let (offset, width) = access(offset, width);
                let _ = self.transport.write(offset, &data[..width]);
            }
            Step::Start { without } => self.start(without),
            Step::Memory { address, data } => {
                self.memory
                    .write_slice(&data, GuestAddress(address.into()))
                    .expect("it is in memory");
            }
            Step::Request {
                queue,
                header,
                buffers,
            } => {
                let header = header.bytes();
                self.memory
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
                self.write32(QUEUE_NOTIFY, queue.into());
                self.turns.run();
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
        self.write32(STATUS, 0);
        self.memory
            .write_slice(&[0; MEMORY - QUEUES as usize], GuestAddress(QUEUES))
            .expect("it is in memory");
        self.queues = lay_out(&self.memory, self.queues.len());
        self.write32(STATUS, 1);
        self.write32(STATUS, 1 | 2);
        for half in [0, 1] {
            self.write32(DEVICE_FEATURES_SEL, half);
            self.write32(DRIVER_FEATURES_SEL, half);
            let features = self.read32(DEVICE_FEATURES);
            self.write32(DRIVER_FEATURES, features & !((without >> (32 * half)) as u32));
        }
        self.write32(STATUS, 1 | 2 | 8);
        for index in 0..self.queues.len() {
            let state = self.queues[index].state();
            self.write32(QUEUE_SEL, index as u32);
            self.write32(QUEUE_SIZE, state.size.into());
            self.write32(QUEUE_DESC, state.desc_table as u32);
            self.write32(QUEUE_DRIVER, state.avail_ring as u32);
            self.write32(QUEUE_DEVICE, state.used_ring as u32);
            self.write32(QUEUE_READY, 1);
        }
        self.write32(STATUS, 1 | 2 | 8 | 4);
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u64, value: u32) {
        let _ = self.transport.write(offset, &value.to_le_bytes());
    }
}

/// An access within the device's page, of 1 to 8 bytes.
fn access(offset: u16, width: u8) -> (u64, usize) {
    let width = usize::from(width % 8) + 1;
    (u64::from(offset) % (REGISTERS_END - 8), width)
}

//! `blk-bench`: requests to a block device, a fixed number of them in flight.

use alloc::format;
use alloc::vec::Vec;

use bare_guest::arguments::Arguments;
use bare_guest::numbers::{Random, median};

use super::report::Report;
use crate::buffers::Buffers;
use crate::device::{self, Device, feature, kind};
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, SplitQueue, flag};
use crate::registers::offset;
use crate::{clock, interrupts};

/// Bytes of a sector, whatever the device's block size (virtio 1.3 §5.2.4).
const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_FLUSH (virtio 1.3 §5.2.3).
const FLUSH: u64 = 1 << 9;

/// A request's kind (virtio 1.3 §5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Operation {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// `virtio_blk_req` up to the data (virtio 1.3 §5.2.6), and where in a slot the rest is: its status, and its indirect table.
#[repr(C)]
struct Header {
    operation: Operation,
    reserved: u32,
    sector: u64,
}
const STATUS: usize = 16;
const TABLE: usize = 64;
const SLOT: usize = 128;
/// VIRTIO_BLK_S_OK, and what no device writes.
const OK: u8 = 0;
const UNWRITTEN: u8 = 0xff;

/// What is to be done.
struct Plan {
    operation: Operation,
    size: u64,
    depth: u16,
    random: bool,
    /// How many requests, or how many cycles.
    count: u64,
    cycles: u64,
    indirect: bool,
    interrupts: bool,
}

struct Bench {
    plan: Plan,
    queue: SplitQueue,
    slots: Buffers,
    /// Places for a request on the disk, the next one in sequence, and the generator of others.
    places: u64,
    next: u64,
    random: Random,
}

/// Runs it and prints the report.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let plan = Plan::new(arguments)?;
    let registers = device::find(arguments, kind::BLOCK)?;
    let wanted = device::event_idx(arguments)? | FLUSH | if plan.indirect { feature::INDIRECT } else { 0 };
    let device = Device::negotiate(registers, wanted)?;
    if plan.indirect && !device.has(feature::INDIRECT)
        || plan.operation == Operation::Flush && !device.has(FLUSH)
    {
        return Err(Failure::new(
            "the device does not offer what indirect=yes or op=flush needs",
        ));
    }
    let capacity =
        u64::from(registers.read(offset::CONFIG)) | u64::from(registers.read(offset::CONFIG + 4)) << 32;
    let places = capacity * SECTOR / plan.size;
    if places == 0 {
        return Err(Failure::new(format!(
            "{capacity} sectors are less than a request"
        )));
    }
    let index = arguments.number("queue")?.unwrap_or(0) as u16;
    let entries = if plan.indirect { plan.depth } else { plan.depth * 3 };
    let queue = device.queue(index, entries.next_power_of_two())?;
    if queue.size() < entries {
        return Err(Failure::new(format!(
            "a queue of {} is too short for this depth",
            queue.size()
        )));
    }
    if plan.interrupts {
        device.enable_interrupts();
    }
    device.start();
    let mut bench = Bench {
        slots: Buffers::new(plan.depth.into(), SLOT),
        plan,
        queue,
        places,
        next: 0,
        random: Random::new(1),
    };
    bench.prepare();
    bench.measure()?.print();
    Ok(())
}

impl Plan {
    fn new(arguments: &Arguments<'_>) -> Outcome<Self> {
        let operations = [
            ("read", Operation::Read),
            ("write", Operation::Write),
            ("flush", Operation::Flush),
        ];
        let size = arguments.number("size")?.unwrap_or(4096);
        let depth = arguments.number("depth")?.unwrap_or(1);
        if !(1..=4096).contains(&depth) || size == 0 || size % SECTOR != 0 || size > 1 << 30 {
            return Err(Failure::new(
                "depth is 1 to 4096, size a multiple of 512 up to 1G",
            ));
        }
        let (mut count, mut cycles) = (arguments.number("count")?.unwrap_or(1000), u64::MAX);
        if let Some(seconds) = arguments.number("seconds")? {
            let frequency = clock::frequency().ok_or_else(|| {
                Failure::new("CPUID tells no frequency of the time-stamp counter: give count=")
            })?;
            (count, cycles) = (u64::MAX, seconds.saturating_mul(frequency));
        }
        Ok(Self {
            operation: arguments.choice("op", &operations, "read, write or flush")?,
            size,
            depth: depth as u16,
            random: arguments.choice("pattern", &[("seq", false), ("random", true)], "seq or random")?,
            count,
            cycles,
            indirect: arguments.choice("indirect", &[("no", false), ("yes", true)], "yes or no")?,
            interrupts: arguments.choice(
                "wait",
                &[("poll", false), ("interrupt", true)],
                "poll or interrupt",
            )?,
        })
    }
}

impl Bench {
    /// Writes every slot's descriptors once: a request then changes only its header.
    fn prepare(&mut self) {
        let size = self.plan.size as usize;
        let data = Buffers::new(self.plan.depth.into(), size);
        for slot in 0..self.plan.depth {
            let piece = usize::from(slot);
            let mut chain = Vec::with_capacity(3);
            chain.push((self.slots.address(piece, 0), size_of::<Header>(), 0));
            match self.plan.operation {
                Operation::Read => chain.push((data.address(piece, 0), size, flag::WRITE)),
                Operation::Write => chain.push((data.address(piece, 0), size, 0)),
                Operation::Flush => {}
            }
            chain.push((self.slots.address(piece, STATUS), 1, flag::WRITE));
            self.describe(slot, &chain);
        }
    }

    fn describe(&mut self, slot: u16, chain: &[(u64, usize, u16)]) {
        let piece = usize::from(slot);
        let first = if self.plan.indirect { 0 } else { 3 * slot };
        for (n, &(address, length, flags)) in (0..).zip(chain) {
            let last = usize::from(n) + 1 == chain.len();
            let descriptor = Descriptor {
                address,
                length: length as u32,
                flags: if last { flags } else { flags | flag::NEXT },
                next: if last { 0 } else { first + n + 1 },
            };
            if self.plan.indirect {
                self.slots.write(piece, TABLE + 16 * usize::from(n), descriptor);
            } else {
                self.queue.describe(first + n, descriptor);
            }
        }
        if self.plan.indirect {
            let table = Descriptor {
                address: self.slots.address(piece, TABLE),
                length: 16 * chain.len() as u32,
                flags: flag::INDIRECT,
                next: 0,
            };
            self.queue.describe(slot, table);
        }
    }

    /// Keeps the plan's depth in flight until its count or time is over, and takes what is then left.
    fn measure(&mut self) -> Outcome<Report> {
        let each = if self.plan.indirect { 1 } else { 3 };
        let mut times = Vec::new();
        let (mut offered, mut done) = (0, 0);
        if self.plan.interrupts {
            self.queue.request_interrupt();
        }
        let start = clock::now();
        let mut last = start;
        while offered < self.plan.count.min(self.plan.depth.into()) {
            self.offer(offered as u16);
            offered += 1;
        }
        self.queue.publish();
        while done < offered {
            let seen = interrupts::seen();
            let before = (offered, done);
            while let Some(used) = self.queue.take() {
                let slot = (used.head / each) as u16;
                self.check(slot)?;
                done += 1;
                let now = clock::now();
                if self.plan.depth == 1 {
                    times.push(now - last);
                    last = now;
                }
                if offered < self.plan.count && now - start < self.plan.cycles {
                    self.offer(slot);
                    offered += 1;
                }
            }
            if offered > before.0 {
                self.queue.publish();
            } else if done == before.1 && self.plan.interrupts {
                interrupts::wait(seen);
            }
        }
        Ok(Report {
            requests: done,
            bytes: if self.plan.operation == Operation::Flush {
                0
            } else {
                done * self.plan.size
            },
            cycles: clock::now() - start,
            kicks: self.queue.kicks(),
            median: (!times.is_empty()).then(|| median(&mut times)),
        })
    }

    #[inline]
    fn offer(&mut self, slot: u16) {
        let place = if self.plan.random {
            self.random.draw() % self.places
        } else {
            self.next
        };
        self.next = if place + 1 == self.places { 0 } else { place + 1 };
        let flush = self.plan.operation == Operation::Flush;
        let header = Header {
            operation: self.plan.operation,
            reserved: 0,
            // A flush has none (virtio 1.3 §5.2.6.1).
            sector: if flush {
                0
            } else {
                place * (self.plan.size / SECTOR)
            },
        };
        self.slots.write(slot.into(), 0, header);
        self.slots.write(slot.into(), STATUS, UNWRITTEN);
        self.queue.offer(if self.plan.indirect { slot } else { 3 * slot });
    }

    #[inline]
    fn check(&self, slot: u16) -> Outcome {
        match self.slots.read(slot.into(), STATUS) {
            OK => Ok(()),
            status => Err(Failure::new(format!(
                "a request has ended with status {status:#x}"
            ))),
        }
    }
}

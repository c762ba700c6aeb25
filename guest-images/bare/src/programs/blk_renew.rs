//! `blk-renew`: reads what it wrote in the round before and writes anew, many requests at once, for as long as it may.

use alloc::format;

use bare_guest::arguments::Arguments;
use bare_guest::rounds::{self, PIECE};

use crate::buffers::Buffers;
use crate::device::{self, Device, kind};
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, SplitQueue, Used};
use crate::{interrupts, println, serial};

/// Requests in flight, and descriptors of each.
const DEPTH: u16 = 16;
const CHAIN: u16 = 3;
/// Bytes of a sector, whatever the device's block size (virtio 1.3 §5.2.4).
const SECTOR: u64 = 512;
/// VIRTIO_BLK_F_FLUSH (virtio 1.3 §5.2.3).
const FLUSH: u64 = 1 << 9;
/// A request's header, then its status (virtio 1.3 §5.2.6): VIRTIO_BLK_S_OK, or what no device writes.
const HEADER: u32 = 16;
const STATUS: usize = 16;
const SLOT: usize = 64;
const OK: u8 = 0;
const UNWRITTEN: u8 = 0xff;

/// A request's kind (virtio 1.3 §5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Operation {
    Read = 0,
    Write = 1,
    Flush = 4,
}

struct Disk {
    queue: SplitQueue,
    slots: Buffers,
    data: Buffers,
    /// What each slot's request does, and to which piece, while it is in flight.
    flying: [Option<(Operation, u64)>; DEPTH as usize],
}

/// Goes round `pieces=` pieces of the disk until there is a line of input.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let pieces = arguments.number("pieces")?.unwrap_or(64);
    let mut disk = Disk::start(arguments)?;
    serial::listen();
    println!("renewing {pieces} pieces");
    let mut round = 0;
    while !serial::has_input() {
        disk.renew(round, pieces)?;
        round += 1;
    }
    serial::read_line();
    println!("rounds={round}");
    Ok(())
}

impl Disk {
    fn start(arguments: &Arguments<'_>) -> Outcome<Self> {
        let registers = device::find(arguments, kind::BLOCK)?;
        let device = Device::negotiate(registers, device::event_idx(arguments)? | FLUSH)?;
        let mut queue = device.queue(0, (DEPTH * CHAIN).next_power_of_two())?;
        if !device.has(FLUSH) || queue.size() < DEPTH * CHAIN {
            return Err(Failure::new(
                "the device has no flush, or a queue that is too short",
            ));
        }
        queue.request_interrupt();
        device.enable_interrupts();
        device.start();
        Ok(Self {
            queue,
            slots: Buffers::new(DEPTH.into(), SLOT),
            data: Buffers::new(DEPTH.into(), PIECE),
            flying: [None; DEPTH as usize],
        })
    }

    /// Reads every piece, which must be as `round` has left it, and writes it as the next round leaves it; then flushes.
    fn renew(&mut self, round: u64, pieces: u64) -> Outcome {
        let mut next = 0..pieces;
        for (slot, piece) in (0..DEPTH).zip(&mut next) {
            self.begin(slot, Operation::Read, piece);
        }
        self.queue.publish();
        while self.flying.iter().any(Option::is_some) {
            let (slot, operation, piece) = self.finished()?;
            if operation == Operation::Read {
                self.check(slot, round, piece)?;
                for (n, word) in rounds::words(round + 1, piece).enumerate() {
                    self.data.write(slot.into(), 8 * n, word);
                }
                self.begin(slot, Operation::Write, piece);
            } else {
                println!("written {round} {piece}");
                if let Some(piece) = next.next() {
                    self.begin(slot, Operation::Read, piece);
                }
            }
            self.queue.publish();
        }
        self.begin(0, Operation::Flush, 0);
        self.queue.publish();
        self.finished().map(drop)
    }

    fn begin(&mut self, slot: u16, operation: Operation, piece: u64) {
        let at = usize::from(slot);
        let sector = piece * (PIECE as u64 / SECTOR);
        self.slots.write(at, 0, [operation as u64, sector]);
        self.slots.write(at, STATUS, UNWRITTEN);
        let header = Descriptor::read(self.slots.address(at, 0), HEADER);
        let data = self.data.address(at, 0);
        let first = CHAIN * slot;
        let second = match operation {
            Operation::Read => Some(Descriptor::write(data, PIECE as u32)),
            Operation::Write => Some(Descriptor::read(data, PIECE as u32)),
            Operation::Flush => None,
        };
        let last = first + 1 + u16::from(second.is_some());
        self.queue.describe(first, header.to(first + 1));
        if let Some(second) = second {
            self.queue.describe(first + 1, second.to(last));
        }
        let status = self.slots.address(at, STATUS);
        self.queue.describe(last, Descriptor::write(status, 1));
        self.flying[at] = Some((operation, piece));
        self.queue.offer(first);
    }

    /// Sleeps until a request has come to its end, and tells which.
    fn finished(&mut self) -> Outcome<(u16, Operation, u64)> {
        let Used { head, .. } = loop {
            let seen = interrupts::seen();
            match self.queue.take() {
                Some(used) => break used,
                None => interrupts::wait(seen),
            }
        };
        let slot = head as usize / usize::from(CHAIN);
        let Some((operation, piece)) = self.flying.get_mut(slot).and_then(Option::take) else {
            return Err(Failure::new(format!(
                "no request {head} was in flight, and it has ended"
            )));
        };
        match self.slots.read(slot, STATUS) {
            OK => Ok((slot as u16, operation, piece)),
            status => Err(Failure::new(format!(
                "a request for piece {piece} has ended with status {status:#x}"
            ))),
        }
    }

    fn check(&self, slot: u16, round: u64, piece: u64) -> Outcome {
        let mut words = rounds::words(round, piece).enumerate();
        match words.find(|&(n, word)| self.data.read::<u64>(slot.into(), 8 * n) != word) {
            None => Ok(()),
            Some((n, _)) => Err(Failure::new(format!(
                "piece {piece} is not as round {round} left it, from byte {} on",
                8 * n
            ))),
        }
    }
}

//! The device that is misused: its registers, what kind it is, and memory for queues and buffers that every case uses anew.

use alloc::format;
use alloc::vec::Vec;

use super::live::Live;
use super::{Case, balloon, block, control, entropy, network, socket};
use crate::buffers::Buffers;
use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::queue::{Descriptor, SplitQueue, Used};
use crate::registers::{Registers, offset, status};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 32;
/// Descriptors of a sound request at most. Request N is in the descriptors from `N * CHAIN` on, and in the data's piece N.
pub const CHAIN: u16 = 3;
/// How many sound requests there can be at once.
pub const SLOTS: u16 = QUEUE_SIZE / CHAIN;
/// The pieces of data behind those of requests: two where indirect tables are, and two for what else a kind needs.
const TABLES: usize = SLOTS as usize;
pub const SPARE: [usize; 2] = [TABLES + 2, TABLES + 3];
const PIECES: usize = TABLES + 4;
/// Bytes of a piece, and of a queue.
pub const PIECE: usize = 4096;
const _: () = assert!(SplitQueue::bytes(QUEUE_SIZE) <= PIECE);

/// A kind of device, and how it is used properly.
pub struct Kind {
    /// Its name for the command line. There can be several for a device, each with another queue that is misused.
    pub name: &'static str,
    /// Its number (virtio 1.3 §5).
    pub id: u32,
    /// Its own features that a sound request needs.
    pub features: u64,
    /// The queue that it takes chains from as soon as they come.
    pub queue: u16,
    /// Writes the data of a sound request, and says what its chain is.
    pub request: fn(&Victim, piece: usize) -> Vec<Descriptor>,
    /// What else its queues need before it starts.
    pub prepare: fn(&mut Live<'_>),
    /// Whether the device has done what was asked for.
    pub check: fn(&mut Live<'_>, piece: usize, Used) -> Outcome,
    /// What only this kind can be asked for.
    pub cases: &'static [Case],
}

/// All of them; those that stand for a device beside the victim come before others of the same device.
pub const KINDS: [&Kind; 8] = [
    &entropy::KIND,
    &block::KIND,
    &network::KIND,
    &control::KIND,
    &socket::KIND,
    &balloon::INFLATED,
    &balloon::DEFLATED,
    &balloon::REPORTED,
];

/// A device.
pub struct Victim {
    /// Its registers.
    pub registers: Registers,
    /// What it is.
    pub kind: &'static Kind,
    /// What it may read and write.
    pub data: Buffers,
    /// A piece for each queue.
    pub rings: Buffers,
    /// The features that it offers.
    pub offered: u64,
    /// The largest size of each queue.
    pub largest: Vec<u32>,
}

impl Victim {
    /// A device that has not been started.
    pub fn new(registers: Registers, kind: &'static Kind) -> Self {
        let largest = (0..).map(|queue| registers.queue_size_max(queue));
        let largest: Vec<_> = largest.take_while(|size| *size != 0).collect();
        Self {
            registers,
            kind,
            data: Buffers::new(PIECES, PIECE),
            rings: Buffers::new(largest.len(), PIECE),
            offered: registers.features(),
            largest,
        }
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.largest.len() as u16
    }

    /// The address of the data's piece.
    pub fn piece(&self, piece: usize) -> u64 {
        self.data.address(piece, 0)
    }

    /// Writes bytes from the start of a piece on.
    pub fn write_data(&self, piece: usize, from: usize, bytes: &[u8]) {
        for (at, byte) in (from..).zip(bytes) {
            self.data.write(piece, at, *byte);
        }
    }

    /// Writes a table of descriptors, and says where it is. There are two places, `which` is 0 or 1.
    pub fn table(&self, which: usize, descriptors: &[Descriptor]) -> u64 {
        for (n, descriptor) in descriptors.iter().enumerate() {
            self.data
                .write(TABLES + which, n * size_of::<Descriptor>(), *descriptor);
        }
        self.piece(TABLES + which)
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.registers.read(offset::STATUS)
    }

    /// Writes the device status.
    pub fn set_status(&self, value: u32) {
        self.registers.write(offset::STATUS, value);
    }

    /// Resets the device and says that there is a driver.
    pub fn begin(&self) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
    }

    /// Waits until the device says that it must be reset, and has interrupted for that (virtio 1.3 §2.1.2). The driver goes on
    /// ringing, as if it had not heard.
    pub fn must_need_reset(&self) -> Outcome {
        /// InterruptStatus: the configuration, or the status, has changed.
        const CONFIGURATION: u32 = 1 << 1;
        eventually("the device does not say that it needs a reset", || {
            self.status() & status::NEEDS_RESET != 0
                && self.registers.read(offset::INTERRUPT_STATUS) & CONFIGURATION != 0
        })?;
        for queue in 0..self.queues() {
            self.registers.write(offset::QUEUE_NOTIFY, queue.into());
        }
        must(
            self.status() & status::NEEDS_RESET != 0,
            "the device has recovered without a reset",
        )
    }
}

/// A failure unless it is so.
pub fn must(is_so: bool, otherwise: &str) -> Outcome {
    if is_so {
        Ok(())
    } else {
        Err(Failure::new(otherwise))
    }
}

/// Waits until `condition` holds: several seconds on any machine.
pub fn eventually(otherwise: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    const LIMIT: u64 = 60_000_000_000;
    let start = clock::now();
    while !condition() {
        if clock::now() - start > LIMIT {
            return Err(Failure::new(format!("{otherwise}, in {LIMIT} cycles")));
        }
    }
    Ok(())
}

//! `blk-check`: writes a pattern to a block device and reads it back; or only reads, in another run or another round.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use bare_guest::arguments::Arguments;
use bare_guest::numbers::{CHECKSUM_START, Random, checksum};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::device::{self, kind};
use crate::failure::{Failure, Outcome};
use crate::hal::Identity;
use crate::{println, serial};

type Disk = VirtIOBlk<Identity, MmioTransport<'static>>;

/// What is checked.
struct Check {
    first: usize,
    sectors: usize,
    seed: u64,
    writes: bool,
}

/// Sectors for one request.
const BATCH: usize = 128;

/// Checks as the command line says, and with `rounds=yes` as each line of input says, until one says `end`.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let check = Check::new(arguments)?;
    let goes_on = arguments.choice("rounds", &[("no", false), ("yes", true)], "yes or no")?;
    // Never taken down: the machine is switched off next.
    let mut disk = ManuallyDrop::new(Disk::new(device::transport(device::find(
        arguments,
        kind::BLOCK,
    )?)?)?);
    let mut id = [0; 20];
    let length = disk.device_id(&mut id)?;
    println!(
        "capacity={} readonly={} id={}",
        disk.capacity(),
        disk.readonly(),
        id[..length].escape_ascii()
    );
    check.run(&mut disk)?;
    if !goes_on {
        return Ok(());
    }
    serial::listen();
    loop {
        let line = serial::read_line();
        if line == "end" {
            return Ok(());
        }
        Check::new(&Arguments::new(&line))?.run(&mut disk)?;
    }
}

impl Check {
    fn new(arguments: &Arguments<'_>) -> Outcome<Self> {
        Ok(Self {
            first: arguments.number("first")?.unwrap_or(0) as usize,
            sectors: arguments.number("sectors")?.unwrap_or(64) as usize,
            seed: arguments.number("seed")?.unwrap_or(1),
            writes: arguments.choice("mode", &[("write", true), ("read", false)], "write or read")?,
        })
    }

    /// Writes and flushes, unless it is only to read; then compares, and prints a checksum of what was read.
    fn run(&self, disk: &mut Disk) -> Outcome {
        if self.writes {
            for (sector, pattern) in self.batches() {
                disk.write_blocks(sector, &pattern)?;
            }
            disk.flush()?;
        }
        let sum = self.compare(disk)?;
        println!("sectors={} checksum={sum:016x}", self.sectors);
        Ok(())
    }

    /// The pattern in batches, each with its first sector.
    fn batches(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let end = self.first + self.sectors;
        (self.first..end).step_by(BATCH).map(move |sector| {
            let mut bytes = Vec::with_capacity(BATCH * SECTOR_SIZE);
            for sector in sector..(sector + BATCH).min(end) {
                // Every sector has its own numbers, so that one in another's place is told.
                let mut random = Random::new(self.seed.wrapping_add(sector as u64));
                bytes.extend((0..SECTOR_SIZE / 8).flat_map(|_| random.draw().to_le_bytes()));
            }
            (sector, bytes)
        })
    }

    fn compare(&self, disk: &mut Disk) -> Outcome<u64> {
        let mut sum = CHECKSUM_START;
        for (sector, pattern) in self.batches() {
            let mut found = vec![0; pattern.len()];
            disk.read_blocks(sector, &mut found)?;
            let wrong = found.iter().zip(&pattern).position(|(a, b)| a != b);
            if let Some(at) = wrong {
                let (sector, byte) = (sector + at / SECTOR_SIZE, at % SECTOR_SIZE);
                return Err(Failure::new(format!(
                    "sector {sector} differs from its pattern at byte {byte}"
                )));
            }
            sum = checksum(sum, &found);
        }
        Ok(sum)
    }
}

//! A disk: writes that are under way when it comes to rest are on the image once, whoever goes on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::disk::{EngineKind, Image, ImageOptions};
use crate::rate_limit::{Rate, Rates};
use crate::virtio::block::{Block, BlockOptions};

const SECTOR: u64 = 512;
const SECTORS: u64 = 64;
const IN: u32 = 0;
const OUT: u32 = 1;
const WRITE_ZEROES: u32 = 13;
const HEADERS: u64 = DATA + 0x4000;
const STATUSES: u64 = HEADERS + 0x1000;
const EXTENTS: u64 = HEADERS + 0x2000;
/// Requests in flight: each takes three descriptors of a queue's 16.
const IN_FLIGHT: u64 = 5;

/// One that does a thousand requests a second if it is `LIMITED`, so that most are held back for a while.
pub struct Disk<const LIMITED: bool> {
    path: PathBuf,
}

pub fn open(path: &Path, limited: bool, readonly: bool) -> Arc<dyn VirtioDevice> {
    let options = ImageOptions {
        readonly,
        ..Default::default()
    };
    let limit = limited.then_some(Rate {
        per_second: 1000,
        burst: 1,
        ..Default::default()
    });
    let options = (
        options,
        BlockOptions {
            id: "root".into(),
            engine: Some(EngineKind::Uring),
            queues: 2,
            limit: Rates {
                operations: limit,
                ..Default::default()
            },
        },
    );
    // The kernel lets go of an image that a ring had a little after the ring is gone.
    let file = File::open(path).unwrap();
    file.lock().unwrap();
    drop(file);
    Arc::new(Block::new(Image::open(path, options.0).unwrap(), options.1))
}

impl<const LIMITED: bool> Disk<LIMITED> {
    /// Reads or writes sector `n`, or zeroes it, which no engine does at once.
    fn ask(guest: &mut Guest, operation: u32, n: u64) -> u32 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&operation.to_le_bytes());
        header[8..].copy_from_slice(&n.to_le_bytes());
        let (at, data, status) = (HEADERS + 16 * n, DATA + SECTOR * n, STATUSES + n);
        guest.write_bytes(at, &header);
        guest.write_bytes(status, &[0xee]);
        let data = match operation {
            OUT => Buffer::Read(data, SECTOR as u32),
            WRITE_ZEROES => {
                // §5.2.6: the first sector, how many, flags.
                let extent = [n.to_le_bytes(), 1u64.to_le_bytes()].concat();
                guest.write_bytes(EXTENTS + 16 * n, &extent);
                Buffer::Read(EXTENTS + 16 * n, 16)
            }
            _ => Buffer::Write(data, SECTOR as u32),
        };
        guest.ask(0, &[Buffer::Read(at, 16), data, Buffer::Write(status, 1)])
    }

    fn on_disk(&self, n: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        let file = File::open(&self.path).unwrap();
        file.read_exact_at(&mut bytes, SECTOR * n).unwrap();
        bytes
    }
}

impl<const LIMITED: bool> Subject for Disk<LIMITED> {
    type Begun = Vec<u32>;

    fn open(host: &Path) -> (Self, Arc<dyn VirtioDevice>) {
        let path = host.join("disk");
        if !path.exists() {
            fs::write(&path, [0; (SECTORS * SECTOR) as usize]).unwrap();
        }
        let device = open(&path, LIMITED, false);
        (Self { path }, device)
    }

    fn use_it(&mut self, guest: &mut Guest) {
        let last = SECTORS - 1;
        let written = self.on_disk(last)[0].wrapping_add(1);
        guest.write_bytes(DATA + SECTOR * last, &[written; SECTOR as usize]);
        for operation in [OUT, IN] {
            let head = Self::ask(guest, operation, last);
            let len = if operation == IN { SECTOR as u32 + 1 } else { 1 };
            assert_eq!(guest.used(0, 1), [(head, len)]);
            assert_eq!(guest.bytes(STATUSES + last, 1), [0]);
            guest.write_bytes(DATA + SECTOR * last, &[written; SECTOR as usize]);
        }
        assert_eq!(self.on_disk(last), [written; SECTOR as usize]);
    }

    /// Every second sector is zeroed; the others get a number that follows the one that they have.
    fn begin(&mut self, guest: &mut Guest) -> Self::Begun {
        let mut heads = Vec::new();
        for n in 0..IN_FLIGHT {
            let zero = n % 2 == 0;
            let number = if zero {
                let file = File::options().write(true).open(&self.path).unwrap();
                file.write_all_at(&[0xff; SECTOR as usize], SECTOR * n).unwrap();
                0
            } else {
                self.on_disk(n)[0].wrapping_add(1)
            };
            guest.write_bytes(DATA + SECTOR * n, &[number; SECTOR as usize]);
            heads.push(Self::ask(guest, if zero { WRITE_ZEROES } else { OUT }, n));
        }
        // One round: what is not done at once is under way then.
        guest.machine.turns.run_within(0);
        heads
    }

    fn end(&mut self, guest: &mut Guest, mut begun: Self::Begun) {
        let mut used = guest.used(0, begun.len());
        used.sort_unstable();
        begun.sort_unstable();
        assert_eq!(used, begun.iter().map(|head| (*head, 1)).collect::<Vec<_>>());
        assert_eq!(guest.bytes(STATUSES, begun.len()), vec![0; begun.len()]);
        for n in 0..IN_FLIGHT {
            assert_eq!(self.on_disk(n), guest.bytes(DATA + SECTOR * n, SECTOR as usize));
        }
    }
}

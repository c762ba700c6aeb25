//! A disk and its driver, without a guest: requests of every framing, and what a driver must not do.

mod overlay;
mod turns;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::disk::{DiskError, ImageOptions};
use crate::rate_limit::Rate;
use crate::virtio::testing::{Buffer, Recorder, Started, memory};
use crate::virtio::{GuestMemory, Trouble};

const MEMORY: usize = 4 << 20;
/// Where requests are in the guest's memory; queues are below.
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_1000;
const DATA: u64 = 0x20_0000;
const SECTORS: u64 = 2048;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What the status byte is before the device writes it.
const UNWRITTEN: u8 = 0xee;

const ENGINES: [EngineKind; 2] = [EngineKind::Sync, EngineKind::Uring];

/// A disk of 1 MiB whose every sector begins with its number, and its driver.
struct Rig {
    disk: Started,
    memory: GuestMemory,
    path: PathBuf,
    block: Block,
    _directory: TempDir,
}

fn image(directory: &Path) -> PathBuf {
    let path = directory.join("disk.img");
    let mut bytes = vec![0xaa; SECTORS as usize * 512];
    for (number, sector) in (0u64..).zip(bytes.chunks_mut(512)) {
        sector[..8].copy_from_slice(&number.to_le_bytes());
    }
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

fn options(engine: EngineKind) -> BlockOptions {
    BlockOptions {
        id: "the-disk".into(),
        engine: Some(engine),
        queues: 1,
        limit: Rates::default(),
    }
}

impl Rig {
    fn new(engine: EngineKind) -> Self {
        Self::with(options(engine), ImageOptions::default(), features())
    }

    fn with(options: BlockOptions, image_options: ImageOptions, features: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let path = image(directory.as_path());
        let block = Block::new(Image::open(&path, image_options).unwrap(), options);
        let memory = memory(MEMORY);
        Self {
            disk: Started::new(&block, &memory, 0, 64, features),
            memory,
            path,
            block,
            _directory: directory,
        }
    }

    fn recorder(&self) -> &Recorder {
        &self.disk.recorder
    }

    fn header(&self, at: u64, kind: u32, sector: u64) {
        let header = [u64::from(kind), sector];
        self.memory.write_obj(header, GuestAddress(at)).unwrap();
    }

    /// Has the device serve what is available, until it has given something back.
    fn used(&mut self) -> Vec<(u32, u32)> {
        self.disk.ring(0);
        for _ in 0..1000 {
            let used = self.disk.queues[0].take_used();
            if !used.is_empty() {
                return used;
            }
            self.disk.turns.run_within(10);
        }
        Vec::new()
    }

    /// One request of these buffers, with header and status around them; returns status and bytes written.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.header(HEADER, kind, sector);
        self.memory.write_obj(UNWRITTEN, GuestAddress(STATUS)).unwrap();
        let (mut reads, mut writes) = (vec![Buffer::Read(HEADER, 16)], Vec::new());
        for buffer in data {
            match buffer {
                Buffer::Read(..) => reads.push(*buffer),
                Buffer::Write(..) => writes.push(*buffer),
            }
        }
        writes.push(Buffer::Write(STATUS, 1));
        reads.extend(writes);
        let head = self.disk.queues[0].add(&reads);
        let used = self.used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, u32::from(head));
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), used[0].1)
    }

    /// A DISCARD or WRITE_ZEROES of one range.
    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        self.memory
            .write_obj([sectors, flags], GuestAddress(DATA + 8))
            .unwrap();
        self.request(kind, 0, &[Buffer::Read(DATA, 16)]).0
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn on_disk(&self, sector: u64, sectors: usize) -> Vec<u8> {
        let mut bytes = vec![0; sectors * 512];
        let file = File::open(&self.path).unwrap();
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    /// The device has given up, and said so.
    #[track_caller]
    fn expect_needs_reset(&mut self) {
        self.disk.ring(0);
        assert_eq!(self.recorder().faults().len(), 1);
        assert_eq!(self.disk.queues[0].take_used(), []);
    }
}

fn features() -> u64 {
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_BLK_F_FLUSH
}

fn sector(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

#[test]
fn what_is_on_the_disk_is_read() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        assert_eq!(rig.request(IN, 5, &[Buffer::Write(DATA, 1024)]), (OK, 1025));
        assert_eq!(rig.bytes(DATA, 1024), rig.on_disk(5, 2));
        assert_eq!(sector(&rig.bytes(DATA + 512, 8)), 6);
    }
}

#[test]
fn what_is_written_is_on_the_disk() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let data = [7; 1024];
        rig.memory.write_slice(&data, GuestAddress(DATA)).unwrap();
        assert_eq!(rig.request(OUT, 9, &[Buffer::Read(DATA, 1024)]), (OK, 1));
        assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(rig.on_disk(9, 2), data);
        assert_eq!(sector(&rig.on_disk(8, 1)), 8);
        assert_eq!(sector(&rig.on_disk(11, 1)), 11);
    }
}

#[test]
fn a_flush_covers_what_was_done_before_it() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let is_durable = |rig: &Rig| rig.block.image().durability().flush().is_none();
        for kind in [OUT, DISCARD, WRITE_ZEROES] {
            assert!(!is_durable(&rig), "nobody has flushed");
            assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
            assert_eq!(rig.request(IN, 0, &[Buffer::Write(DATA, 512)]), (OK, 513));
            assert!(is_durable(&rig));
            assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
            if kind == OUT {
                assert_eq!(rig.request(OUT, 3, &[Buffer::Read(DATA, 512)]), (OK, 1));
            } else {
                assert_eq!(rig.range(kind, 0, 8, 0), OK);
            }
        }
        assert!(!is_durable(&rig), "nobody has flushed");
    }
}

#[test]
fn a_driver_without_flush_gets_durable_writes() {
    for engine in ENGINES {
        let features = features() & !(1 << VIRTIO_BLK_F_FLUSH);
        let mut rig = Rig::with(options(engine), ImageOptions::default(), features);
        rig.memory.write_slice(&[7; 512], GuestAddress(DATA)).unwrap();
        assert_eq!(rig.request(OUT, 3, &[Buffer::Read(DATA, 512)]), (OK, 1));
        assert_eq!(rig.on_disk(3, 1), [7; 512]);
        assert_eq!(rig.range(WRITE_ZEROES, 3, 1, 0), OK);
        assert_eq!(rig.on_disk(3, 1), [0; 512]);
    }
}

/// §2.7.4.3: bytes count, not buffers. The header in three pieces, data that begins in its last buffer, status in data's.
#[test]
fn the_framing_is_the_drivers_business() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        rig.header(DATA, OUT, 2);
        rig.memory
            .write_slice(&[9; 512], GuestAddress(DATA + 16))
            .unwrap();
        rig.disk.queues[0].add(&[
            Buffer::Read(DATA, 3),
            Buffer::Read(DATA + 3, 10),
            Buffer::Read(DATA + 13, 100),
            Buffer::Read(DATA + 113, 415),
            Buffer::Write(STATUS, 1),
        ]);
        assert_eq!(rig.used(), [(0, 1)]);
        assert_eq!(rig.on_disk(2, 1), [9; 512]);

        rig.header(HEADER, IN, 7);
        rig.disk.queues[0].add(&[
            Buffer::Read(HEADER, 16),
            Buffer::Write(DATA, 1),
            Buffer::Write(DATA + 1, 1023),
            Buffer::Write(DATA + 1024, 513),
        ]);
        assert_eq!(rig.used(), [(5, 1537)]);
        assert_eq!(rig.bytes(DATA, 1536), rig.on_disk(7, 3));
        assert_eq!(rig.bytes(DATA + 1536, 1), [OK]);
    }
}

#[test]
fn the_serial_number_is_told_as_far_as_there_is_room() {
    let mut rig = Rig::new(EngineKind::Sync);
    assert_eq!(rig.request(GET_ID, 0, &[Buffer::Write(DATA, 20)]), (OK, 21));
    assert_eq!(rig.bytes(DATA, 20), b"the-disk\0\0\0\0\0\0\0\0\0\0\0\0");
    rig.memory.write_slice(&[1; 20], GuestAddress(DATA)).unwrap();
    assert_eq!(rig.request(GET_ID, 0, &[Buffer::Write(DATA, 4)]), (OK, 5));
    assert_eq!(rig.bytes(DATA, 5), b"the-\x01");
    assert_eq!(rig.request(GET_ID, 0, &[]), (OK, 1));
}

#[test]
fn ranges_become_zeros_or_holes() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        assert_eq!(rig.range(WRITE_ZEROES, 8, 16, 0), OK);
        assert_eq!(rig.on_disk(8, 16), [0; 16 * 512]);
        assert_eq!(rig.range(WRITE_ZEROES, 100, 1, 1), OK);
        assert_eq!(rig.on_disk(100, 1), [0; 512]);
        assert_eq!(rig.range(DISCARD, 200, 8, 0), OK);
        assert_eq!(rig.range(DISCARD, 200, 0, 0), OK);
        assert_eq!(sector(&rig.on_disk(7, 1)), 7);
        assert_eq!(sector(&rig.on_disk(24, 1)), 24);
        assert_eq!(rig.path.metadata().unwrap().len(), SECTORS * 512);
    }
}

/// The last resort, where a file system can neither zero nor punch: more than what fits in a request's row of buffers.
#[test]
fn zeros_are_written_where_they_cannot_be_allocated() {
    use super::request::{Extent, Status};
    use crate::disk::Operation;
    use slots::{Doing, Slots};

    let mut rig = Rig::new(EngineKind::Sync);
    let mut chain = crate::virtio::Chain::new(4);
    let head = rig.disk.queues[0].add(&[Buffer::Read(HEADER, 16), Buffer::Write(STATUS, 1)]);
    let mut queue = rig.disk.queues[0]
        .device_side(0, rig.disk.recorder.clone(), false)
        .unwrap();
    assert!(queue.pop(&mut chain).unwrap());
    let mut slots = Slots::new(4);
    let extent = Extent {
        offset: 512,
        len: 5 * 4096 + 512,
    };
    let tag = slots.add(&chain, Doing::Zero, extent).unwrap();
    let mut pieces = Vec::new();
    loop {
        let Operation::Write { buffers, offset, .. } = slots.operation(tag, &rig.block.image()) else {
            panic!("zeros are written");
        };
        let len: usize = buffers.iter().map(|buffer| buffer.iov_len).sum();
        pieces.push((offset, len));
        if slots.advance(tag, len) {
            break;
        }
    }
    assert_eq!(pieces, [(512, 4 * 4096), (512 + 4 * 4096, 4096 + 512)]);
    assert_eq!(slots.end(tag, Status::Ok), (head, 1));
}

#[test]
fn what_the_disk_does_not_have_is_an_error() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let one = [Buffer::Write(DATA, 512)];
        assert_eq!(rig.request(IN, SECTORS - 1, &one), (OK, 513));
        for sector in [SECTORS, SECTORS + 1, u64::MAX / 512, u64::MAX - 1, u64::MAX] {
            assert_eq!(rig.request(IN, sector, &one), (IOERR, 1), "{sector}");
            assert_eq!(
                rig.request(OUT, sector, &[Buffer::Read(DATA, 512)]),
                (IOERR, 1),
                "{sector}"
            );
            for kind in [DISCARD, WRITE_ZEROES] {
                assert_eq!(rig.range(kind, sector, 1, 0), IOERR, "{sector}");
            }
        }
        assert_eq!(
            rig.request(IN, SECTORS - 1, &[Buffer::Write(DATA, 1024)]),
            (IOERR, 1)
        );
        assert_eq!(rig.range(DISCARD, 0, u32::MAX, 0), IOERR);
        assert_eq!(rig.path.metadata().unwrap().len(), SECTORS * 512);
        assert!(rig.recorder().faults().is_empty());
    }
}

#[test]
fn half_sectors_are_an_error() {
    let mut rig = Rig::new(EngineKind::Sync);
    for len in [1, 511, 513] {
        assert_eq!(rig.request(IN, 0, &[Buffer::Write(DATA, len)]), (IOERR, 1));
        assert_eq!(rig.request(OUT, 0, &[Buffer::Read(DATA, len)]), (IOERR, 1));
    }
    assert_eq!(rig.request(IN, 0, &[]), (OK, 1));
}

#[test]
fn what_is_unknown_is_unsupported() {
    let mut rig = Rig::new(EngineKind::Sync);
    for kind in [2, 3, 5, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(rig.request(kind, 0, &[]), (UNSUPP, 1), "{kind}");
    }
    assert_eq!(rig.range(DISCARD, 0, 1, 1), UNSUPP);
    assert_eq!(rig.range(WRITE_ZEROES, 0, 1, 2), UNSUPP);
    for len in [1, 15, 17, 32] {
        let (status, _) = rig.request(WRITE_ZEROES, 0, &[Buffer::Read(DATA, len)]);
        assert_eq!(status, IOERR, "a range of {len} bytes");
    }
    assert_eq!(rig.request(DISCARD, 0, &[]), (IOERR, 1));
}

#[test]
fn a_request_without_a_whole_header_cannot_be_answered() {
    let mut rig = Rig::new(EngineKind::Sync);
    rig.disk.queues[0].add(&[Buffer::Read(HEADER, 15), Buffer::Write(STATUS, 1)]);
    rig.expect_needs_reset();
}

#[test]
fn a_request_without_room_for_a_status_cannot_be_answered() {
    let mut rig = Rig::new(EngineKind::Uring);
    rig.disk.queues[0].add(&[Buffer::Read(HEADER, 16), Buffer::Read(DATA, 512)]);
    rig.expect_needs_reset();
}

#[test]
fn a_readonly_disk_takes_no_writes() {
    for engine in ENGINES {
        let readonly = ImageOptions {
            readonly: true,
            ..Default::default()
        };
        let mut rig = Rig::with(options(engine), readonly, features());
        assert_eq!(rig.request(OUT, 0, &[Buffer::Read(DATA, 512)]), (IOERR, 1));
        assert_eq!(rig.range(DISCARD, 0, 1, 0), UNSUPP);
        assert_eq!(rig.range(WRITE_ZEROES, 0, 1, 0), UNSUPP);
        assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1));
        assert_eq!(rig.request(IN, 1, &[Buffer::Write(DATA, 512)]), (OK, 513));
        let features = rig.block.features();
        assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(
            features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES),
            0
        );
    }
}

#[test]
fn a_full_queue_is_served_and_every_chain_given_back_once() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        for n in 0..21u64 {
            let header = HEADER + 16 * n;
            rig.header(header, IN, n);
            rig.disk.queues[0].add(&[
                Buffer::Read(header, 16),
                Buffer::Write(DATA + 512 * n, 512),
                Buffer::Write(STATUS + n, 1),
            ]);
        }
        let mut used = rig.used();
        while used.len() < 21 {
            used.extend(rig.used());
        }
        used.sort();
        let expected: Vec<_> = (0..21).map(|n| (3 * n, 513)).collect();
        assert_eq!(used, expected);
        assert_eq!(rig.bytes(DATA, 21 * 512), rig.on_disk(0, 21));
        assert!(rig.recorder().queue_interrupts() > 0);
    }
}

#[test]
fn what_is_under_way_is_done_when_the_device_stops() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        for n in 0..16u64 {
            rig.header(HEADER + 16 * n, if n % 4 == 3 { FLUSH } else { OUT }, 64 + n);
            let mut buffers = vec![Buffer::Read(HEADER + 16 * n, 16)];
            if n % 4 != 3 {
                buffers.push(Buffer::Read(DATA + 512 * n, 512));
            }
            buffers.push(Buffer::Write(STATUS + n, 1));
            rig.disk.queues[0].add(&buffers);
        }
        rig.disk.ring(0);
        let states = rig.disk.stop();
        assert_eq!(states.len(), 1);
        assert_eq!((states[0].1.next_avail, states[0].1.next_used), (16, 16));
        assert_eq!(rig.disk.queues[0].take_used().len(), 16);
        assert_eq!(rig.bytes(STATUS, 16), [OK; 16]);
    }
}

#[test]
fn another_size_of_the_image_is_seen_by_the_guest() {
    let mut rig = Rig::new(EngineKind::Uring);
    let capacity = |rig: &Rig| {
        let mut bytes = [0; 8];
        rig.block.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(capacity(&rig), SECTORS);
    for (sectors, interrupts) in [(2 * SECTORS, 1), (SECTORS / 2, 2)] {
        let file = File::options().write(true).open(&rig.path).unwrap();
        file.set_len(sectors * 512).unwrap();
        drop(file);
        rig.disk.turns.run();
        assert_eq!(capacity(&rig), sectors);
        assert_eq!(rig.recorder().config_interrupts(), interrupts);
        let last = [Buffer::Write(DATA, 512)];
        assert_eq!(rig.request(IN, sectors - 1, &last), (OK, 513));
        assert_eq!(rig.request(IN, sectors, &last), (IOERR, 1));
    }
    // Somebody had it open for writing and left its size as it was.
    drop(File::options().write(true).open(&rig.path).unwrap());
    rig.disk.turns.run();
    assert_eq!(rig.recorder().config_interrupts(), 2);
}

#[test]
fn an_image_that_shrinks_unseen_is_an_error_of_the_hosts() {
    for engine in ENGINES {
        let mut rig = Rig::new(engine);
        let file = File::options().write(true).open(&rig.path).unwrap();
        file.set_len(512).unwrap();
        assert_eq!(rig.request(IN, 0, &[Buffer::Write(DATA, 1024)]), (IOERR, 1));
        let reports = rig.recorder().reports();
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].0, Trouble::Host);
        assert!(reports[0].1.contains("disk.img"), "{}", reports[0].1);
    }
}

#[test]
fn the_limit_holds_requests_back_and_lets_them_through_later() {
    let limited = BlockOptions {
        limit: Rates {
            operations: Some(Rate {
                per_second: 200,
                burst: 2,
                ..Default::default()
            }),
            ..Default::default()
        },
        ..options(EngineKind::Uring)
    };
    let mut rig = Rig::with(limited, ImageOptions::default(), features());
    for n in 0..6u64 {
        rig.header(HEADER + 16 * n, IN, n);
        rig.disk.queues[0].add(&[
            Buffer::Read(HEADER + 16 * n, 16),
            Buffer::Write(DATA + 512 * n, 512),
            Buffer::Write(STATUS + n, 1),
        ]);
    }
    rig.disk.ring(0);
    let mut used = rig.disk.queues[0].take_used();
    assert!((2..6).contains(&used.len()), "a burst of {}", used.len());
    while used.len() < 6 {
        rig.disk.turns.run_within(1000);
        used.extend(rig.disk.queues[0].take_used());
    }
    assert_eq!(rig.bytes(DATA, 6 * 512), rig.on_disk(0, 6));
}

#[test]
fn queues_are_served_each() {
    let two = BlockOptions {
        queues: 2,
        ..options(EngineKind::Uring)
    };
    let mut rig = Rig::with(two, ImageOptions::default(), features() | 1 << VIRTIO_BLK_F_MQ);
    assert_ne!(rig.block.features() & 1 << VIRTIO_BLK_F_MQ, 0);
    let mut queues = [0; 2];
    rig.block.read_config(34, &mut queues);
    assert_eq!(u16::from_le_bytes(queues), 2);
    rig.header(HEADER, IN, 4);
    rig.disk.queues[1].add(&[
        Buffer::Read(HEADER, 16),
        Buffer::Write(DATA, 512),
        Buffer::Write(STATUS, 1),
    ]);
    rig.disk.ring(1);
    assert_eq!(rig.disk.queues[1].take_used(), [(0, 513)]);
    assert_eq!(sector(&rig.bytes(DATA, 8)), 4);
}

#[test]
fn the_configuration_space_can_be_read_at_any_place_and_width() {
    let rig = Rig::new(EngineKind::Sync);
    let mut all = [0; 60];
    rig.block.read_config(0, &mut all);
    for offset in 0..70 {
        for width in 1..9 {
            let mut bytes = vec![0; width];
            rig.block.read_config(offset, &mut bytes);
            for (n, byte) in bytes.iter().enumerate() {
                let expected = all.get(offset as usize + n).copied().unwrap_or(0);
                assert_eq!(*byte, expected, "{offset} {width}");
            }
        }
    }
    rig.block.read_config(u64::MAX, &mut [0; 8]);
    rig.block.write_config(0, &[1; 8]);
    let field = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
    assert_eq!((field(12), field(20)), (254, 512), "seg_max, blk_size");
}

#[test]
fn an_image_is_one_writers_or_many_readers() {
    let directory = TempDir::new().unwrap();
    let path = image(directory.as_path());
    let open = |readonly| {
        let options = ImageOptions {
            readonly,
            ..Default::default()
        };
        Image::open(&path, options)
    };
    let writer = open(false).unwrap();
    for readonly in [false, true] {
        let error = open(readonly).err().unwrap();
        assert!(matches!(error, DiskError::InUse { .. }), "{error}");
        assert!(
            error.to_string().contains("another disk of this guest"),
            "{error}"
        );
    }
    drop(writer);
    let readers = (open(true).unwrap(), open(true).unwrap());
    assert!(open(false).is_err());
    drop(readers);
    open(false).unwrap();
}

#[test]
fn another_image_is_shown_if_all_but_its_size_is_the_same() {
    let rig = Rig::new(EngineKind::Sync);
    let other = rig.path.with_file_name("other.img");
    File::create(&other).unwrap().set_len(4 << 20).unwrap();
    let readonly = ImageOptions {
        readonly: true,
        ..Default::default()
    };
    let refused = rig.block.show(Image::open(&other, readonly).unwrap());
    assert_eq!(refused, Err(Difference::ReadOnly));
    rig.block
        .show(Image::open(&other, ImageOptions::default()).unwrap())
        .unwrap();
    let mut sectors = [0; 8];
    rig.block.read_config(0, &mut sectors);
    assert_eq!(u64::from_le_bytes(sectors), (4 << 20) / 512);
    let next = Started::new(&rig.block, &rig.memory, 0, 64, features());
    assert_eq!(
        next.recorder.config_interrupts(),
        1,
        "the driver is told of the size"
    );
    let later = Started::new(&rig.block, &rig.memory, 0, 64, features());
    assert_eq!(later.recorder.config_interrupts(), 0, "once");
}

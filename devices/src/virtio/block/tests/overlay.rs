//! A disk over a base: requests that lie in both files, flushes in several steps, and random ones against a plain model.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::disk::OverlayError;

/// A disk over a base, and what it is made of.
struct Layered {
    rig: Rig,
    base: PathBuf,
    overlay: PathBuf,
    directory: TempDir,
    engine: EngineKind,
}

impl Layered {
    fn new(engine: EngineKind) -> Self {
        Self::with(engine, features())
    }

    fn with(engine: EngineKind, features: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let base = image(directory.as_path());
        let overlay = directory.as_path().join("overlay");
        Self {
            rig: rig(&base, &overlay, engine, features),
            base,
            overlay,
            directory,
            engine,
        }
    }

    /// What the guest has not flushed may be lost.
    fn kill(self) -> Self {
        // The lock goes with the disk.
        drop(self.rig);
        Self {
            rig: rig(&self.base, &self.overlay, self.engine, features()),
            ..self
        }
    }

    /// Writes from the guest's memory, in buffers of these lengths.
    fn write(&mut self, sector: u64, bytes: &[u8], cuts: &[usize]) {
        self.rig.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        let data = buffers(bytes.len(), cuts, Buffer::Read);
        assert_eq!(self.rig.request(OUT, sector, &data), (OK, 1));
    }

    fn read(&mut self, sector: u64, sectors: usize, cuts: &[usize]) -> Vec<u8> {
        let len = sectors * 512;
        self.rig
            .memory
            .write_slice(&vec![0xdd; len], GuestAddress(DATA))
            .unwrap();
        let data = buffers(len, cuts, Buffer::Write);
        assert_eq!(self.rig.request(IN, sector, &data), (OK, len as u32 + 1));
        self.rig.bytes(DATA, len)
    }

    fn flush(&mut self) {
        assert_eq!(self.rig.request(FLUSH, 0, &[]), (OK, 1));
    }
}

/// The kernel takes an io_uring apart in the background, and lets go of the overlay then.
fn open(base: &Path, overlay: &Path) -> Image {
    let give_up_at = Instant::now() + Duration::from_secs(30);
    loop {
        match Image::open_over(base, overlay, ImageOptions::default()) {
            Ok(image) => return image,
            Err(DiskError::Overlay(OverlayError::InUse { .. })) if Instant::now() < give_up_at => {
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn rig(base: &Path, overlay: &Path, engine: EngineKind, features: u64) -> Rig {
    let image = open(base, overlay);
    let block = Block::new(image, options(engine));
    let memory = memory(MEMORY);
    Rig {
        disk: Started::new(&block, &memory, 0, 64, features),
        memory,
        path: base.to_owned(),
        block,
        _directory: TempDir::new().unwrap(),
    }
}

/// `len` bytes from DATA on, in buffers of these lengths and one for the rest.
fn buffers(len: usize, cuts: &[usize], kind: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let (mut at, mut buffers) = (0, Vec::new());
    for cut in cuts.iter().copied().chain([len]) {
        let cut = cut.min(len - at);
        if cut > 0 {
            buffers.push(kind(DATA + at as u64, cut as u32));
        }
        at += cut;
    }
    buffers
}

#[test]
fn a_read_comes_from_both_files_into_buffers_of_any_size() {
    for engine in ENGINES {
        let mut disk = Layered::new(engine);
        disk.write(3, &[1; 512], &[]);
        disk.write(5, &[2; 1024], &[100, 700]);
        let mut expected = disk.rig.on_disk(0, 16);
        expected[3 * 512..4 * 512].fill(1);
        expected[5 * 512..7 * 512].fill(2);
        for cuts in [
            &[][..],
            &[512; 15],
            &[1536],
            &[1, 1600, 500, 1500],
            &[1535, 2, 511, 513, 3000],
        ] {
            assert_eq!(disk.read(0, 16, cuts), expected, "{engine:?}, {cuts:?}");
        }
        assert_eq!(sector(&disk.rig.on_disk(3, 1)), 3, "the base stays as it is");
    }
}

#[test]
fn zeros_hide_the_base() {
    for engine in ENGINES {
        let mut disk = Layered::new(engine);
        assert_eq!(disk.rig.range(WRITE_ZEROES, 8, 3, 0), OK);
        assert_eq!(disk.rig.range(WRITE_ZEROES, 12, 1, 1), OK);
        assert_eq!(disk.rig.range(DISCARD, 14, 1, 0), OK);
        disk.flush();
        let mut disk = disk.kill();
        let mut expected = disk.rig.on_disk(0, 20);
        for zero in [8, 9, 10, 12, 14] {
            expected[zero * 512..][..512].fill(0);
        }
        assert_eq!(disk.read(0, 20, &[]), expected);
    }
}

#[test]
fn what_a_driver_without_flush_wrote_is_found_again() {
    for engine in ENGINES {
        let mut disk = Layered::with(engine, features() & !(1 << VIRTIO_BLK_F_FLUSH));
        disk.write(3, &[7; 512], &[]);
        assert_eq!(disk.rig.range(WRITE_ZEROES, 5, 1, 0), OK);
        let mut disk = disk.kill();
        assert_eq!(disk.read(3, 1, &[]), [7; 512]);
        assert_eq!(disk.read(5, 1, &[]), [0; 512]);
    }
}

#[test]
fn flushes_that_come_together_are_all_answered() {
    const COUNT: u64 = 12;
    for engine in ENGINES {
        let mut disk = Layered::new(engine);
        let rig = &mut disk.rig;
        for n in 0..COUNT {
            let kind = if n % 2 == 0 { OUT } else { FLUSH };
            rig.header(HEADER + 16 * n, kind, 4 * n);
            let mut request = vec![Buffer::Read(HEADER + 16 * n, 16)];
            if kind == OUT {
                request.push(Buffer::Read(DATA, 512));
            }
            request.push(Buffer::Write(STATUS + n, 1));
            rig.memory.write_obj(UNWRITTEN, GuestAddress(STATUS + n)).unwrap();
            rig.disk.queues[0].add(&request);
        }
        let mut answered = 0;
        while answered < COUNT as usize {
            let used = rig.used().len();
            assert!(used > 0, "{engine:?}: {answered} of {COUNT}");
            answered += used;
        }
        assert_eq!(rig.bytes(STATUS, COUNT as usize), [OK; COUNT as usize]);
    }
}

#[test]
fn what_a_guest_did_not_flush_is_found_again_if_it_is_settled() {
    for engine in ENGINES {
        let mut disk = Layered::new(engine);
        disk.write(3, &[7; 512], &[]);
        disk.rig.block.image().settle().unwrap();
        let mut disk = disk.kill();
        assert_eq!(disk.read(3, 1, &[]), [7; 512]);
        assert!(disk.directory.as_path().exists());
    }
}

/// Sectors that the random requests are about.
const AREA: usize = 96;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, Vec<usize>),
    Read(usize, usize, Vec<usize>),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Flush,
    Kill,
}

fn range() -> impl Strategy<Value = (usize, usize)> {
    (0..AREA).prop_flat_map(|first| (Just(first), 1..=(AREA - first).min(24)))
}

fn step() -> impl Strategy<Value = Step> {
    let cuts = || prop::collection::vec(1..3000usize, 0..4);
    prop_oneof![
        6 => (range(), cuts()).prop_map(|((first, count), cuts)| Step::Write(first, count, cuts)),
        6 => (range(), cuts()).prop_map(|((first, count), cuts)| Step::Read(first, count, cuts)),
        1 => (range(), any::<bool>()).prop_map(|((first, count), unmap)| Step::Zero(first, count, unmap)),
        1 => range().prop_map(|(first, count)| Step::Discard(first, count)),
        2 => Just(Step::Flush),
        1 => Just(Step::Kill),
    ]
}

/// What is on the disk, and of each sector what may be there after a sudden death: what was flushed, or came later.
struct Model {
    now: Vec<u8>,
    possible: Vec<BTreeSet<Vec<u8>>>,
}

impl Model {
    fn new(now: Vec<u8>) -> Self {
        let mut model = Self {
            now,
            possible: Vec::new(),
        };
        model.flush();
        model
    }

    fn flush(&mut self) {
        let sectors = self.now.chunks(512);
        self.possible = sectors.map(|sector| BTreeSet::from([sector.to_vec()])).collect();
    }

    fn write(&mut self, first: usize, bytes: &[u8]) {
        self.now[first * 512..][..bytes.len()].copy_from_slice(bytes);
        for (sector, possible) in bytes.chunks(512).zip(&mut self.possible[first..]) {
            possible.insert(sector.to_vec());
        }
    }

    fn found(&mut self, bytes: Vec<u8>) {
        for (n, (sector, possible)) in bytes.chunks(512).zip(&self.possible).enumerate() {
            assert!(possible.contains(sector), "sector {n} is neither old nor new");
        }
        self.now = bytes;
    }
}

fn follow(engine: EngineKind, steps: &[Step]) {
    let mut disk = Layered::new(engine);
    let base = disk.rig.on_disk(0, SECTORS as usize);
    let mut model = Model::new(base[..AREA * 512].to_vec());
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Write(first, count, cuts) => {
                let sectors = (*first..first + count).flat_map(|n| [number as u8 + 1, n as u8].repeat(256));
                let bytes: Vec<u8> = sectors.collect();
                disk.write(*first as u64, &bytes, cuts);
                model.write(*first, &bytes);
            }
            Step::Read(first, count, cuts) => {
                let found = disk.read(*first as u64, *count, cuts);
                assert_eq!(found, model.now[first * 512..][..count * 512]);
            }
            Step::Zero(first, count, unmap) => {
                let flags = u32::from(*unmap);
                assert_eq!(
                    disk.rig.range(WRITE_ZEROES, *first as u64, *count as u32, flags),
                    OK
                );
                model.write(*first, &vec![0; count * 512]);
            }
            Step::Discard(first, count) => {
                assert_eq!(disk.rig.range(DISCARD, *first as u64, *count as u32, 0), OK);
                let found = disk.read(*first as u64, *count, &[]);
                model.write(*first, &found);
            }
            Step::Flush => {
                disk.flush();
                model.flush();
            }
            Step::Kill => {
                disk = disk.kill();
                model.found(disk.read(0, AREA, &[]));
            }
        }
    }
    assert_eq!(disk.read(0, AREA, &[]), model.now);
    assert_eq!(
        disk.rig.on_disk(0, SECTORS as usize),
        base,
        "the base stays as it is"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_disk_over_a_base_is_a_disk(steps in prop::collection::vec(step(), 1..40)) {
        for engine in ENGINES {
            follow(engine, &steps);
        }
    }
}

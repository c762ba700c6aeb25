//! The way from a queue to a file or a tap takes no memory from the heap: a request or frame costs the same, however long the guest
//! runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use devices::disk::{EngineKind, Image, ImageOptions};
use devices::rate_limit::Rates;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::net::{FrameSocket, Net, NetOptions, Tap};
use devices::virtio::testing::{Buffer, Started, memory};
use posada_tests::network::{self, Wire};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

thread_local! {
    /// How often this thread has asked for memory. The device under test runs on the test's own thread.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
}

// SAFETY: all of it is the system's allocator; counting touches a plain number of the thread's own, without allocating.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How often `work` asks for memory.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn what_allocates_is_counted() {
    assert_eq!(allocations(|| ()), 0);
    assert_eq!(allocations(|| drop(Box::new(5))), 1);
}

/// Request types and feature bits of virtio 1.3 §5.2.3, §5.2.6 and §6.
const READ: u64 = 0;
const WRITE: u64 = 1;
const FLUSH: u64 = 4;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_VERSION_1: u64 = 1 << 32;

const HEADERS: u64 = 0x10_0000;
const STATUS: u64 = 0x10_8000;
const DATA: u64 = 0x20_0000;
const UNWRITTEN: u8 = 0xee;

/// How a disk is opened whose image is at the first path; there is nothing at the second one.
type Open = fn(&Path, &Path) -> Image;

fn plain(path: &Path, _overlay: &Path) -> Image {
    Image::open(path, ImageOptions::default()).unwrap()
}

fn over_a_base(path: &Path, overlay: &Path) -> Image {
    Image::open_over(path, overlay, ImageOptions::default()).unwrap()
}

/// Reads, writes and flushes in turn, a few at once; returns how often that asked for memory.
fn block_requests(open: Open, engine: EngineKind, features: u64) -> usize {
    const ROUNDS: usize = 200;
    const AT_ONCE: u64 = 15;
    let directory = TempDir::new().unwrap();
    let [path, overlay] = ["disk.img", "overlay"].map(|name| directory.as_path().join(name));
    File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let options = BlockOptions {
        id: String::new(),
        engine: Some(engine),
        queues: 1,
        limit: Rates::default(),
    };
    let block = Block::new(open(&path, &overlay), options);
    let memory = memory(4 << 20);
    let mut disk = Started::new(&block, &memory, 0, 64, features);
    let mut counted = 0;
    for round in 0..ROUNDS as u64 {
        for n in 0..AT_ONCE {
            let (header, data) = (HEADERS + 16 * n, DATA + 4096 * n);
            let kind = [READ, WRITE, FLUSH][n as usize % 3];
            memory
                .write_obj([kind, 8 * (AT_ONCE * round + n)], GuestAddress(header))
                .unwrap();
            memory.write_obj(UNWRITTEN, GuestAddress(STATUS + n)).unwrap();
            let (header, status) = (Buffer::Read(header, 16), Buffer::Write(STATUS + n, 1));
            let pieces = [(data, 1024), (data + 1024, 3072)];
            let data = match kind {
                READ => pieces.map(|(at, len)| Buffer::Write(at, len)).to_vec(),
                WRITE => pieces.map(|(at, len)| Buffer::Read(at, len)).to_vec(),
                _ => Vec::new(),
            };
            disk.queues[0].add(&[&[header], &data[..], &[status]].concat());
        }
        counted += allocations(|| disk.ring(0));
        let mut used = disk.queues[0].take_used();
        while used.len() < AT_ONCE as usize {
            counted += allocations(|| disk.turns.run_within(1000));
            used.extend(disk.queues[0].take_used());
        }
        let mut statuses = [UNWRITTEN; AT_ONCE as usize];
        memory.read_slice(&mut statuses, GuestAddress(STATUS)).unwrap();
        assert_eq!(statuses, [0; AT_ONCE as usize]);
    }
    counted
}

#[test]
fn a_disks_requests_allocate_nothing_by_either_engine() {
    for open in [plain, over_a_base] {
        for engine in [EngineKind::Sync, EngineKind::Uring] {
            let counted = block_requests(open, engine, FEATURE_VERSION_1 | FEATURE_FLUSH);
            assert_eq!(counted, 0, "{engine:?}");
        }
    }
}

/// Without FLUSH each write is durable when it is done, which io_uring always does behind the scenes.
#[test]
fn nor_do_requests_that_are_under_way_while_others_are_begun() {
    for open in [plain, over_a_base] {
        assert_eq!(block_requests(open, EngineKind::Uring, FEATURE_VERSION_1), 0);
    }
}

const RX: usize = 0;
const TX: usize = 1;
const FEATURE_MERGEABLE: u64 = 1 << 15;
/// Bytes of a header of virtio-net.
const NET_HEADER: u32 = 12;

/// Sends a frame of `len` bytes and receives one of several buffers again and again; `host` takes the one and gives the
/// other, and says how many buffers that one takes. Returns how often that asked for memory.
fn frames(net: &Net, len: u32, mut host: impl FnMut() -> usize) -> usize {
    const ROUNDS: usize = 200;
    const BUFFERS: u64 = 8;
    let memory = memory(4 << 20);
    let mut card = Started::new(net, &memory, 0, 64, FEATURE_VERSION_1 | FEATURE_MERGEABLE);
    // Addressed to everybody, with the protocol of experiments.
    let addresses = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    let frame = GuestAddress(DATA + u64::from(NET_HEADER));
    memory.write_slice(&addresses, frame).unwrap();
    let (mut counted, mut posted) = (0, 0);
    for round in 0..=ROUNDS {
        while posted < BUFFERS {
            card.queues[RX].add(&[Buffer::Write(HEADERS + 4096 * posted, 512)]);
            posted += 1;
        }
        card.queues[TX].add(&[Buffer::Read(DATA, NET_HEADER + len)]);
        let sending = allocations(|| card.ring(TX));
        assert_eq!(card.queues[TX].take_used().len(), 1);
        let expected = host();
        let receiving = allocations(|| card.turns.run());
        assert_eq!(card.queues[RX].take_used().len(), expected);
        posted -= expected as u64;
        // In the first round the event loop makes room to remember what it waits for.
        if round > 0 {
            counted += sending + receiving;
        }
    }
    assert_eq!(card.recorder.reports(), []);
    counted
}

fn net_options() -> NetOptions {
    NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        rx_limit: Rates::default(),
        tx_limit: Rates::default(),
    }
}

#[test]
fn a_user_networks_frames_allocate_nothing() {
    const LEN: u32 = 1300;
    let (mut passt, socket) = UnixStream::pair().unwrap();
    let net = Net::on_stream(
        "a network".into(),
        net_options(),
        FrameSocket::new(socket).unwrap(),
    );
    let counted = frames(&net, LEN, || {
        let mut frame = [0; 4 + LEN as usize];
        passt.read_exact(&mut frame).unwrap();
        passt.write_all(&frame).unwrap();
        3
    });
    assert_eq!(counted, 0);
}

#[test]
fn as_root_a_taps_frames_allocate_nothing() {
    network::isolate();
    let tap = Tap::open("t0", 1, None).unwrap();
    let wire = Wire::on("t0");
    let net = Net::on_tap("a network".into(), net_options(), tap);
    let counted = frames(&net, 1300, || {
        let frame = wire.receive();
        wire.send(&frame);
        3
    });
    assert_eq!(counted, 0);
}

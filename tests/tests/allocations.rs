//! The way from a queue to a file takes no memory from the heap: a request costs the same, however long the guest runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;

use devices::disk::{EngineKind, Image, ImageOptions};
use devices::rate_limit::RateLimit;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::testing::{Buffer, Started, memory};
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

/// Reads, writes and flushes in turn, a few at once; returns how often that asked for memory.
fn block_requests(engine: EngineKind, features: u64) -> usize {
    const ROUNDS: usize = 200;
    const AT_ONCE: u64 = 15;
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let options = BlockOptions {
        id: String::new(),
        engine: Some(engine),
        queues: 1,
        limit: RateLimit::new(None, None),
    };
    let block = Block::new(Image::open(&path, ImageOptions::default()).unwrap(), options);
    let memory = memory(4 << 20);
    let mut disk = Started::new(&block, &memory, 0, 64, features);
    let mut counted = 0;
    for _ in 0..ROUNDS {
        for n in 0..AT_ONCE {
            let (header, data) = (HEADERS + 16 * n, DATA + 4096 * n);
            let kind = [READ, WRITE, FLUSH][n as usize % 3];
            memory.write_obj([kind, 8 * n], GuestAddress(header)).unwrap();
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
    for engine in [EngineKind::Sync, EngineKind::Uring] {
        assert_eq!(
            block_requests(engine, FEATURE_VERSION_1 | FEATURE_FLUSH),
            0,
            "{engine:?}"
        );
    }
}

/// Without FLUSH each write is durable when it is done, which io_uring always does behind the scenes.
#[test]
fn nor_do_requests_that_are_under_way_while_others_are_begun() {
    assert_eq!(block_requests(EngineKind::Uring, FEATURE_VERSION_1), 0);
}

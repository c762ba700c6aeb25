//! A guest whose memory is a private mapping of a snapshot's file.

use vm_memory::mmap::{MmapRegionBuilder, NewBitmap as _};
use vm_memory::{FileOffset, GuestRegionMmap};
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::virtio::DirtyMap;

const LEN: u64 = 0x80_0000;
/// What is given back at least to be replaced ([`release`]).
const PIECE: u64 = 64 << 10;
/// What the snapshot has at the beginning of each page, and what the guest has written there since.
const OLD: u64 = 0x1111;
const NEW: u64 = 0x2222;

fn restored() -> GuestMemory {
    let file = TempFile::new().unwrap().into_file();
    let mapped = |flags| {
        let bitmap = DirtyMap::with_len(LEN as usize);
        let region = MmapRegionBuilder::new_with_bitmap(LEN as usize, bitmap)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
            .build()
            .unwrap();
        region.bitmap().set_backed();
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        GuestMemory::from_regions(vec![region]).unwrap()
    };
    file.set_len(LEN).unwrap();
    fill(&mapped(libc::MAP_SHARED), OLD);
    let memory = mapped(libc::MAP_PRIVATE);
    fill(&memory, NEW);
    memory
}

fn fill(memory: &GuestMemory, value: u64) {
    pages(0, LEN).for_each(|page| memory.write_obj(value, GuestAddress(page)).unwrap());
}

/// The runs of pages that begin with the same value, from `start` on up to `end`: where each begins, and the value.
fn runs(memory: &GuestMemory, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages(start, end) {
        let value = memory.read_obj(GuestAddress(page)).unwrap();
        if runs.last().is_none_or(|(_, last)| *last != value) {
            runs.push((page, value));
        }
    }
    runs
}

#[test]
fn whole_pieces_are_zeros_and_the_rest_is_the_snapshots() {
    let memory = restored();
    let (start, end) = (FREE + PAGE, FREE + 3 * PIECE + PAGE);
    release::release_pages(&memory, start, end).unwrap();
    let expected = [
        (FREE, NEW),
        (start, OLD),
        (FREE + PIECE, 0),
        (FREE + 3 * PIECE, OLD),
        (end, NEW),
    ];
    assert_eq!(runs(&memory, FREE, end + PIECE), expected);
    fill(&memory, NEW);
    assert_eq!(runs(&memory, 0, LEN), [(0, NEW)], "and all can be used again");
}

#[test]
fn less_than_a_piece_is_the_snapshots() {
    let memory = restored();
    let (start, end) = (FREE + PAGE, FREE + 2 * PIECE - PAGE);
    release::release_pages(&memory, start, end).unwrap();
    assert_eq!(
        runs(&memory, FREE, FREE + 2 * PIECE),
        [(FREE, NEW), (start, OLD), (end, NEW)]
    );
}

#[test]
fn what_is_reported_free_is_replaced_too_and_both_count_as_written() {
    let memory = restored();
    let device = Balloon::new(EVERYTHING);
    let mut started = Started::new(&device, &memory, QUEUES, QUEUE_SIZE, device.features());
    let region = memory.iter().next().unwrap().get_mmap();
    let map = region.bitmap();
    map.record(true);
    started.queues[REPORTING].add(&[Buffer::Write(FREE, PIECE as u32)]);
    started.ring(REPORTING);
    assert_eq!(started.queues[REPORTING].take_used().len(), 1);
    release::release_pages(&memory, LEN - PIECE, LEN).unwrap();
    assert_eq!(
        runs(&memory, FREE - PAGE, LEN),
        [
            (FREE - PAGE, NEW),
            (FREE, 0),
            (FREE + PIECE, NEW),
            (LEN - PIECE, 0)
        ]
    );
    let written = map.take();
    let word = |page: u64| written[(page / PAGE / 64) as usize];
    assert_eq!((word(FREE), word(LEN - 1)), (0xffff, 0xffff << 48));
}

//! Memory that is mapped from files, written, and put back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::snapshot::frozen::Frozen;
use crate::snapshot::memory_file::{Checksums, create, write};
use crate::snapshot::testing::{Directory, all, contents, fill};

const PAGES: u64 = 1500;

fn guest() -> GuestMemory {
    memory::map(crate::config::ByteSize(PAGES * PAGE_SIZE)).unwrap()
}

fn save(memory: &GuestMemory, pages: &PageRanges, path: &Path) -> (MemoryFile, Checksums) {
    let sums = write(memory, pages, &create(path, total(memory)).unwrap()).unwrap();
    (MemoryFile::open(path, total(memory)).unwrap(), sums)
}

/// A snapshot of a guest that wrote some pages, and what was in its memory.
fn snapshot(directory: &Directory) -> (MemoryImage, Vec<u8>) {
    let memory = guest();
    (0..PAGES).step_by(7).for_each(|page| fill(&memory, page, 3));
    let (file, _) = save(&memory, &all(&memory), &directory.file("memory"));
    (MemoryImage::new(file, Vec::new()).unwrap(), contents(&memory))
}

#[test]
fn two_guests_of_one_image_have_memory_of_their_own() {
    let directory = Directory::in_memory("image-two");
    let (image, before) = snapshot(&directory);
    let (first, second) = (image.map().unwrap(), image.map().unwrap());
    assert!(contents(&first) == before);
    fill(&first, 9, 1);
    assert!(contents(&first) != before);
    assert!(contents(&second) == before);
    assert!(contents(&image.map().unwrap()) == before);
}

#[test]
fn only_written_pages_are_private() {
    let directory = Directory::in_memory("image-private");
    let (image, _) = snapshot(&directory);
    let memory = image.map().unwrap();
    assert!(pages::present(&memory).unwrap().is_empty());
    contents(&memory);
    assert_eq!(pages::present(&memory).unwrap(), all(&memory));
    assert!(pages::private(&memory).unwrap().is_empty());
    [0, 8, 9, PAGES - 1]
        .iter()
        .for_each(|&page| fill(&memory, page, 1));
    let expected = vec![(0, 1), (8, 2), (PAGES - 1, 1)];
    assert_eq!(Vec::from(pages::private(&memory).unwrap()), expected);
}

#[test]
fn a_guest_goes_back_to_the_image_that_it_runs_on() {
    let directory = Directory::in_memory("image-rewind");
    let (image, before) = snapshot(&directory);
    let memory = image.map().unwrap();
    for round in 0..3 {
        (round..PAGES).step_by(5).for_each(|page| fill(&memory, page, 77));
        image.rewind(&memory, Some(&image)).unwrap();
        assert!(pages::private(&memory).unwrap().is_empty());
        assert!(contents(&memory) == before);
    }
}

#[test]
fn a_guest_goes_back_to_an_image_that_it_was_not_mapped_from() {
    let directory = Directory::in_memory("image-rewind-other");
    let (image, before) = snapshot(&directory);
    let memory = guest();
    (0..PAGES).step_by(5).for_each(|page| fill(&memory, page, 77));
    image.rewind(&memory, None).unwrap();
    assert!(contents(&memory) == before);
    assert!(memory.iter().all(|region| region.get_mmap().bitmap().is_backed()));
    fill(&memory, 2, 5);
    // The same file, opened once more.
    let again = MemoryFile::open(&directory.file("memory"), image.bytes()).unwrap();
    let again = MemoryImage::new(again, Vec::new()).unwrap();
    again.rewind(&memory, Some(&image)).unwrap();
    assert!(contents(&memory) == before);
}

/// Has three pages from the seventh on given back to the host, as a balloon does.
fn give_back(memory: &GuestMemory) {
    let region = memory.iter().next().unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let hole = region.as_ptr().wrapping_add(7 * PAGE_SIZE as usize);
    // SAFETY: the pages are the region's.
    let mapped = unsafe {
        libc::mmap(
            hole.cast(),
            3 * PAGE_SIZE as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_eq!(mapped, hole.cast());
}

#[test]
fn a_snapshot_of_a_mapped_guest_has_everything_and_leaves_holes_unread() {
    let directory = Directory::in_memory("image-holes");
    let (full, _) = snapshot(&directory);
    let guest = full.map().unwrap();
    fill(&guest, 20, 9);
    let changed = PageRanges::try_from(vec![(20, 1), (600, 300)]).unwrap();
    let (diff, _) = save(&guest, &changed, &directory.file("diff"));
    let open = || MemoryFile::open(&directory.file("memory"), full.bytes()).unwrap();
    let image = MemoryImage::new(open(), vec![(diff, changed)]).unwrap();
    let memory = image.map().unwrap();
    // Over a hole, over data, and over the file's last page.
    [5, 14, PAGES - 1]
        .iter()
        .for_each(|&page| fill(&memory, page, 44));
    give_back(&memory);

    // A page that is read is one that the file has from then on, on this file system.
    let pages = |name: &str| fs::metadata(directory.file(name)).unwrap().blocks();
    let before = ["memory", "diff"].map(pages);
    let file = create(&directory.file("next"), total(&memory)).unwrap();
    let frozen = Frozen::begin(&memory, &all(&memory), &image.holes(), &file).unwrap();
    let sums = frozen.wait().unwrap();
    assert_eq!(["memory", "diff"].map(pages), before);
    MemoryFile::open(&directory.file("next"), total(&memory))
        .unwrap()
        .verify(&all(&memory), &sums)
        .unwrap();
    let written = fs::read(directory.file("next")).unwrap();
    assert!(written == contents(&memory));
}

#[test]
fn what_a_guest_gave_back_to_the_host_comes_back() {
    let directory = Directory::in_memory("image-given-back");
    let (image, before) = snapshot(&directory);
    let memory = image.map().unwrap();
    give_back(&memory);
    assert!(contents(&memory) != before);
    assert_eq!(Vec::from(pages::anonymous_pages(&memory).unwrap()), [(7, 3)]);
    image.rewind(&memory, Some(&image)).unwrap();
    assert!(contents(&memory) == before);
    assert!(pages::anonymous_pages(&memory).unwrap().is_empty());
}

#[test]
fn prefaulted_pages_are_there() {
    let directory = Directory::in_memory("image-prefault");
    let (image, _) = snapshot(&directory);
    let memory = image.map().unwrap();
    let wanted = PageRanges::try_from(vec![(3, 5), (700, 64)]).unwrap();
    prefault(&memory, &wanted).unwrap();
    let present = pages::present(&memory).unwrap();
    assert_eq!(present.union(&wanted), present);
    assert!(pages::private(&memory).unwrap().is_empty());
}

#[test]
fn an_image_of_another_size_or_a_chain_too_long_is_refused() {
    let directory = Directory::in_memory("image-refused");
    let (image, before) = snapshot(&directory);
    let open = || MemoryFile::open(&directory.file("memory"), image.bytes()).unwrap();
    let other = memory::map(crate::config::ByteSize(64 * PAGE_SIZE)).unwrap();
    assert!(image.rewind(&other, None).is_err());
    let diffs = (0..=MAX_DIFFS).map(|_| (open(), PageRanges::default())).collect();
    assert!(matches!(
        MemoryImage::new(open(), diffs),
        Err(MemoryFileError::ChainTooLong { .. })
    ));
    let mut scattered = PageRanges::default();
    scattered.add_bitmap(0, [0x5555_5555_5555_5555; MAX_RUNS / 32 + 1]);
    let diffs = vec![(open(), scattered)];
    assert!(matches!(
        MemoryImage::new(open(), diffs),
        Err(MemoryFileError::ChainTooLong { .. })
    ));
    let beyond = PageRanges::try_from(vec![(PAGES, 1)]).unwrap();
    let diffs = vec![(open(), beyond)];
    assert!(matches!(
        MemoryImage::new(open(), diffs),
        Err(MemoryFileError::WrongList { .. })
    ));
    let (short, _) = save(&other, &all(&other), &directory.file("short"));
    let diffs = vec![(short, PageRanges::default())];
    assert!(matches!(
        MemoryImage::new(open(), diffs),
        Err(MemoryFileError::WrongLength { .. })
    ));
    assert!(contents(&image.map().unwrap()) == before);
}

#[test]
fn the_longest_chain_of_the_most_scattered_diffs_can_be_mapped() {
    let directory = Directory::in_memory("image-longest");
    let memory = memory::map(crate::config::ByteSize(4 * MAX_RUNS as u64 * PAGE_SIZE)).unwrap();
    let (full, _) = save(&memory, &all(&memory), &directory.file("memory"));
    let diffs = (0..MAX_DIFFS as u64).map(|diff| {
        let mut changed = PageRanges::default();
        changed.add_bitmap(diff % 4, vec![0x1111_1111_1111_1111; MAX_RUNS / 16]);
        changed
            .iter()
            .flatten()
            .for_each(|page| fill(&memory, page, diff as u8));
        let (file, _) = save(&memory, &changed, &directory.file(&diff.to_string()));
        (file, changed)
    });
    let image = MemoryImage::new(full, diffs.collect()).unwrap();
    let restored = image.map().unwrap();
    assert!(contents(&restored) == contents(&memory));
    fill(&restored, 17, 1);
    image.rewind(&restored, Some(&image)).unwrap();
    assert!(contents(&restored) == contents(&memory));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_chain_of_diffs_is_exactly_the_memory_that_was(
        rounds in prop::collection::vec(prop::collection::vec((0..PAGES, 1..60u64), 0..12), 1..5),
        most in 1..20usize,
    ) {
        let directory = Directory::in_memory("image-chain");
        let memory = guest();
        (0..PAGES).step_by(11).for_each(|page| fill(&memory, page, 200));
        let (full, _) = save(&memory, &all(&memory), &directory.file("memory"));
        let mut diffs = Vec::new();
        for (round, writes) in rounds.iter().enumerate() {
            let pages: BTreeSet<u64> = writes.iter().flat_map(|&(first, count)| first..(first + count).min(PAGES)).collect();
            let mut changed = PageRanges::default();
            pages.iter().for_each(|&page| {
                fill(&memory, page, round as u8);
                changed.push(page..page + 1);
            });
            let changed = changed.in_at_most(most);
            let (file, sums) = save(&memory, &changed, &directory.file(&round.to_string()));
            file.verify(&changed, &sums).unwrap();
            diffs.push((file, changed));
        }
        let image = MemoryImage::new(full, diffs).unwrap();
        let restored = image.map().unwrap();
        prop_assert!(contents(&restored) == contents(&memory));
        (0..PAGES).step_by(13).for_each(|page| fill(&restored, page, 99));
        image.rewind(&restored, Some(&image)).unwrap();
        prop_assert!(contents(&restored) == contents(&memory));
        // A guest that runs on the first of the chain goes to its end.
        let first = MemoryFile::open(&directory.file("memory"), image.bytes()).unwrap();
        let first = MemoryImage::new(first, Vec::new()).unwrap();
        let other = first.map().unwrap();
        image.rewind(&other, Some(&first)).unwrap();
        prop_assert!(contents(&other) == contents(&memory));
    }
}

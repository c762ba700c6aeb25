//! Memory files on the file system of the tests, whole, partial and damaged.

use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::snapshot::testing::{Directory, all, contents, fill, memory};

/// Memory with pages here and there, and its file.
fn written(directory: &Directory) -> (GuestMemory, Checksums, u64) {
    let memory = memory();
    for page in [0, 1, 511, 512, 767, 768, 1500] {
        fill(&memory, page, 17);
    }
    let len = total(&memory);
    let file = create(&directory.file("memory"), len).unwrap();
    let sums = write(&memory, &all(&memory), &file).unwrap();
    seal(&file).unwrap();
    (memory, sums, len)
}

#[test]
fn a_file_has_the_memory_and_holes_where_it_is_zero() {
    let directory = Directory::new("memory-file-whole");
    let (memory, sums, len) = written(&directory);
    let path = directory.file("memory");
    assert!(fs::read(&path).unwrap() == contents(&memory));
    let metadata = fs::metadata(&path).unwrap();
    assert!(
        metadata.blocks() * 512 < len / 4,
        "{} blocks of 512 bytes",
        metadata.blocks()
    );
    assert_eq!(metadata.mode() & 0o777, 0o400);
    MemoryFile::open(&path, len)
        .unwrap()
        .verify(&all(&memory), &sums)
        .unwrap();
}

#[test]
fn checksums_are_the_crc_of_each_chunk() {
    let directory = Directory::new("memory-file-sums");
    let (memory, sums, _) = written(&directory);
    let expected = contents(&memory)
        .chunks(CHUNK as usize)
        .map(crc32fast::hash)
        .collect();
    assert_eq!(sums, Checksums(expected));
}

#[test]
fn a_diff_has_the_changed_pages_only() {
    let directory = Directory::new("memory-file-diff");
    let (memory, _, len) = written(&directory);
    let changed = PageRanges::try_from(vec![(1, 2), (511, 2), (767, 2)]).unwrap();
    let path = directory.file("diff");
    let sums = write(&memory, &changed, &create(&path, len).unwrap()).unwrap();
    let (found, whole) = (fs::read(&path).unwrap(), contents(&memory));
    for page in 0..len / PAGE_SIZE {
        let bytes = (page * PAGE_SIZE) as usize..((page + 1) * PAGE_SIZE) as usize;
        if changed.iter().any(|run| run.contains(&page)) {
            assert!(found[bytes.clone()] == whole[bytes], "page {page}");
        } else {
            assert!(found[bytes].iter().all(|&byte| byte == 0), "page {page}");
        }
    }
    let file = MemoryFile::open(&path, len).unwrap();
    file.verify(&changed, &sums).unwrap();
    assert!(matches!(
        file.verify(&all(&memory), &sums),
        Err(MemoryFileError::Damaged { .. })
    ));
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let directory = Directory::new("memory-file-flip");
    let (memory, sums, len) = written(&directory);
    let path = directory.file("memory");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let file = MemoryFile::open(&path, len).unwrap();
    // In data, in a hole, and in the last byte.
    for offset in [5, 600 * PAGE_SIZE, len - 1] {
        let mut byte = [0];
        writer.read_exact_at(&mut byte, offset).unwrap();
        writer.write_all_at(&[byte[0] ^ 4], offset).unwrap();
        let error = file.verify(&all(&memory), &sums).unwrap_err();
        let MemoryFileError::Damaged { offset: chunk, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(chunk, offset / CHUNK * CHUNK);
        writer.write_all_at(&byte, offset).unwrap();
        file.verify(&all(&memory), &sums).unwrap();
    }
}

#[test]
fn files_that_are_not_the_snapshots_are_refused_when_opened() {
    let directory = Directory::new("memory-file-foreign");
    let (_, _, len) = written(&directory);
    let path = directory.file("memory");
    for expected in [len - PAGE_SIZE, len + 1, 0] {
        let error = MemoryFile::open(&path, expected).unwrap_err();
        assert!(
            matches!(error, MemoryFileError::WrongLength { found, .. } if found == len),
            "{error}"
        );
    }
    assert!(matches!(
        MemoryFile::open(&directory.file("none"), len),
        Err(MemoryFileError::Io { .. })
    ));
    let fifo = directory.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(matches!(
        MemoryFile::open(&fifo, len),
        Err(MemoryFileError::NotAFile(_))
    ));
}

#[test]
fn two_may_read_a_file_that_nobody_replaces() {
    let directory = Directory::new("memory-file-lock");
    let (_, _, len) = written(&directory);
    let path = directory.file("memory");
    let first = MemoryFile::open(&path, len).unwrap();
    let second = MemoryFile::open(&path, len).unwrap();
    let replacer = File::open(&path).unwrap();
    assert!(matches!(replacer.try_lock(), Err(TryLockError::WouldBlock)));
    drop((first, second));
    replacer.try_lock().unwrap();
    assert!(matches!(
        MemoryFile::open(&path, len),
        Err(MemoryFileError::Locked(_))
    ));
}

#[test]
fn lists_for_another_size_are_refused() {
    let directory = Directory::new("memory-file-lists");
    let (memory, sums, len) = written(&directory);
    let file = MemoryFile::open(&directory.file("memory"), len).unwrap();
    let beyond = PageRanges::try_from(vec![(len / PAGE_SIZE, 1)]).unwrap();
    assert!(matches!(
        file.verify(&beyond, &sums),
        Err(MemoryFileError::WrongList { .. })
    ));
    let short = Checksums(sums.0[1..].to_vec());
    assert!(matches!(
        file.verify(&all(&memory), &short),
        Err(MemoryFileError::WrongList { .. })
    ));
}

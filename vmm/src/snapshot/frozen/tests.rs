//! Memory that is written by a child while its parent changes it, and children that fail.

use std::fs::{self, OpenOptions};
use std::sync::atomic::AtomicBool;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::snapshot::memory_file::{self, MemoryFile};
use crate::snapshot::ranges::PAGE_SIZE;
use crate::snapshot::testing::{Directory, all, contents, fill, memory};

/// Of memory that no file is behind.
fn begin(memory: &GuestMemory, ranges: &PageRanges, file: &File) -> Result<Frozen, FrozenError> {
    Frozen::begin(memory, ranges, &PageRanges::default(), file)
}

#[test]
fn memory_is_written_as_it_was_however_it_changes_meanwhile() {
    let directory = Directory::new("frozen-changing");
    let memory = memory();
    let len = total(&memory);
    let pages = len / PAGE_SIZE;
    (0..pages).step_by(3).for_each(|page| fill(&memory, page, 1));
    for round in 0..5u8 {
        let before = contents(&memory);
        let path = directory.file(&round.to_string());
        let file = memory_file::create(&path, len).unwrap();
        let ended = AtomicBool::new(false);
        let sums = thread::scope(|scope| {
            let frozen = begin(&memory, &all(&memory), &file).unwrap();
            scope.spawn(|| {
                let mut value = round;
                while !ended.load(Ordering::Relaxed) {
                    value = value.wrapping_add(1);
                    (0..pages).for_each(|page| fill(&memory, page, value));
                }
            });
            let sums = frozen.wait();
            ended.store(true, Ordering::Relaxed);
            sums.unwrap()
        });
        assert!(fs::read(&path).unwrap() == before);
        MemoryFile::open(&path, len)
            .unwrap()
            .verify(&all(&memory), &sums)
            .unwrap();
    }
}

#[test]
fn a_child_writes_what_the_process_itself_would() {
    let directory = Directory::new("frozen-same");
    let memory = memory();
    let len = total(&memory);
    (0..len / PAGE_SIZE)
        .step_by(5)
        .for_each(|page| fill(&memory, page, 9));
    let ranges = PageRanges::try_from(vec![(2, 700), (760, 20), (1800, 1)]).unwrap();
    let file = memory_file::create(&directory.file("child"), len).unwrap();
    let by_child = begin(&memory, &ranges, &file).unwrap().wait().unwrap();
    let file = memory_file::create(&directory.file("self"), len).unwrap();
    assert_eq!(by_child, memory_file::write(&memory, &ranges, &file).unwrap());
    assert!(fs::read(directory.file("child")).unwrap() == fs::read(directory.file("self")).unwrap());
}

#[test]
fn its_descriptor_tells_that_it_has_ended() {
    let directory = Directory::new("frozen-poll");
    let memory = memory();
    let file = memory_file::create(&directory.file("memory"), total(&memory)).unwrap();
    let frozen = begin(&memory, &all(&memory), &file).unwrap();
    let mut waiting = [PollFd::new(frozen.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut waiting, PollTimeout::from(60_000u16)).unwrap(), 1);
    frozen.wait().unwrap();
}

#[test]
fn a_full_disk_is_an_error_with_its_cause() {
    let memory = memory();
    fill(&memory, 3, 1);
    // Every write to it ends as on a full disk.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = begin(&memory, &all(&memory), &full).unwrap().wait().unwrap_err();
    assert!(matches!(&error, FrozenError::Write(cause) if cause.raw_os_error() == Some(libc::ENOSPC)));
    assert!(error.to_string().contains("No space left on device"), "{error}");
    let error = memory_file::write(&memory, &all(&memory), &full).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
}

#[test]
fn a_child_has_no_descriptor_but_its_files() {
    let (kept, closed) = io::pipe().unwrap();
    // SAFETY: takes numbers.
    let is_open = |file: RawFd| unsafe { libc::fcntl(file, libc::F_GETFD) } >= 0;
    let work = || match close_all_but(kept.as_raw_fd()) {
        Ok(()) => c_int::from(!is_open(kept.as_raw_fd()) || is_open(closed.as_raw_fd()) || is_open(2)),
        Err(number) => number,
    };
    // SAFETY: the work is system calls on numbers.
    let child = unsafe { fork(work) }.unwrap();
    assert!(matches!(child_of(child).reap().unwrap(), End::Exit(0)));
    assert!(is_open(closed.as_raw_fd()));
}

/// A child that writes nothing.
fn child_of(child: OwnedFd) -> Frozen {
    Frozen {
        child,
        sums: SharedSums::new(1).unwrap(),
        reaped: false,
    }
}

#[test]
fn who_gives_up_leaves_no_child() {
    // SAFETY: the work is one system call.
    let child = unsafe { fork(|| libc::pause()) }.unwrap();
    let watched = child.try_clone().unwrap();
    drop(child_of(child));
    let mut waiting = [PollFd::new(watched.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut waiting, PollTimeout::ZERO).unwrap(), 1);
}

#[test]
fn a_child_that_is_killed_is_reported() {
    // SAFETY: the work is one system call, which SIGKILL ends.
    let child = unsafe { fork(|| libc::raise(libc::SIGKILL)) }.unwrap();
    assert!(matches!(
        child_of(child).wait(),
        Err(FrozenError::Killed(libc::SIGKILL))
    ));
}

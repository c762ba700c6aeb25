//! Snapshots of guests that write to their disks, at moments that nobody has chosen: frozen with requests in flight, a guest goes on
//! in a new process, and nothing is lost.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use bare_guest::rounds::{self, PIECE};
use posada_tests::guest::TempFile;
use posada_tests::{Guest, Moments, Traveller};

const PIECES: u64 = 64;

/// An image of this size, of zeros.
fn image(size: u64) -> TempFile {
    let image = TempFile::new("disk.img", "");
    let file = File::options().write(true).open(image.path()).unwrap();
    file.set_len(size).unwrap();
    image
}

/// Checks that the image is as the bare guest has left it after this round.
#[track_caller]
fn expect_round(image: &Path, round: u64) {
    let bytes = fs::read(image).unwrap();
    for (number, piece) in (0..PIECES).zip(bytes.chunks(PIECE)) {
        let expected: Vec<u8> = rounds::words(round, number).flat_map(u64::to_le_bytes).collect();
        assert!(
            piece == expected,
            "piece {number} is not as round {round} left it"
        );
    }
}

/// Has a guest renew its disk, and snapshots it so often. Its console tells of each piece once: nothing of that is lost either.
fn renews_its_disk_and_moves(moves: u32, disk: &str, words: &str) {
    let image = image(PIECES * PIECE as u64);
    let guest = Guest::bare(&format!("program=blk-renew pieces={PIECES} {words}"))
        .memory("16M")
        .arg("--disk")
        .arg(format!("{},{disk}", image.as_str()));
    let mut traveller = Traveller::start(guest);
    let mut moments = Moments::of(moves.into());
    for _ in 0..moves {
        moments.wait(traveller.guest(), "written ", 2 * PIECES);
        traveller.move_on();
    }
    moments.wait(traveller.guest(), "written ", 2 * PIECES);
    traveller.guest().send("\n");
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    let console = ended.console();
    let told = |mark: &'static str| console.lines().filter_map(move |line| line.strip_prefix(mark));
    let rounds: u64 = told("rounds=").next().expect("it counts").parse().unwrap();
    expect_round(image.path(), rounds);
    assert_eq!(told("written ").count() as u64, rounds * PIECES);
    assert_eq!(
        told("written ").collect::<HashSet<_>>().len() as u64,
        rounds * PIECES
    );
}

#[test]
fn a_guest_with_a_busy_disk_moves_fifty_times_and_nothing_is_lost_or_done_twice() {
    renews_its_disk_and_moves(50, "engine=io_uring", "");
}

#[test]
fn so_does_one_whose_disk_has_another_engine_and_a_thread_and_is_slow() {
    renews_its_disk_and_moves(10, "engine=sync,iothread", "event-idx=no");
    renews_its_disk_and_moves(10, "engine=io_uring,cache=direct,iops=4000,iops-burst=8", "");
}

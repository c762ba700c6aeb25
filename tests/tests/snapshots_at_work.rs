//! Snapshots at moments that nobody has chosen: a guest with many requests to its disk in flight is frozen again and again, goes on
//! in a new process each time, and nothing is lost.

use std::fs::{self, File};
use std::path::Path;

use bare_guest::numbers::Random;
use bare_guest::rounds::{self, PIECE};
use posada_tests::guest::TempFile;
use posada_tests::{Guest, Traveller};

const PIECES: u64 = 64;

/// Numbers that are the same in every run.
struct Moments(Random);

impl Moments {
    fn of(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    /// Waits for a sign of life of the guest's, from the next one to the `most`th.
    fn wait(&mut self, traveller: &mut Traveller, sign: &str, most: u64) {
        for _ in 0..=self.0.draw() % most {
            traveller.guest().wait_for(sign);
        }
    }
}

/// An image of zeros for the guest's rounds.
fn image() -> TempFile {
    let image = TempFile::new("disk.img", "");
    let file = File::options().write(true).open(image.path()).unwrap();
    file.set_len(PIECES * PIECE as u64).unwrap();
    image
}

/// Checks that the image is as the guest has left it after this round.
#[track_caller]
fn expect_round(image: &Path, round: u64) {
    let bytes = fs::read(image).unwrap();
    for (number, piece) in (0..PIECES).zip(bytes.chunks(PIECE)) {
        let expected: Vec<u8> = rounds::words(round, number).flat_map(u64::to_le_bytes).collect();
        assert!(piece == expected, "piece {number} is not as round {round} left it");
    }
}

fn renews_its_disk(options: &str, words: &str, moves: u32) {
    let image = image();
    let guest = Guest::bare(&format!("program=blk-renew pieces={PIECES} {words}"));
    let disk = format!("{},{options}", image.as_str());
    let mut traveller = Traveller::start(guest.arg("--disk").arg(disk));
    let mut moments = Moments::of(moves.into());
    for _ in 0..moves {
        // As much as two rounds.
        moments.wait(&mut traveller, "written ", 2 * PIECES);
        traveller.move_on();
    }
    moments.wait(&mut traveller, "written ", 2 * PIECES);
    traveller.guest().send("\n");
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    let console = ended.console();
    let round = console.lines().find_map(|line| line.strip_prefix("rounds="));
    expect_round(image.path(), round.expect("it says how many").parse().unwrap());
}

#[test]
fn a_guest_that_renews_its_disk_moves_fifty_times_and_nothing_is_lost_or_done_twice() {
    renews_its_disk("engine=io_uring,iothread", "", 50);
}

//! Snapshots of guests that write to their disks, at moments that nobody has chosen: frozen with requests in flight, a guest goes on
//! in a new process, and nothing is lost.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

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

/// Runs a tool of e2fsprogs on an image, and returns what it prints.
#[track_caller]
fn tool(name: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name} does not run: {error}"));
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {messages}");
    output.stdout
}

/// Each file is synchronised before its sum is told. Few files, as kvm-pvm hosts interpret the guest's kernel.
#[test]
fn linux_writes_files_while_it_moves_and_the_host_finds_each_of_them_whole() {
    const MOVES: u32 = 5;
    const WRITE: &str = "mount -t ext4 /dev/vda /tmp || exit\n\
        n=1; while [ ! -e /tmp/end ]; do\n\
        dd if=/bin/busybox of=/tmp/$n bs=8k skip=$n count=2 conv=fsync 2>/dev/null\n\
        md5sum /tmp/$n; n=$((n+1)); read -t 0 end && touch /tmp/end; done; umount /tmp; poweroff\n";
    let image = image(32 << 20);
    // Without checksums, over which a guest whose kernel is interpreted takes minutes.
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-b", "4096", "-O", "^metadata_csum", image.as_str()],
    );
    let mut traveller = Traveller::start(Guest::tiny().arg("--disk").arg(image.path()));
    traveller.guest().wait_for(":/root# ");
    traveller.guest().send(WRITE);
    let mut moments = Moments::of(1);
    for _ in 0..MOVES {
        moments.wait(traveller.guest(), "  /tmp/", 3);
        traveller.move_on();
    }
    moments.wait(traveller.guest(), "  /tmp/", 3);
    traveller.guest().send("\n");
    let ended = traveller.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    tool("fsck.ext4", &["-f", "-n", image.as_str()]);
    let console = ended.console();
    let told: Vec<_> = console
        .lines()
        .filter_map(|line| line.split_once("  /tmp/"))
        .collect();
    assert!(told.len() > MOVES as usize, "{} files", told.len());
    for (sum, name) in told {
        let file = tool(
            "debugfs",
            &["-R", &format!("cat /{}", name.trim()), image.as_str()],
        );
        assert_eq!(file.len(), 16 << 10, "file {name}");
        let file = TempFile::new("file", file);
        let found = String::from_utf8(tool("md5sum", &[file.as_str()])).unwrap();
        assert_eq!(found.split_whitespace().next(), Some(sum.trim()), "file {name}");
    }
}

//! What user programs in a guest rely on their CPU for: the checks of guest-images/checks, in a guest that has come back from a snapshot.
//! One that has just booted runs them in linux.rs.

use std::fs::{self, File};

use posada_tests::booted::{self, POWER_OFF};
use posada_tests::guest::TempFile;
use posada_tests::{Guest, checks, images};

/// They come on a disk, which is the archive and nothing behind it.
#[test]
fn exceptions_and_cpu_state_are_right_with_one_cpu_after_a_snapshot() {
    let run = checks::command("cd /tmp; cpio -i < /dev/vda; ./checks");
    let archive = fs::read(images::checks()).expect("a cached image can be read");
    let disk = TempFile::new("disk.img", archive);
    let file = File::options().write(true).open(disk.path());
    file.and_then(|file| file.set_len(booted::DISK_SIZE))
        .expect("a temporary file can be made longer");
    let ended = Guest::booted_with_disk(disk.path())
        .input(format!("{run}{POWER_OFF}"))
        .run()
        .expect_status(0);
    checks::all_passed(&ended);
}

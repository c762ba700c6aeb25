//! What user programs in a guest rely on their CPU for: the checks of guest-images/checks, in a guest that has just booted and in one
//! that has come back from a snapshot.

use std::fs::{self, File};

use posada_tests::booted::{self, POWER_OFF};
use posada_tests::guest::TempFile;
use posada_tests::{Ended, Guest, images};

#[track_caller]
fn all_passed(ended: &Ended) {
    let console = ended.console();
    assert!(!console.contains("not ok"), "a check failed");
    let summary = console
        .lines()
        .find(|line| line.starts_with("checks: "))
        .expect("the checks have come to their end");
    assert!(summary.trim_end().ends_with(" passed, 0 failed"), "{summary}");
}

/// They are the guest's only program.
#[test]
fn exceptions_and_cpu_state_are_right_with_two_cpus() {
    let ended = Guest::tiny_with(&images::checks())
        .append("posada.init=/checks")
        .cpus(2)
        .run()
        .expect_status(0);
    all_passed(&ended);
    assert!(ended.console().contains("init: /checks exited with status 0"));
}

/// They come on a disk, which is the archive and nothing behind it.
#[test]
fn exceptions_and_cpu_state_are_right_with_one_cpu_after_a_snapshot() {
    const RUN: &str = "cd /tmp; cpio -i < /dev/vda; ./checks; echo end''ed with status $?\n";
    let archive = fs::read(images::checks()).expect("a cached image can be read");
    let disk = TempFile::new("disk.img", archive);
    let file = File::options().write(true).open(disk.path());
    file.and_then(|file| file.set_len(booted::DISK_SIZE))
        .expect("a temporary file can be made longer");
    let ended = Guest::booted_with_disk(disk.path())
        .input(format!("{RUN}{POWER_OFF}"))
        .run()
        .expect_status(0);
    all_passed(&ended);
    assert!(ended.console().contains("ended with status 0"));
}

//! The guest without an operating system itself: how it starts, tells what is wrong, waits and ends.

use std::time::{Duration, Instant};

use posada_tests::{Ended, Guest};

const GUEST_CRASHED: i32 = 3;

#[test]
fn it_says_hello_and_powers_off_however_many_cpus_there_are() {
    for cpus in [1, 2] {
        let ended = Guest::bare("program=hello").cpus(cpus).run().expect_status(0);
        assert_eq!(ended.console(), "hello from the bare guest\n");
        assert_eq!(ended.messages(), "");
    }
}

#[track_caller]
fn fails(command_line: &str) -> Ended {
    let ended = Guest::bare(command_line).run().expect_status(GUEST_CRASHED);
    assert!(ended.messages().contains("panicked"), "{}", ended.messages());
    ended.expect_no_panic();
    ended
}

#[test]
fn a_program_that_it_does_not_have_gets_the_list_of_those_that_it_has() {
    for (command_line, why) in [
        ("program=nonsense", "FAILED: there is no program nonsense\n"),
        ("", "FAILED: the command line has no program=\n"),
    ] {
        let console = fails(command_line).console();
        assert!(console.contains("\n  hello        prints a line\n"), "{console}");
        assert!(console.ends_with(why), "{console}");
    }
}

#[test]
fn a_word_that_it_cannot_read_is_named() {
    let console = fails("program=rng bytes=many").console();
    assert_eq!(
        console,
        "FAILED: bytes=many: give a number, such as 10, 4K or 0x1000\n"
    );
    let console = fails("program=devices virtio_mmio.device=5").console();
    assert!(
        console.starts_with("FAILED: virtio_mmio.device=5: give "),
        "{console}"
    );
}

#[test]
fn a_panic_tells_file_and_line() {
    let console = fails("program=panic").console();
    let place = console
        .strip_prefix("FAILED: panicked at guest-images/bare/src/programs.rs:")
        .expect("the file is named");
    let (line, message) = place.split_once(": ").expect("the line is named");
    assert!(line.parse::<u32>().is_ok(), "{line}");
    assert_eq!(message, "as it was told to\n");
}

#[test]
fn an_exception_tells_its_kind_and_its_address() {
    let console = fails("program=fault").console();
    // A page fault of user mode on a page that is not there: only bit 2 of its code (Intel SDM Vol 3 Figure 4-12).
    assert!(
        console.starts_with("FAILED: exception 14, error code 0x4, at rip 0x1"),
        "{console}"
    );
    assert!(console.ends_with(", cr2 0x200000000\n"), "{console}");
}

#[test]
fn it_waits_for_input_without_using_the_cpu() {
    let mut guest = Guest::bare("program=echo").start();
    guest.wait_for("listening\n");
    let busy = guest.cpu_time();
    let since = Instant::now();
    guest.wait_until("a second of waiting", |_| {
        since.elapsed() > Duration::from_secs(1)
    });
    let used = guest.cpu_time() - busy;
    assert!(used < Duration::from_millis(200), "{used:?} in a second");
    guest.send("some words\n");
    guest.wait_for("input: some words\n");
    guest.wait().expect_status(0);
}

#[test]
fn it_finds_the_devices_that_it_is_told_of_and_drives_them() {
    let ended = Guest::bare("program=devices").arg("--rng").run().expect_status(0);
    let console = ended.console();
    assert!(console.starts_with("device at 0xd0000000 irq "), "{console}");
    assert!(
        console.contains(": id 4, vendor "),
        "the entropy device's id: {console}"
    );

    let ended = Guest::bare("program=rng bytes=48")
        .arg("--rng")
        .run()
        .expect_status(0);
    let console = ended.console();
    assert!(
        console.ends_with("48 bytes twice, and they differ\n"),
        "{console}"
    );
}

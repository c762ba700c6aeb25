//! A guest's serial port on pipes and files: every byte of output and input, in order, however it comes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use posada_tests::guest::TempFile;
use posada_tests::payload::{elf, hello};
use posada_tests::script::{DATA, Width};
use posada_tests::{Background, Ended, Guest, Running, Script, guest, posada};

const GUEST_CRASHED: i32 = 3;
const PVPANIC: u16 = 0x505;

#[test]
fn a_megabyte_of_output_arrives_complete() {
    let output: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let script = Script::new().print(DATA, output.len() as u64);
    let ended = Guest::payload(&script.code_and(&output)).run().expect_status(0);
    assert_eq!(ended.stdout.len(), output.len());
    assert!(ended.stdout == output, "the bytes are the same");
}

#[test]
fn output_that_nobody_wants_any_more_does_not_kill_the_guest() {
    let script = Script::new()
        .say("ready")
        .echo_until(b'.')
        .say("more")
        .port_write(Width::Byte, PVPANIC, 1)
        .spin();
    let mut guest = Guest::payload(&script.code()).start();
    guest.wait_for("ready");
    guest.close_stdout();
    guest.send("nobody reads this.");
    // Only a guest that has gone on can say that it panicked.
    let ended = guest.wait().expect_status(GUEST_CRASHED);
    assert!(ended.messages().contains("panicked"), "{}", ended.messages());
}

fn full_disk() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

#[test]
fn output_that_a_full_disk_swallows_is_told_once() {
    let guest = Guest::payload(hello());
    let mut command = guest.command(Stdio::null());
    command.stdout(full_disk());
    let ended = Running::of(command).wait().expect_status(0);
    assert_eq!(
        ended.messages().matches("No space left").count(),
        1,
        "{}",
        ended.messages()
    );
}

#[test]
fn a_log_that_a_full_disk_swallows_harms_nobody() {
    let guest = Guest::payload(hello()).arg("-v");
    let mut command = guest.command(Stdio::null());
    command.stderr(full_disk());
    let ended = Running::of(command).wait().expect_status(0);
    assert_eq!(ended.console(), "hi\n");
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> io::PipeWriter {
    io::pipe().unwrap().1
}

/// `posada` with these arguments, which prints to `stdout`.
fn printing_to(stdout: impl Into<Stdio>, arguments: &[&str]) -> Ended {
    let mut command = guest::command(arguments);
    command.stdout(stdout);
    Running::of(command).wait()
}

#[test]
fn what_a_command_cannot_print_is_an_error_and_who_reads_no_more_has_seen_enough() {
    let name = format!("stdio-asked-{}", process::id());
    let mut running = Guest::payload(&Script::new().say("ready").halt().code())
        .named(&name)
        .start();
    running.wait_for("ready");
    for arguments in [
        &["ps"][..],
        &["ps", "--json"],
        &["inspect", &name],
        &["stats", &name],
        &["stats", &name, "--prometheus"],
        &["completions", "zsh"],
        &["man"],
    ] {
        printing_to(full_disk(), arguments).expect_refusal(1, &["cannot print", "No space left"]);
        let ended = printing_to(closed_pipe(), arguments).expect_status(0);
        assert_eq!(ended.messages(), "", "{arguments:?}");
    }
    posada(&["kill", &name]).expect_status(0);
    running.wait().expect_status(0);
}

#[test]
fn a_guest_whose_name_cannot_be_printed_runs_and_is_named_where_it_can_be() {
    let image = TempFile::new("kernel", elf(&Script::new().say("ready").halt().code(), false));
    let full = format!("stdio-full-{}", process::id());
    let closed = format!("stdio-closed-{}", process::id());
    let _guests = [&full, &closed].map(|name| Background::new(name));
    let run = |stdout: Stdio, name: &str| {
        printing_to(stdout, &["run", "-d", "--name", name, "--kernel", image.as_str()])
    };
    run(full_disk().into(), &full).expect_refusal(1, &["No space left", &format!("'{full}' runs")]);
    assert_eq!(run(closed_pipe().into(), &closed).expect_status(0).messages(), "");
    for name in [&full, &closed] {
        posada(&["kill", name]).expect_status(0);
    }
}

/// As when `posada run -d` is killed while its guest is being built.
#[test]
fn a_guest_in_the_background_goes_with_who_started_it() {
    let image = TempFile::new("kernel", elf(&Script::new().halt().code(), false));
    let name = format!("stdio-orphan-{}", process::id());
    let arguments = ["run", "--background", "--name", &name, "--kernel", image.as_str()];
    printing_to(closed_pipe(), &arguments).expect_refusal(1, &["who started this guest has ended"]);
    assert!(!guest::runtime_directory().join("posada").join(&name).exists());
}

/// As under a pager: the guest's vCPU waits for room, and posada still hears what it is told.
#[test]
fn a_signal_ends_a_guest_whose_output_nobody_reads() {
    const MIB: usize = 1 << 20;
    let (reader, writer) = io::pipe().unwrap();
    let guest = Guest::payload(&Script::new().print(DATA, MIB as u64).code_and(&[b'x'; MIB]));
    let mut command = guest.command(Stdio::null());
    command.stdout(writer);
    let mut running = Running::of(command);
    running.wait_until("a full pipe", |_| waiting_in(&reader) == PIPE_CAPACITY);
    running.signal(Signal::SIGTERM);
    running
        .wait_within(Duration::from_secs(5))
        .expect_status(128 + Signal::SIGTERM as i32);
}

/// What Linux gives a pipe: pipe(7).
const PIPE_CAPACITY: usize = 65_536;

/// How many bytes wait to be read.
fn waiting_in(pipe: &impl AsRawFd) -> usize {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which lives across the call.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut waiting) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    waiting as usize
}

/// 64 KiB of lines and no byte 4 in them.
fn long_input() -> Vec<u8> {
    (0..4096)
        .flat_map(|n| format!("line {n:9}\n").into_bytes())
        .collect()
}

#[test]
fn piped_input_reaches_the_guest_complete_and_in_order() {
    let input = long_input();
    let script = Script::new().echo_until(4);
    let guest = Guest::payload(&script.code()).input([&input[..], &[4]].concat());
    let ended = guest.run().expect_status(0);
    assert!(
        ended.stdout == input,
        "{} bytes of {}",
        ended.stdout.len(),
        input.len()
    );
}

#[test]
fn input_from_a_file_reaches_the_guest_complete_and_in_order() {
    let input = long_input();
    let file = TempFile::new("input", [&input[..], &[4]].concat());
    let guest = Guest::payload(&Script::new().echo_until(4).code());
    let guest = guest.start_with_input_from(File::open(file.path()).unwrap());
    let ended = guest.wait().expect_status(0);
    assert!(
        ended.stdout == input,
        "{} bytes of {}",
        ended.stdout.len(),
        input.len()
    );
}

#[test]
fn without_input_it_waits_without_using_the_cpu() {
    let mut guest = Guest::payload(&Script::new().say("ready").halt().code()).start();
    guest.wait_for("ready");
    guest.end_input();
    let busy = guest.cpu_time();
    let since = Instant::now();
    guest.wait_until("a second of idling", |_| since.elapsed() > Duration::from_secs(1));
    let used = guest.cpu_time() - busy;
    assert!(used < Duration::from_millis(200), "{used:?} in a second");
    guest.signal(Signal::SIGTERM);
    guest.wait().expect_status(128 + Signal::SIGTERM as i32);
}

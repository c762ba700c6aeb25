//! The agent in a guest: commands with all that a command has, and in one Linux guest files, too, from its boot to a clone of it.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use posada_tests::agent::{Played, answer};
use posada_tests::guest::{self, command, streaming};
use posada_tests::running::until;
use posada_tests::tree::{Place, described, noise, plant};
use posada_tests::{Guest, Running, posada};

#[test]
fn a_linux_guest_runs_commands_and_takes_files_and_so_does_its_clone() {
    let name = format!("agent-{}", process::id());
    let guest = Guest::booted().named(&name).start();
    let exec = |arguments: &[&str]| posada(&[&["exec", &name, "--"], arguments].concat());
    exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).expect_said(7, "out\n", "err\n");
    // busybox's, which has no links in the tiny guest.
    exec(&["echo", "a  b", "$HOME"]).expect_said(0, "a  b $HOME\n", "");
    assert_eq!(exec(&["no-such-command"]).status.code(), Some(127));

    let input = noise(50_000);
    let mut cat = Running::of(streaming(&["exec", &name, "cat"]));
    cat.send(&input);
    cat.end_input();
    assert!(
        cat.wait().expect_status(0).stdout == input,
        "it comes back as it went"
    );

    let mut sleep = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo sleeps; exec sleep 10000",
    ]));
    sleep.wait_for("sleeps");
    sleep.signal(Signal::SIGTERM);
    sleep.wait().expect_status(143);

    // A terminal that tells no size is taken for a usual one.
    let script = "stty size; read line; stty size";
    let (mut size, before) = guest::on_terminal(&["exec", "-t", &name, "sh", "-c", script]);
    size.wait_for("24 80\r\n");
    size.terminal().resize(20, 40);
    size.send("\r");
    size.wait_for("20 40\r\n");
    assert_eq!(size.wait().expect_status(0).terminal, Some(before));

    let place = Place::empty();
    plant(&place.path("tree"));
    posada(&["cp", &place.text("tree"), &format!("{name}:/tmp")]).expect_status(0);
    exec(&["/tmp/tree/script"]).expect_said(9, "", "");
    posada(&["cp", &format!("{name}:/tmp/tree"), &place.text("back")]).expect_status(0);
    assert_eq!(described(&place.path("back")), described(&place.path("tree")));

    // A command is under way when the snapshot is taken that the clone comes from, where nobody is there for it.
    let mut held = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo holds; exec sleep 10000",
    ]));
    held.wait_for("holds");
    posada(&["clone", &name, "--name", &name]).expect_status(0);
    let clone = format!("{name}-1");
    let told = posada(&["exec", &clone, "--", "cat", "/tmp/tree/script"]);
    told.expect_said(0, "#!/bin/sh\nexit 9\n", "");
    posada(&["kill", &clone]).expect_status(0);
    held.signal(Signal::SIGINT);
    held.wait().expect_status(130);

    // The guest's end is the command's.
    let mut left = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo stays; exec sleep 10000",
    ]));
    left.wait_for("stays");
    posada(&["kill", &name]).expect_status(0);
    let messages = left.wait().expect_status(1).messages();
    assert!(messages.contains("is gone"), "{messages}");
    guest.wait().expect_status(0);
}

#[test]
fn an_agent_that_is_still_starting_is_waited_for_if_one_is_told_to() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let guest = Played::by(|stream| {
        if CALLS.fetch_add(1, Ordering::Relaxed) > 3 {
            answer(stream);
        }
    });
    guest
        .exec(&["true"])
        .expect_refusal(1, &["no agent listens", "--wait"]);
    posada(&["exec", "--wait", "3600", guest.name(), "echo", "up"]).expect_said(0, "up\n", "");
}

#[test]
fn a_command_has_its_streams_and_its_status() {
    let guest = Played::by_an_agent();
    guest
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])
        .expect_said(7, "out\n", "err\n");
    guest
        .exec(&["sh", "-c", "kill -TERM $$"])
        .expect_said(143, "", "");
    guest
        .exec(&["/nonexistent"])
        .expect_refusal(127, &["/nonexistent", "No such file"]);
    guest
        .exec(&["/etc/passwd"])
        .expect_refusal(126, &["/etc/passwd", "Permission denied"]);
    let environment = [
        "-e",
        "WORD=a b",
        "--cwd",
        "/usr",
        guest.name(),
        "sh",
        "-c",
        "pwd; echo $WORD",
    ];
    posada(&[&["exec"], &environment[..]].concat()).expect_said(0, "/usr\na b\n", "");
    posada(&["exec", "--cwd", "/nonexistent", guest.name(), "true"]).expect_refusal(126, &["/nonexistent"]);
}

#[test]
fn a_hundred_megabytes_go_through_a_command_unchanged() {
    let guest = Played::by_an_agent();
    let input = noise(100_000_000);
    let mut cat = Running::of(guest.command(&["cat"]));
    cat.send(&input);
    cat.end_input();
    assert!(
        cat.wait().expect_status(0).stdout == input,
        "it comes back as it went"
    );
}

#[test]
fn who_does_not_read_holds_the_command_back_and_no_signal() {
    let guest = Played::by_an_agent();
    let mut yes = Running::of(guest.command(&["sh", "-c", "trap 'exit 3' INT; yes"]));
    yes.wait_for("y\n");
    // From here on nobody reads, until the command has been told.
    yes.signal(Signal::SIGINT);
    let ended = yes.wait().expect_status(3);
    const ON_THE_WAY: usize = 4 << 20;
    assert!(ended.stdout.len() < ON_THE_WAY, "{} bytes", ended.stdout.len());
}

#[test]
fn a_signal_reaches_a_command_past_input_that_it_does_not_read() {
    let guest = Played::by_an_agent();
    let mut deaf = Running::of(guest.command(&["sh", "-c", "echo ready; exec sleep 10000"]));
    deaf.send(noise(2_000_000));
    deaf.wait_for("ready\n");
    deaf.signal(Signal::SIGHUP);
    deaf.wait().expect_status(129);
}

#[test]
fn a_command_that_does_not_listen_does_not_hold_posada() {
    let guest = Played::by_an_agent();
    let mut stubborn = Running::of(guest.command(&[
        "sh",
        "-c",
        "trap 'echo no' INT; echo ready; while :; do sleep 0.02; done",
    ]));
    stubborn.wait_for("ready\n");
    for _ in 0..2 {
        stubborn.signal(Signal::SIGINT);
        stubborn.wait_for("no\n");
    }
    stubborn.signal(Signal::SIGINT);
    stubborn.wait().expect_status(130);
}

#[test]
fn a_command_whose_posada_is_killed_is_hung_up() {
    let (guest, place) = (Played::by_an_agent(), Place::empty());
    let script = format!(
        "trap 'echo bye; echo bye >&2; echo > {}; exit' HUP; echo ready; while :; do sleep 0.02; done",
        place.text("told")
    );
    let mut lost = Running::of(guest.command(&["sh", "-c", &script]));
    lost.wait_for("ready\n");
    lost.signal(Signal::SIGKILL);
    until("the command has been told", || place.path("told").exists());
}

#[test]
fn a_pipe_that_is_closed_is_closed_for_the_other_end() {
    let guest = Played::by_an_agent();
    let mut yes = Running::of(guest.command(&["yes"]));
    yes.wait_for("y\n");
    yes.close_stdout();
    yes.wait().expect_status(128 + Signal::SIGPIPE as i32);
    // The command's reading end: what is sent beyond is nobody's, and does no harm.
    let mut head = Running::of(guest.command(&["head", "-c", "3"]));
    head.send(noise(1_000_000));
    assert_eq!(head.wait().expect_status(0).stdout, noise(3));
}

#[test]
fn a_terminal_is_the_commands_until_it_ends() {
    let guest = Played::by_an_agent();
    // The keys come when no other program runs: a shell goes on if one that it waits for ends and is not ended by them.
    let script = "tty; read line; size=$(stty size); echo $size; exec sleep 10000";
    let (mut running, before) = guest::on_terminal(&["exec", "-t", guest.name(), "sh", "-c", script]);
    running.wait_for("/dev/pts/");
    running.terminal().resize(20, 60);
    running.send("\r");
    running.wait_for("20 60\r\n");
    assert_ne!(running.terminal().settings(), before, "keys go through");
    running.send("\x03");
    let ended = running.wait().expect_status(130);
    assert_eq!(ended.terminal, Some(before));
}

#[test]
fn a_terminal_that_was_another_jobs_is_the_commands_again() {
    let guest = Played::by_an_agent();
    let (mut cat, before) = guest::on_terminal(&["exec", "-t", guest.name(), "sh", "-c", "echo ready; cat"]);
    cat.wait_for("ready");
    cat.leave_and_return();
    cat.send("\x04");
    assert_eq!(cat.wait().expect_status(0).terminal, Some(before));
}

#[test]
fn a_terminal_for_a_command_whose_input_or_output_is_a_pipe_ends_with_that() {
    let guest = Played::by_an_agent();
    let mut yes = Running::of(streaming(&["exec", "-t", guest.name(), "yes"]));
    yes.wait_for("y\r\n");
    yes.close_stdout();
    let ended = yes.wait().expect_status(128 + Signal::SIGHUP as i32);
    assert_eq!(ended.messages(), "");
    // What is no whole line is read, too.
    let mut cat = Running::of(streaming(&["exec", "-t", guest.name(), "cat"]));
    cat.send("abc");
    cat.end_input();
    // The terminal's echo, and what the command prints.
    cat.wait().expect_said(0, "abcabc", "");
}

//! A guest's console on a terminal: keys go to the guest, posada's own keys do not, and the terminal is given back as it was.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use posada_tests::terminal::Settings;
use posada_tests::{Ended, Guest, Running, Script};

const GUEST_CRASHED: i32 = 3;
/// Enough for a busy machine, and far below what a person would wait.
const QUICKLY: Duration = Duration::from_secs(5);

/// A guest on a terminal that says "ready" and then does what `script` says; and how the terminal was set before.
fn start(script: impl FnOnce(Script) -> Script) -> (Running, Settings) {
    let code = script(Script::new().say("ready\n")).code();
    let (mut guest, before) = Guest::payload(&code).start_on_terminal();
    guest.wait_for("ready");
    guest.wait_until("the terminal being raw", |guest| {
        guest.terminal().settings() != before
    });
    (guest, before)
}

/// Prints what is typed until a full stop is.
fn echo(script: Script) -> Script {
    script.echo_until(b'.')
}

#[track_caller]
fn gave_the_terminal_back(ended: &Ended, before: &Settings) {
    assert_eq!(ended.terminal.as_ref(), Some(before));
}

#[test]
fn keys_reach_the_guest_one_by_one_and_the_terminal_is_given_back() {
    let (mut guest, before) = start(echo);
    // No end of line follows, and these would mean something to a terminal that is not raw.
    for key in ["a", "\x03", "\x04", "\x1a", "\x1c", "\x7f"] {
        guest.send(key);
        guest.wait_for(key);
    }
    guest.send(".");
    let ended = guest.wait().expect_status(0);
    assert!(ended.console().contains("posada: guest powered off"));
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn ctrl_a_h_shows_the_keys_and_ctrl_a_x_ends_the_guest() {
    let (mut guest, before) = start(echo);
    guest.send("\x01h");
    let help = guest.wait_for("this help");
    assert!(
        help.contains("Ctrl-A x") && help.contains("end the guest"),
        "{help}"
    );
    guest.send("\x01\x01");
    guest.wait_for("\x01");
    guest.send("\x01x");
    let ended = guest.wait_within(QUICKLY).expect_status(0);
    assert!(ended.console().contains("posada: guest was ended"));
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn ctrl_a_x_ends_a_guest_that_does_not_listen() {
    let (mut guest, before) = start(Script::spin);
    guest.send("is anybody there?\x01x");
    let ended = guest.wait_within(QUICKLY).expect_status(0);
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn a_signal_to_end_gives_the_terminal_back() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let (guest, before) = start(Script::spin);
        guest.signal(signal);
        let ended = guest.wait_within(QUICKLY).expect_status(128 + signal as i32);
        gave_the_terminal_back(&ended, &before);
    }
}

/// As if posada itself had such a fault.
#[test]
fn a_fatal_signal_kills_and_gives_the_terminal_back() {
    for signal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
        Signal::SIGSYS,
    ] {
        let (guest, before) = start(Script::spin);
        guest.signal(signal);
        let ended = guest.wait_within(QUICKLY);
        assert_eq!(ended.status.signal(), Some(signal as i32), "{}", ended.status);
        gave_the_terminal_back(&ended, &before);
    }
}

#[test]
fn a_terminal_that_was_another_jobs_is_raw_again() {
    let (mut guest, before) = start(echo);
    guest.leave_and_return();
    guest.send(".");
    let ended = guest.wait_within(QUICKLY).expect_status(0);
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn a_crash_of_the_guest_gives_the_terminal_back() {
    let (mut guest, before) = start(|script| script.echo_until(b'.').triple_fault());
    guest.send(".");
    let ended = guest.wait().expect_status(GUEST_CRASHED);
    assert!(
        ended
            .console()
            .contains("posada: guest crashed: vCPU 0: triple fault")
    );
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn a_refusal_leaves_the_terminal_alone() {
    let kernel = std::path::Path::new("/nonexistent/vmlinux");
    let (guest, before) = Guest::kernel(kernel).start_on_terminal();
    let ended = guest.wait().expect_status(1);
    gave_the_terminal_back(&ended, &before);
}

#[test]
fn a_terminal_that_hangs_up_ends_posada() {
    let (mut guest, _) = start(Script::spin);
    guest.hang_up();
    guest
        .wait_within(QUICKLY)
        .expect_status(128 + Signal::SIGHUP as i32);
}

#[test]
fn linux_has_a_shell_with_job_control() {
    const PROMPT: &str = "posada:";
    // Not what is typed, which is echoed, but what is printed says that the program runs.
    const SLEEPER: &str = "sh -c 'echo run''ning; exec sleep 1000'\r";
    let (mut guest, before) = Guest::booted().start_on_terminal();

    guest.send(SLEEPER);
    guest.wait_for("running");
    guest.send("\x03");
    guest.wait_for(PROMPT);
    guest.send("echo status=$?\r");
    guest.wait_for("status=130");
    guest.wait_for(PROMPT);

    guest.send(SLEEPER);
    guest.wait_for("running");
    guest.send("\x1a");
    guest.wait_for("Stopped");
    guest.wait_for(PROMPT);
    guest.send("kill %1; fg\r");
    guest.wait_for("Terminated");
    guest.wait_for(PROMPT);

    guest.send("poweroff\r");
    let ended = guest.wait().expect_status(0);
    assert!(ended.console().contains("posada: guest powered off"));
    gave_the_terminal_back(&ended, &before);
}

//! Guests that are ended from outside, at every stage of their lives: what is left is nothing, or the next command's to clean up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use nix::sys::signal::Signal;
use posada_tests::guest::{command, runtime_directory};
use posada_tests::running::until;
use posada_tests::served::Served;
use posada_tests::{Guest, Running, images, posada};
use vmm_sys_util::tempdir::TempDir;

const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGHUP];

fn directory(name: &str) -> PathBuf {
    runtime_directory().join("posada").join(name)
}

fn name(stage: &str, signal: Signal) -> String {
    format!("{stage}-{}-{}", signal as i32, process::id())
}

fn counting(name: &str, more: &str) -> Running {
    let mut guest = Guest::bare(&format!("program=count {more}")).named(name).start();
    guest.wait_for("count 1\n");
    guest
}

/// Sends the signal to a guest's process, and waits for its end, which is as it should be and leaves nothing.
fn end(guest: Running, name: &str, signal: Signal) {
    guest.signal(signal);
    let ended = guest.wait();
    if signal == Signal::SIGKILL {
        assert_eq!(ended.status.code(), None);
    } else {
        ended.expect_status(128 + signal as i32).expect_no_panic();
        assert!(!directory(name).exists(), "its directory goes with it");
    }
    posada(&["inspect", name]).expect_refusal(1, &["there is no running guest named", name]);
    posada(&["ps"]).expect_status(0);
    assert!(!directory(name).exists(), "what is left is swept");
}

#[test]
fn before_its_guest_runs() {
    for signal in SIGNALS {
        let served = Served::start(&format!("unborn-{}", signal as i32), &[]);
        let name = served.name.clone();
        end(served.running, &name, signal);
    }
}

#[test]
fn while_it_waits_to_be_let_go() {
    let kernel = images::bare();
    for signal in SIGNALS {
        let name = name("waits", signal);
        let arguments = [
            "run",
            "--background",
            "--name",
            &name,
            "--cmdline",
            "program=count",
            "--kernel",
        ];
        let mut command = command(&[&arguments[..], &[kernel.to_str().unwrap()]].concat());
        command.stdin(process::Stdio::piped());
        let mut waiting = Running::of(command);
        waiting.wait_for("ready\n");
        // Who has started it is gone, too.
        waiting.signal(signal);
        waiting.end_input();
        waiting.wait().expect_no_panic();
        posada(&["ps"]).expect_status(0);
        assert!(!directory(&name).exists());
    }
}

#[test]
fn while_it_runs_and_while_it_is_paused() {
    for signal in SIGNALS {
        let running = name("runs", signal);
        end(counting(&running, ""), &running, signal);
        let paused = name("paused", signal);
        let guest = counting(&paused, "");
        posada(&["pause", &paused]).expect_status(0);
        end(guest, &paused, signal);
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn while_a_snapshot_is_taken_it_is_there_as_a_whole_or_the_next_one_cleans_up() {
    for signal in SIGNALS {
        let name = name("frozen", signal);
        let place = TempDir::new().unwrap();
        let snapshot = place.as_path().join("s");
        let guest = Guest::bare("program=count touch=134217728")
            .named(&name)
            .memory("256M");
        let mut guest = guest.start();
        guest.wait_for("count 1\n");
        let taking = Running::of(command(&["snapshot", &name, snapshot.to_str().unwrap()]));
        until("it is being written", || !names_in(place.as_path()).is_empty());
        end(guest, &name, signal);
        taking.wait().expect_no_panic();
        // The guest that a finished snapshot is of, or another one.
        let next = Guest::bare("program=count").named(&name).start();
        let mut next = match snapshot.exists() {
            true => {
                drop(next);
                Guest::restored(&snapshot).named(&name).start()
            }
            false => next,
        };
        next.send("\n");
        next.wait_for("count 2\n");
        let second = place.as_path().join("t");
        posada(&["snapshot", &name, second.to_str().unwrap(), "--stop"]).expect_status(0);
        next.wait().expect_status(0);
        let left = names_in(place.as_path());
        assert!(left == ["t"] || left == ["s", "t"], "{left:?}");
    }
}

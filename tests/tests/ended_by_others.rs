//! Guests that are ended from outside, at every stage of their lives: what is left is nothing, or the next command's to clean up.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;

use nix::sys::signal::Signal;
use posada_tests::background::Background;
use posada_tests::guest::{command, on_terminal, runtime_directory};
use posada_tests::running::until;
use posada_tests::served::Served;
use posada_tests::{Guest, Running, images, posada};
use vmm_sys_util::tempdir::TempDir;

const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGHUP];

/// How a process is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Signal(Signal),
    /// The terminal that it is on is closed, and with it the session.
    Terminal,
}

impl Way {
    fn all() -> impl Iterator<Item = Self> {
        SIGNALS.map(Self::Signal).into_iter().chain([Self::Terminal])
    }

    /// The signal that the process hears of.
    fn signal(self) -> Signal {
        match self {
            Self::Signal(signal) => signal,
            Self::Terminal => Signal::SIGHUP,
        }
    }

    fn start(self, guest: Guest) -> Running {
        match self {
            Self::Signal(_) => guest.start(),
            Self::Terminal => guest.start_on_terminal().0,
        }
    }

    fn end(self, process: &mut Running) {
        match self {
            Self::Signal(signal) => process.signal(signal),
            Self::Terminal => process.hang_up(),
        }
    }
}

fn directory(name: &str) -> PathBuf {
    runtime_directory().join("posada").join(name)
}

fn name(stage: &str, way: Way) -> String {
    let what = match way {
        Way::Signal(signal) => signal.as_str(),
        Way::Terminal => "terminal",
    };
    format!("{stage}-{what}-{}", process::id())
}

fn counting(name: &str, way: Way) -> Running {
    let mut guest = way.start(Guest::bare("program=count").named(name));
    guest.wait_for("count 1");
    guest
}

/// Ends a guest's process in this way, and waits for that, which is as it should be and leaves nothing.
fn end(mut guest: Running, name: &str, way: Way) {
    way.end(&mut guest);
    let ended = guest.wait();
    if way == Way::Signal(Signal::SIGKILL) {
        assert_eq!(ended.status.code(), None);
    } else {
        ended.expect_status(128 + way.signal() as i32).expect_no_panic();
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
        end(served.running, &name, Way::Signal(signal));
    }
    let (name, place) = (name("unborn", Way::Terminal), TempDir::new().unwrap());
    let socket = place.as_path().join("api.sock");
    let (served, _) = on_terminal(&["serve", "--id", &name, "--api-sock", socket.to_str().unwrap()]);
    until("it is served", || UnixStream::connect(&socket).is_ok());
    end(served, &name, Way::Terminal);
    assert!(!socket.exists(), "its socket goes with it");
}

#[test]
fn while_it_waits_to_be_let_go() {
    let kernel = images::bare();
    for signal in SIGNALS {
        let name = name("waits", Way::Signal(signal));
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
    for way in Way::all() {
        let running = name("runs", way);
        end(counting(&running, way), &running, way);
        let paused = name("paused", way);
        let guest = counting(&paused, way);
        posada(&["pause", &paused]).expect_status(0);
        end(guest, &paused, way);
    }
}

#[test]
fn a_guest_in_the_background_outlives_the_terminal_that_it_was_started_on() {
    let name = name("detached", Way::Terminal);
    let kernel = images::bare();
    let (mut starter, _) = on_terminal(&[
        "run",
        "-d",
        "--rm",
        "--name",
        &name,
        "--cmdline",
        "program=count",
        "--kernel",
        kernel.to_str().unwrap(),
    ]);
    let _guest = Background::new(&name);
    starter.wait_for(&name);
    starter.hang_up();
    starter.wait();
    posada(&["inspect", &name]).expect_status(0);
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
    for way in Way::all() {
        let name = name("frozen", way);
        let place = TempDir::new().unwrap();
        let snapshot = place.as_path().join("s");
        let guest = Guest::bare("program=count touch=134217728")
            .named(&name)
            .memory("256M");
        let mut guest = way.start(guest);
        guest.wait_for("count 1");
        let taking = Running::of(command(&["snapshot", &name, snapshot.to_str().unwrap()]));
        until("it is being written", || !names_in(place.as_path()).is_empty());
        end(guest, &name, way);
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

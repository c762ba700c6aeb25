//! Guests that run, by their names: listed, paused, looked at, ended.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use posada_tests::background::Background;
use posada_tests::guest::{command, runtime_directory};
use posada_tests::running::until;
use posada_tests::{Guest, Running, guest, images, payload, posada};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

/// A name that no other test's guest has.
fn name(test: &str) -> String {
    format!("{test}-{}", process::id())
}

fn json(arguments: &[&str]) -> Value {
    let ended = posada(arguments).expect_status(0);
    serde_json::from_str(&ended.console()).expect("it is JSON")
}

/// What `posada ps` says of the guest.
fn listed(name: &str) -> Option<Value> {
    let guests = json(&["ps", "--json"]);
    let guests = guests.as_array().expect("a list").clone();
    guests.into_iter().find(|guest| guest["name"] == name)
}

#[test]
fn a_running_guest_is_in_the_list_until_it_is_ended() {
    let name = name("listed");
    assert_eq!(listed(&name), None);
    let mut guest = Guest::bare("program=echo").named(&name).memory("64M").start();
    guest.wait_for("listening\n");
    let row = listed(&name).expect("it runs");
    assert_eq!(row["pid"], guest.pid().as_raw());
    assert_eq!(row["state"], "running");
    assert_eq!(row["memory"], "64M");
    let table = posada(&["ps"]).expect_status(0).console();
    assert!(table.starts_with("NAME"), "{table}");
    let line = table.lines().find(|line| line.starts_with(&name));
    assert!(line.is_some_and(|line| line.contains("running")), "{table}");
    posada(&["kill", &name]).expect_status(0);
    assert_eq!(listed(&name), None, "its process is gone when kill returns");
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_tells_what_it_was_built_from() {
    let name = name("inspected");
    let mut guest = Guest::bare("program=echo")
        .named(&name)
        .cpus(2)
        .arg("--rng")
        .start();
    guest.wait_for("listening\n");
    let told = json(&["inspect", &name]);
    assert_eq!(told["cpus"], 2);
    assert_eq!(told["config"]["rng"], true);
    let kernel = told["config"]["kernel"].as_str().expect("it has one");
    assert!(Path::new(kernel).is_absolute(), "{kernel}");
    posada(&["kill", &name]).expect_status(0);
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() {
    let name = name("paused");
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    let mut guest = Guest::bare("program=echo").named(&name).start();
    guest.wait_for("listening\n");
    for _ in 0..2 {
        // To pause a paused guest is no error, and no second pause to be undone.
        posada(&["pause", &name]).expect_status(0);
        assert_eq!(listed(&name).expect("it is there")["state"], "paused");
    }
    // A snapshot needs the guest at rest, and leaves it so.
    posada(&["snapshot", &name, snapshot.to_str().unwrap()]).expect_status(0);
    assert_eq!(listed(&name).expect("it is there")["state"], "paused");
    posada(&["resume", &name]).expect_status(0);
    assert_eq!(listed(&name).expect("it is there")["state"], "running");
    guest.send("good morning\n");
    let ended = guest.wait().expect_status(0);
    assert!(ended.console().contains("good morning"), "{}", ended.console());
}

#[test]
fn a_paused_guest_hears_nothing_and_can_be_ended() {
    let name = name("silent");
    let mut guest = Guest::bare("program=echo").named(&name).start();
    guest.wait_for("listening\n");
    posada(&["pause", &name]).expect_status(0);
    guest.send("is anybody there\n");
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    posada(&["snapshot", &name, snapshot.to_str().unwrap()]).expect_status(0);
    posada(&["kill", &name]).expect_status(0);
    let ended = guest.wait().expect_status(0);
    assert!(
        !ended.console().contains("is anybody there"),
        "{}",
        ended.console()
    );
}

#[test]
fn a_guest_in_the_background_runs_on_and_its_console_is_kept() {
    let name = name("detached");
    let kernel = images::bare();
    let kernel = kernel.to_str().unwrap();
    let run = [
        "run",
        "-d",
        "--name",
        &name,
        "--kernel",
        kernel,
        "--cmdline",
        "program=count",
    ];
    let started = posada(&run).expect_status(0);
    assert_eq!(started.console(), format!("{name}\n"));
    assert_eq!(started.messages(), "");
    until("the guest has printed something", || {
        posada(&["logs", &name])
            .expect_status(0)
            .console()
            .contains("count 1\n")
    });
    posada(&run).expect_refusal(1, &["there is a running guest named", &name]);
    let mut follow = Running::of(command(&["logs", "-f", &name]));
    follow.wait_for("count 1\n");
    posada(&["kill", &name]).expect_status(0);
    let followed = follow.wait().expect_status(0).console();
    let kept = posada(&["logs", &name]).expect_status(0).console();
    assert_eq!(kept, followed, "it is kept until it is removed");
    posada(&["rm", &name]).expect_status(0);
    posada(&["logs", &name]).expect_refusal(1, &["there is no running guest named", &name]);
}

#[test]
fn of_what_a_guest_prints_for_ever_the_last_mebibyte_is_kept() {
    const KEPT: u64 = 1 << 20;
    // What is given back at once, and what may be written before it is.
    const SLACK: u64 = 3 << 16;
    let name = name("chatter");
    let _background = Background::new(&name);
    let directory = TempDir::new().expect("a directory for temporary files");
    let kernel = directory.as_path().join("kernel");
    fs::write(&kernel, payload::elf(payload::chatter(), true)).unwrap();
    let kernel = kernel.to_str().unwrap();
    posada(&["run", "-d", "--name", &name, "--kernel", kernel]).expect_status(0);
    let log = runtime_directory().join("posada").join(&name).join("console.log");
    until("more is printed than is kept", || {
        fs::metadata(&log).unwrap().len() > KEPT + SLACK
    });
    posada(&["pause", &name]).expect_status(0);
    // In blocks of 512 bytes (stat(2)).
    let held = fs::metadata(&log).unwrap().blocks() * 512;
    assert!(held <= KEPT + SLACK, "{held} bytes");
    let told = posada(&["logs", &name]).expect_status(0).console();
    assert!(told.len() as u64 >= KEPT, "{} bytes", told.len());
    assert!(told.lines().all(|line| line == "x"));
    posada(&["kill", &name]).expect_status(0);
}

#[test]
fn a_guest_in_the_background_that_cannot_run_says_why() {
    posada(&["run", "-d", "--kernel", "/nonexistent"]).expect_refusal(1, &["/nonexistent"]);
    posada(&["run", "-d", "--name", "no such name"]).expect_refusal(2, &["no such name"]);
}

#[test]
fn the_console_of_a_guest_in_the_foreground_is_not_kept() {
    let name = name("watched");
    let mut guest = Guest::bare("program=echo").named(&name).start();
    guest.wait_for("listening\n");
    posada(&["logs", &name]).expect_refusal(1, &[&name, "background"]);
    posada(&["kill", &name]).expect_status(0);
}

#[test]
fn who_is_not_there_cannot_be_asked() {
    for verb in [
        "inspect", "pause", "resume", "stop", "kill", "attach", "logs", "rm",
    ] {
        posada(&[verb, "nobody"]).expect_refusal(1, &["there is no running guest named 'nobody'"]);
    }
}

#[test]
fn one_that_is_not_there_does_not_keep_the_others_from_what_they_are_asked_for() {
    let name = name("among-others");
    let mut guest = Guest::bare("program=echo").named(&name).start();
    guest.wait_for("listening\n");
    let asked = |verb: &str| {
        let ended = posada(&[verb, "nobody", &name, "neither"]).expect_status(1);
        for gone in ["nobody", "neither"] {
            let why = format!("posada: there is no running guest named '{gone}'\n");
            assert!(ended.messages().contains(&why), "{}", ended.messages());
        }
    };
    asked("pause");
    assert_eq!(listed(&name).expect("it is there")["state"], "paused");
    asked("kill");
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_that_does_not_answer_is_listed_and_does_not_hide_the_others() {
    let name = name("mute");
    let directory = guest::runtime_directory().join("posada").join(&name);
    fs::create_dir_all(&directory).unwrap();
    let lock = File::open(&directory).unwrap();
    lock.try_lock().unwrap();
    let path = directory.join("control.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let ended = AtomicBool::new(false);
    let (listed, told) = thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                drop(socket.accept());
            }
        });
        let answers = (posada(&["ps", "--json"]), posada(&["stats", "--json"]));
        ended.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(&path));
        answers
    });
    drop(socket);
    let listed = listed.expect_status(0);
    let guests: Value = serde_json::from_str(&listed.console()).unwrap();
    let mute = guests
        .as_array()
        .unwrap()
        .iter()
        .find(|guest| guest["name"] == name.as_str());
    assert!(mute.is_some_and(|mute| mute["state"].is_null()), "{guests}");
    assert!(listed.messages().contains(&name), "{}", listed.messages());
    let told = told.expect_status(1);
    assert!(told.messages().contains(&name), "{}", told.messages());
    let told: Value = serde_json::from_str(&told.console()).expect("what the others tell is there");
    assert!(told.is_array(), "{told}");
    drop(lock);
    // Nobody has it any more: the next list is rid of it.
    assert_eq!(self::listed(&name), None);
    assert!(!directory.exists());
}

//! Guests that run, by their names: listed, paused, looked at, ended.

use std::path::Path;
use std::process;

use posada_tests::{Guest, guest, posada};
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
    let mut guest = Guest::bare("program=echo").named(&name).cpus(2).arg("--rng").start();
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
    assert!(!ended.console().contains("is anybody there"), "{}", ended.console());
}

#[test]
fn the_console_of_a_guest_in_the_background_is_kept_as_long_as_it_runs() {
    let name = name("logged");
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    let mut guest = Guest::bare("program=count").named(&name).start();
    guest.wait_for("\n");
    let logs = posada(&["logs", &name]);
    logs.expect_refusal(1, &[&name, "background"]);
    posada(&["snapshot", &name, snapshot.to_str().unwrap(), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);

    posada(&["clone", snapshot.to_str().unwrap(), "--name", &name]).expect_status(0);
    let clone = format!("{name}-1");
    let console = guest::runtime_directory().join("posada").join(&clone).join("console.log");
    let follow = Guest::none();
    drop(follow);
    let kept = posada(&["logs", &clone]).expect_status(0).console();
    assert!(console.exists());
    assert_eq!(kept.as_bytes(), &std::fs::read(&console).unwrap()[..kept.len()]);
    posada(&["kill", &clone]).expect_status(0);
    posada(&["logs", &clone]).expect_refusal(1, &[&clone, "no running guest"]);
}

#[test]
fn who_is_not_there_cannot_be_asked() {
    for verb in ["inspect", "pause", "resume", "kill", "logs"] {
        posada(&[verb, "nobody"]).expect_refusal(1, &["there is no running guest named 'nobody'"]);
    }
}

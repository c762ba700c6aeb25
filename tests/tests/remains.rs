//! What guests in the background leave when they end, and how it is got rid of.

use std::fs;
use std::path::PathBuf;
use std::process;

use nix::sys::signal::{Signal, kill};
use posada_tests::guest::TempFile;
use posada_tests::running::until;
use posada_tests::{Background, Guest, Script, guest, is_left, owner, posada};
use serde_json::{Value, json};

/// A name that no other test's guest has.
fn name(test: &str) -> String {
    format!("remains-{test}-{}", process::id())
}

fn directory(name: &str) -> PathBuf {
    guest::runtime_directory().join("posada").join(name)
}

/// The names of what is in the guest's directory.
fn files(name: &str) -> Vec<String> {
    let entries = fs::read_dir(directory(name)).expect("it has a directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    files
}

fn json(arguments: &[&str]) -> Value {
    let ended = posada(arguments).expect_status(0);
    serde_json::from_str(&ended.console()).expect("it is JSON")
}

/// What `posada ps` says of the guest.
fn listed(name: &str, arguments: &[&str]) -> Option<Value> {
    let guests = json(&[&["ps", "--json"], arguments].concat());
    let guests = guests.as_array().expect("a list").clone();
    guests.into_iter().find(|guest| guest["name"] == name)
}

/// A guest in the background that says something, and crashes when it is sent a full stop.
fn begin(name: &str, arguments: &[&str]) -> Background {
    let background = Background::new(name);
    let script = Script::new().say("first words").echo_until(b'.').triple_fault();
    let guest = Guest::payload(&script.code()).named(name).arg("-d");
    let guest = arguments.iter().fold(guest, Guest::arg);
    assert_eq!(guest.run().expect_status(0).console(), format!("{name}\n"));
    until("it has said something", || {
        posada(&["logs", name]).expect_status(0).console() == "first words"
    });
    background
}

/// Has it crash.
fn crash(name: &str) {
    let mut attached = posada_tests::Running::of({
        let mut command = guest::command(&["attach", name]);
        command.stdin(process::Stdio::piped());
        command
    });
    attached.send("last words.");
    attached.wait().expect_status(0);
    until("its process is gone", || is_left(&directory(name)));
}

#[test]
fn what_was_printed_and_how_it_ended_stays_until_it_is_removed() {
    let name = name("kept");
    let _guest = begin(&name, &[]);
    posada(&["rm", &name]).expect_refusal(1, &[&name, "rm -f"]);
    posada(&["kill", &name]).expect_status(0);
    assert_eq!(files(&name), ["console.log", "guest.json", "posada.log"]);
    assert_eq!(listed(&name, &[]), None, "it does not run");
    let row = listed(&name, &["--all"]).expect("it is there");
    assert_eq!((&row["state"], &row["pid"]), (&json!("ended"), &Value::Null));
    let end = &json(&["inspect", &name])["end"];
    assert_eq!(end["why"], "was ended");
    assert_eq!((&end["status"], &end["crashed"]), (&json!(0), &json!(false)));
    let table = posada(&["ps", "-a"]).expect_status(0).console();
    let line = table.lines().find(|line| line.starts_with(&name));
    assert!(line.is_some_and(|line| line.contains("was ended, ")), "{table}");
    let logs = posada(&["logs", "--follow", &name]).expect_status(0).console();
    assert!(logs.starts_with("first words"), "{logs}");
    posada(&["pause", &name]).expect_refusal(1, &["there is no running guest"]);

    // The next one of its name begins anew.
    let _guest = begin(&name, &[]);
    assert_eq!(json(&["inspect", &name])["end"], Value::Null);
    posada(&["rm", "-f", &name]).expect_status(0);
    assert!(!directory(&name).exists());
    posada(&["rm", &name]).expect_refusal(1, &["there is no running guest named", &name]);
}

#[test]
fn a_crash_is_told_with_its_reason() {
    let name = name("crash");
    let _guest = begin(&name, &[]);
    crash(&name);
    let row = listed(&name, &["-a"]).expect("it is there");
    assert_eq!(
        (&row["state"], &row["end"]["status"]),
        (&json!("crashed"), &json!(3))
    );
    let why = row["end"]["why"].as_str().expect("there is a reason");
    assert!(why.contains("triple fault"), "{why}");
    let logs = posada(&["logs", &name]).expect_status(0).console();
    assert_eq!(logs, "first wordslast words");
    posada(&["rm", &name]).expect_status(0);
}

#[test]
fn who_shall_leave_nothing_leaves_nothing() {
    let name = name("nothing");
    let _guest = begin(&name, &["--rm"]);
    crash(&name);
    assert!(!directory(&name).exists());
    posada(&["run", "--rm"]).expect_status(2);
}

#[test]
fn of_a_killed_process_the_logs_stay() {
    let name = name("killed");
    let _guest = begin(&name, &[]);
    fs::write(directory(&name).join("disk-0.overlay"), "what a clone wrote").unwrap();
    kill(owner(&directory(&name)).expect("it runs"), Signal::SIGKILL).unwrap();
    until("its process is gone", || is_left(&directory(&name)));
    let row = listed(&name, &["-a"]).expect("it is there");
    assert_eq!(row["state"], "crashed");
    assert_eq!(row["end"]["why"], "its process was killed");
    assert_eq!(files(&name), ["console.log", "guest.json", "posada.log"]);
    let logs = posada(&["logs", &name]).expect_status(0).console();
    assert!(logs.starts_with("first words"), "{logs}");
    posada(&["rm", &name]).expect_status(0);
}

#[test]
fn what_another_version_has_left_is_kept_until_it_is_removed() {
    let name = name("foreign");
    let _guest = begin(&name, &[]);
    posada(&["kill", &name]).expect_status(0);
    fs::write(directory(&name).join("guest.json"), r#"{"version": 9}"#).unwrap();
    let list = posada(&["ps", "-a", "--json"]).expect_status(0);
    let guests: Value = serde_json::from_str(&list.console()).expect("it is JSON");
    let row = guests
        .as_array()
        .unwrap()
        .iter()
        .find(|guest| guest["name"] == name);
    assert_eq!(row.expect("it is there")["state"], "unknown");
    for named in [name.as_str(), "another version", "posada rm"] {
        assert!(list.messages().contains(named), "{}", list.messages());
    }
    posada(&["inspect", &name]).expect_refusal(1, &[&name, "another version"]);
    assert_eq!(files(&name), ["console.log", "guest.json", "posada.log"]);
    for arguments in [&["logs", &name][..], &["logs", "--follow", &name]] {
        let logs = posada(arguments).expect_status(0).console();
        assert!(logs.starts_with("first words"), "{logs}");
    }
    posada(&["rm", &name]).expect_status(0);
    assert!(!directory(&name).exists());
}

#[test]
fn clones_leave_something_only_if_they_crash() {
    let name = name("origin");
    let place = TempFile::new("empty", "");
    let snapshot = place.directory().join("s");
    let snapshot = snapshot.to_str().unwrap();
    let _guest = begin(&name, &["--rm"]);
    posada(&["snapshot", &name, snapshot, "--stop"]).expect_status(0);
    let [crashes, ends] = [1, 2].map(|number| format!("{name}-{number}"));
    let _clones = [&crashes, &ends].map(|clone| Background::new(clone));
    let clones = posada(&["clone", snapshot, "--name", &name, "--count", "2"]).expect_status(0);
    assert_eq!(clones.console(), format!("{crashes}\n{ends}\n"));
    crash(&crashes);
    posada(&["kill", &ends]).expect_status(0);
    assert!(!directory(&ends).exists());
    assert_eq!(json(&["inspect", &crashes])["end"]["crashed"], true);
    assert_eq!(
        posada(&["logs", &crashes]).expect_status(0).console(),
        "last words"
    );
    posada(&["rm", &crashes]).expect_status(0);
}

#[test]
fn other_places_are_no_guests() {
    for name in ["..", ".", "", "a/b", "/"] {
        posada(&["rm", "-f", name]).expect_refusal(1, &["there is no running guest named"]);
    }
}

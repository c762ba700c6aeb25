//! What happens to guests is told to who listens.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{self, Command, Stdio};

use nix::sys::signal::Signal;
use posada_tests::guest::{TempFile, command};
use posada_tests::posada::binary;
use posada_tests::running::until;
use posada_tests::stand_in::{StandIn, begin_lines, line};
use posada_tests::{Guest, Running, Script, guest, http, posada};
use serde_json::{Value, json};

/// A name that no other test's guest has.
fn name(test: &str) -> String {
    format!("events-{test}-{}", process::id())
}

/// `posada events` with these arguments, which listens by now.
fn listen(arguments: &[&str]) -> Running {
    listening(Running::of(command(&[&["events"], arguments].concat())))
}

/// When it does.
fn listening(events: Running) -> Running {
    let files = PathBuf::from(format!("/proc/{}/fdinfo", events.pid()));
    until("it watches", || {
        let files = fs::read_dir(&files).into_iter().flatten().flatten();
        let mut infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        infos.any(|info| info.contains("inotify wd:"))
    });
    events
}

/// A guest that ends when it is sent a full stop.
fn begin(name: &str) -> Running {
    let script = Script::new().say("ready").echo_until(b'.').triple_fault();
    let mut guest = Guest::payload(&script.code()).named(name).start();
    guest.wait_for("ready");
    guest
}

/// The next event, which is to be of this kind.
#[track_caller]
fn next(events: &mut Running, kind: &str) -> Value {
    let line = events.wait_for("\n");
    let event: Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(event["event"], kind, "{line}");
    event
}

#[test]
fn all_that_happens_to_a_guest_is_told_in_order() {
    let name = name("all");
    let place = TempFile::new("empty", "");
    let snapshot = place.directory().join("s");
    let snapshot = snapshot.to_str().unwrap();
    let mut events = listen(&["--json", &name]);
    let mut others = listen(&[&format!("{name}-other")]);

    let guest = begin(&name);
    assert_eq!(next(&mut events, "started")["guest"], name.as_str());
    posada(&["pause", &name]).expect_status(0);
    next(&mut events, "paused");
    posada(&["resume", &name]).expect_status(0);
    next(&mut events, "resumed");
    posada(&["snapshot", &name, snapshot]).expect_status(0);
    assert_eq!(next(&mut events, "snapshot")["directory"], snapshot);
    posada(&["rewind", &name, snapshot]).expect_status(0);
    assert_eq!(next(&mut events, "rewound")["directory"], snapshot);
    posada(&["stop", &name, "--timeout", "1"]).expect_status(0);
    next(&mut events, "stopping");
    assert_eq!(next(&mut events, "ended")["why"], "was ended");
    guest.wait().expect_status(0);

    // Another one of its name.
    let mut guest = begin(&name);
    let began = next(&mut events, "started")["at_ms"].as_u64();
    guest.send(".");
    guest.wait().expect_status(3);
    let crashed = next(&mut events, "crashed");
    assert!(
        crashed["why"]
            .as_str()
            .is_some_and(|why| why.contains("triple fault"))
    );
    assert!(crashed["at_ms"].as_u64() >= began, "{crashed}");

    let other = begin(&format!("{name}-other"));
    others.wait_for("-other  started\n");
    other.signal(Signal::SIGKILL);
    others.wait_for("-other  crashed: its process was killed\n");
    assert!(
        !others.printed().contains(&format!("{name}  ")),
        "{}",
        others.printed()
    );
}

#[test]
fn that_a_guest_was_started_long_ago_is_no_news() {
    let name = name("old");
    let mut guest = begin(&name);
    let mut events = listen(&["--json", &name]);
    posada(&["pause", &name]).expect_status(0);
    next(&mut events, "paused");
    posada(&["resume", &name]).expect_status(0);
    next(&mut events, "resumed");
    guest.send(".");
    guest.wait().expect_status(3);
    next(&mut events, "crashed");
}

/// A line of JSON, as a guest tells that something has happened.
fn told(name: &str, kind: &str) -> String {
    json!({ "guest": name, "at_ms": u64::MAX, "event": kind, "why": "so" }).to_string()
}

/// Whoever listens to what stands in for a guest.
fn listener(guest: &StandIn) -> UnixStream {
    let (stream, asked) = guest.accept();
    assert!(asked.starts_with("GET /posada/v1/events "), "{asked}");
    begin_lines(&stream);
    stream
}

#[test]
fn the_next_guest_of_a_name_is_heard_when_the_last_one_has_said_all() {
    let name = name("next");
    let mut events = listen(&["--json", &name]);
    let mut guest = StandIn::new(&name);
    let first = listener(&guest);
    line(&first, &told(&name, "started"));
    next(&mut events, "started");
    guest.begin_anew();
    line(&first, &told(&name, "ended"));
    next(&mut events, "ended");
    drop(first);
    let second = listener(&guest);
    line(&second, &told(&name, "paused"));
    next(&mut events, "paused");
}

#[test]
fn what_is_no_event_is_said_to_be_none_and_a_guest_that_runs_has_not_crashed() {
    let name = name("foreign");
    let mut events = listen(&["--json", &name]);
    let guest = StandIn::new(&name);
    let stream = listener(&guest);
    line(&stream, &told(&name, "started"));
    next(&mut events, "started");
    line(&stream, &told(&name, "transfigured"));
    events.wait_for_message("no event");
    line(&stream, &told(&name, "paused"));
    next(&mut events, "paused");
    drop(stream);
    events.wait_for_message("tells no more events");
    assert!(!events.printed().contains("crashed"), "{}", events.printed());
}

#[test]
fn that_a_guest_cannot_be_heard_is_said() {
    let name = name("unheard");
    // Standard input, output and error, what tells of changes, and one that is for a look at the directory.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -n 5; exec \"$0\" events \"$1\""])
        .arg(binary())
        .arg(&name)
        .env("XDG_RUNTIME_DIR", guest::runtime_directory())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut events = listening(Running::of(shell));
    let guest = begin(&name);
    events.wait_for_message(&format!(
        "the guest '{name}' does not answer: Too many open files"
    ));
    drop(guest);
}

#[test]
fn a_client_of_the_api_hears_of_the_start_and_the_end() {
    let name = name("api");
    let mut guest = begin(&name);
    let directory = guest::runtime_directory().join("posada").join(&name);
    let mut stream = BufReader::new(UnixStream::connect(directory.join("control.sock")).unwrap());
    let request = http::text("GET", "/posada/v1/events", "");
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut heard = String::new();
    while !heard.contains(r#""event":"started""#) {
        assert_ne!(stream.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    guest.send(".");
    guest.wait().expect_status(3);
    stream.read_to_string(&mut heard).unwrap();
    assert!(heard.contains(r#""event":"crashed""#), "{heard}");
}

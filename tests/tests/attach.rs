//! People at the console of a guest that another process runs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{self, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use posada_tests::script::DATA;
use posada_tests::{Guest, Running, Script, guest, http, posada};

/// A name that no other test's guest has.
fn name(test: &str) -> String {
    format!("attach-{test}-{}", process::id())
}

/// A guest that says it is ready, and sends back what is typed, up to a full stop.
fn echoing(name: &str) -> Running {
    let script = Script::new().say("ready").echo_until(b'.').say("bye");
    let mut guest = Guest::payload(&script.code()).named(name).start();
    guest.wait_for("ready");
    guest
}

/// Somebody at its console by pipes.
fn on_pipes(name: &str) -> Running {
    let mut command = guest::command(&["attach", name]);
    command.stdin(Stdio::piped());
    Running::of(command)
}

fn socket(name: &str) -> PathBuf {
    let directory = guest::runtime_directory().join("posada").join(name);
    directory.join("control.sock")
}

#[test]
fn several_see_what_was_printed_and_type_and_one_leaves() {
    let name = name("several");
    let mut guest = echoing(&name);
    let (mut person, before) = guest::on_terminal(&["attach", &name]);
    let mut script = on_pipes(&name);
    for watcher in [&mut person, &mut script] {
        watcher.wait_for("ready");
    }
    person.send("from a person,");
    for watcher in [&mut person, &mut script, &mut guest] {
        watcher.wait_for("from a person,");
    }
    script.send("from a script,");
    for watcher in [&mut script, &mut person, &mut guest] {
        watcher.wait_for("from a script,");
    }
    person.send("\x01h");
    person.wait_for("Ctrl-A d");
    person.send("\x01d");
    let left = person.wait().expect_status(0);
    assert!(left.console().ends_with("goes on\r\n"), "{}", left.console());
    assert_eq!(left.terminal, Some(before), "the terminal is as it was");
    script.send("still there.");
    let seen = script.wait().expect_status(0);
    assert!(seen.console().ends_with("still therebye"), "{}", seen.console());
    guest.wait().expect_status(0);
}

#[test]
fn whoever_is_there_can_end_the_guest_and_has_the_terminal_back() {
    let name = name("ended");
    let guest = echoing(&name);
    let (mut person, before) = guest::on_terminal(&["attach", &name]);
    person.wait_for("ready");
    person.send("\x01x");
    let left = person.wait().expect_status(0);
    assert!(left.console().ends_with("was ended\r\n"), "{}", left.console());
    assert_eq!(left.terminal, Some(before));
    guest.wait().expect_status(0);
}

#[test]
fn a_signal_gives_the_terminal_back_and_leaves_the_guest_alone() {
    let name = name("signal");
    let mut guest = echoing(&name);
    let (mut person, before) = guest::on_terminal(&["attach", &name]);
    person.wait_for("ready");
    person.signal(Signal::SIGTERM);
    let left = person.wait().expect_status(128 + Signal::SIGTERM as i32);
    assert_eq!(left.terminal, Some(before));
    guest.send(".");
    guest.wait().expect_status(0);
}

#[test]
fn piped_input_arrives_complete_and_the_guest_is_watched_to_its_end() {
    let name = name("piped");
    let guest = echoing(&name);
    let input: String = (0..2048).map(|number| format!("line {number:9}\n")).collect();
    let mut script = on_pipes(&name);
    script.send(&input);
    script.send(".");
    script.end_input();
    let seen = script.wait().expect_status(0).console();
    assert!(seen == format!("ready{input}bye"), "{} bytes", seen.len());
    guest.wait().expect_status(0);
}

/// More bytes than a pipe, a socket and the ring hold, of which the first and the last have 64 KiB: pipe(7), socket(7).
fn much() -> usize {
    let socket = fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap();
    socket.trim().parse::<usize>().unwrap() + (192 << 10)
}

#[test]
fn who_is_slow_holds_nobody_up_and_is_told_what_is_left_out() {
    let (name, much) = (name("slow"), much());
    let script = Script::new()
        .say("ready")
        .echo_until(b'g')
        .print(DATA, much as u64)
        .say("done")
        .echo_until(b'.');
    let code = script.code_and(&vec![b'x'; much]);
    let mut guest = Guest::payload(&code).named(&name).start();
    guest.wait_for("ready");
    let mut slow = on_pipes(&name);
    slow.wait_for("ready");
    guest.send("g");
    guest.wait_for("done");
    slow.wait_for("bytes are left out]");
    slow.wait_for("done");
    guest.send(".");
    guest.wait().expect_status(0);
    let seen = slow.wait().expect_status(0);
    assert!(seen.stdout.len() < much, "{} bytes", seen.stdout.len());
}

#[test]
fn clients_that_are_gone_take_no_place() {
    let name = name("gone");
    let mut guest = echoing(&name);
    let upgrade = "Connection: upgrade\r\nUpgrade: posada-console\r\n";
    for (path, headers) in [("attach", upgrade), ("events", "")] {
        let request = format!("GET /posada/v1/{path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        // More than are served at a time.
        for _ in 0..140 {
            let mut stream = UnixStream::connect(socket(&name)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
            // It sends no more, which is no reason to close it.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_exact(&mut [0; 12]).unwrap();
        }
    }
    http::request(&socket(&name), "GET", "/posada/v1/info", "").expect(200);
    guest.send(".");
    guest.wait().expect_status(0);
}

/// A client that asks for a stream, and the first bytes of its answer.
fn ask_for(name: &str, path: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket(name)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!(
        "GET /posada/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: posada-console\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("it is answered");
    (stream, String::from_utf8_lossy(&status).into_owned())
}

#[test]
fn clients_that_typed_to_a_guest_that_takes_nothing_and_are_gone_take_no_place() {
    let name = name("untaken");
    let script = Script::new().say("ready").halt();
    let mut guest = Guest::payload(&script.code()).named(&name).start();
    guest.wait_for("ready");
    // More than are served at a time, and each types more than waits for a guest.
    for _ in 0..140 {
        let (mut stream, status) = ask_for(&name, "attach");
        assert_eq!(status, "HTTP/1.1 101");
        let mut seen = Vec::new();
        while !seen.ends_with(b"ready") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
        stream.write_all(&[b'x'; 5000]).unwrap();
    }
    posada(&["kill", &name]).expect_status(0);
    guest.wait().expect_status(0);
}

#[test]
fn those_who_watch_leave_room_for_those_who_ask() {
    let name = name("crowd");
    let guest = echoing(&name);
    let watching: Vec<_> = ["attach", "events"]
        .iter()
        .cycle()
        .map(|path| ask_for(&name, path))
        .take_while(|(_, status)| !status.ends_with(" 503"))
        .collect();
    assert_eq!(watching.len(), 64, "docs/api.md");
    posada(&["attach", &name]).expect_refusal(1, &[&name, "64 who watch"]);
    http::request(&socket(&name), "GET", "/posada/v1/events", "").expect(503);
    posada(&["kill", &name]).expect_status(0);
    guest.wait().expect_status(0);
}

#[test]
fn a_console_is_given_to_who_asks_for_one() {
    let name = name("asked");
    let mut guest = echoing(&name);
    http::request(&socket(&name), "GET", "/posada/v1/attach", "").expect_fault(&["Upgrade: posada-console"]);
    http::request(&socket(&name), "PUT", "/posada/v1/attach", "").expect(400);
    guest.send(".");
    guest.wait().expect_status(0);
    guest::posada(&["attach", &name]).expect_refusal(1, &["there is no running guest named", &name]);
}

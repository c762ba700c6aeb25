//! Sockets between guest and host: many streams at once in both directions, and what a user does wrong.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

use nix::sys::signal::Signal;
use posada_tests::vsock::call;
use posada_tests::{Guest, posada};
use vmm_sys_util::tempdir::TempDir;

const STREAMS: usize = 50;
const BYTES: usize = 10_000_000;

struct Socket {
    _directory: TempDir,
    path: PathBuf,
}

impl Socket {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        let path = directory.as_path().join("v.sock");
        Self {
            _directory: directory,
            path,
        }
    }

    /// The socket that the guest reaches as this port.
    fn port(&self, port: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!("_{port}"));
        name.into()
    }

    fn bare(&self, command_line: &str) -> Guest {
        Guest::bare(command_line).arg("--vsock").arg(&self.path)
    }
}

/// What stream `number` sends: no two streams, and no two packets of one, are alike.
fn pattern(number: usize) -> &'static [u8] {
    const APART: usize = 4097;
    static BYTES_OF_ALL: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES_OF_ALL.get_or_init(|| {
        let mut state = 1_u32;
        let mut next = |_| {
            // The linear congruential generator of Numerical Recipes.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()
        };
        let words = (BYTES + STREAMS * APART) / 4 + 1;
        (0..words).flat_map(&mut next).collect()
    });
    &bytes[number * APART..][..BYTES]
}

/// Sends `data`, and checks that the other side sends it back.
fn comes_back(stream: &UnixStream, data: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| { stream }.write_all(data).expect("the stream takes everything"));
        let mut received = vec![0; data.len()];
        { stream }
            .read_exact(&mut received)
            .expect("all of it comes back");
        assert!(received == data, "the data has changed");
    });
}

#[test]
fn fifty_host_programs_get_back_from_the_guest_what_they_send() {
    let socket = Socket::new();
    let mut guest = socket
        .bare(&format!("program=vsock-echo port=1234 connections={STREAMS}"))
        .start();
    guest.wait_for("listening: cid 3 port 1234\n");
    thread::scope(|scope| {
        for number in 0..STREAMS {
            let path = &socket.path;
            scope.spawn(move || comes_back(&call(path, 1234), pattern(number)));
        }
    });
    let ended = guest.wait().expect_status(0);
    let expected = format!("connections={STREAMS} bytes={}\n", STREAMS * BYTES);
    assert!(ended.console().ends_with(&expected), "not {expected}");
    assert_eq!(ended.messages(), "");
    assert!(!socket.path.exists(), "the socket goes with the guest");
}

#[test]
fn fifty_streams_of_the_guest_come_back_from_a_host_program() {
    let socket = Socket::new();
    let listener = UnixListener::bind(socket.port(77)).expect("a socket");
    let program = format!("program=vsock-call port=77 connections={STREAMS} bytes={BYTES}");
    let guest = socket.bare(&program).start();
    let mut echoes = Vec::new();
    for _ in 0..STREAMS {
        let (stream, _) = listener.accept().expect("the guest connects");
        echoes.push(thread::spawn(move || {
            std::io::copy(&mut { &stream }, &mut { &stream })
        }));
    }
    let ended = guest.wait().expect_status(0);
    for echo in echoes {
        let bytes = echo
            .join()
            .expect("no thread panics")
            .expect("the stream ends in good order");
        assert_eq!(bytes as usize, BYTES);
    }
    let expected = format!("connections={STREAMS} bytes={}\n", STREAMS * BYTES);
    assert_eq!(ended.console(), expected);
    assert_eq!(ended.messages(), "");
}

#[test]
fn the_guest_has_the_cid_that_was_asked_for() {
    let socket = Socket::new();
    let cid = format!("{},cid=4000000000", socket.path.display());
    let mut guest = Guest::bare("program=vsock-echo port=9")
        .arg("--vsock")
        .arg(cid)
        .start();
    guest.wait_for("listening: cid 4000000000 port 9\n");
    comes_back(&call(&socket.path, 9), b"hello");
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_that_is_told_to_end_takes_its_socket_with_it_and_one_that_is_killed_leaves_it_to_the_next() {
    let socket = Socket::new();
    let start = || {
        let mut guest = socket.bare("program=vsock-echo").start();
        guest.wait_for("listening");
        guest
    };
    let guest = start();
    guest.signal(Signal::SIGKILL);
    guest.wait();
    let left = fs::symlink_metadata(&socket.path).expect("SIGKILL leaves it");
    assert!(left.file_type().is_socket());
    let guest = start();
    guest.signal(Signal::SIGTERM);
    guest.wait().expect_status(128 + Signal::SIGTERM as i32);
    assert!(!socket.path.exists());
}

#[test]
fn a_path_that_is_taken_is_refused() {
    let socket = Socket::new();
    let path = socket.path.to_str().expect("temporary files have plain names");
    let listener = UnixListener::bind(&socket.path).expect("a socket");
    let refused = |named: &[&str]| {
        let ended = socket.bare("program=hello").run();
        ended.expect_refusal(1, named);
    };
    refused(&[path, "in use"]);
    drop(listener);
    fs::remove_file(&socket.path).expect("it is there");
    fs::create_dir(&socket.path).expect("a directory");
    refused(&[path, "no socket"]);
    fs::remove_dir(&socket.path).expect("it is there");
    drop(socket);
}

#[test]
fn a_path_that_cannot_be_a_socket_is_refused() {
    let refused = |path: &str, named: &[&str]| {
        let ended = Guest::bare("program=hello").arg("--vsock").arg(path).run();
        ended.expect_refusal(1, named);
    };
    refused("/nonexistent/v.sock", &["/nonexistent/v.sock", "No such file"]);
    refused(&format!("/tmp/{}", "x".repeat(100)), &["too long", "96 bytes"]);
}

#[test]
fn a_cid_that_no_guest_can_have_is_refused() {
    for cid in ["2", "4294967295"] {
        let vsock = format!("v.sock,cid={cid}");
        posada(&["run", "--vsock", &vsock]).expect_refusal(2, &["vsock", cid, "4294967294"]);
    }
    let ended = posada(&["run", "--vsock", "v.sock,sid=5"]).expect_status(2);
    assert!(ended.messages().contains("'sid'"), "{}", ended.messages());
}

//! Many clients of the HTTP API at once, and those that are slow, silent or deaf: the guest and the others go on.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use posada_tests::http;
use posada_tests::served::Served;

/// Many times as many as are served at a time.
const CROWD: usize = 1000;
/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A guest that counts when it is told to, and has begun to.
fn counting(name: &str) -> Served {
    let mut served = Served::start(name, &[]);
    served.begin("count");
    served.running.wait_for("count 1\n");
    served
}

/// The counting guest counts on, from the last number that was seen.
fn counts_on(served: &mut Served, number: &mut u64) {
    *number += 1;
    served.running.send("\n");
    served.running.wait_for(&format!("count {number}\n"));
}

fn end(served: Served) {
    served.put("/posada/v1/kill", "").expect(204);
    served.running.wait().expect_status(0).expect_no_panic();
}

#[test]
fn a_thousand_requests_at_once_are_all_answered() {
    // This process has a file for each of them.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut served = counting("thousand");
    let (socket, mut number) = (served.socket(), 1);
    let request = http::text("GET", "/vm/config", "");
    let streams: Vec<_> = (0..CROWD)
        .map(|_| {
            let mut stream = connect(&socket);
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    counts_on(&mut served, &mut number);
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    counts_on(&mut served, &mut number);
    end(served);
}

#[test]
fn who_sends_and_never_reads_holds_nobody_up() {
    let mut served = counting("deaf");
    let (socket, mut number) = (served.socket(), 1);
    // Asks until neither side has room for more.
    let mut deaf = connect(&socket);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let request = "GET /vm/config HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100);
    let full = (0..10_000).find_map(|_| deaf.write_all(request.as_bytes()).err());
    assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::WouldBlock));
    counts_on(&mut served, &mut number);
    served.get("/").expect(200);
    // Its connection is there as long as it is; a guest ends without waiting for it.
    end(served);
    drop(deaf);
}

#[test]
fn who_sends_a_letter_at_a_time_is_answered_in_the_end_and_holds_nobody_up() {
    let mut served = counting("slow");
    let (socket, mut number) = (served.socket(), 1);
    let mut slow = connect(&socket);
    let mut half = connect(&socket);
    half.write_all(b"PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"sta")
        .unwrap();
    for letter in http::text("GET", "/", "").as_bytes() {
        slow.write_all(&[*letter]).unwrap();
        counts_on(&mut served, &mut number);
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Who goes away in the middle of a request is forgotten.
    half.shutdown(Shutdown::Write).unwrap();
    answer.clear();
    half.read_to_string(&mut answer).unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
        "{answer}"
    );
    served.get("/").expect(200);
    end(served);
}

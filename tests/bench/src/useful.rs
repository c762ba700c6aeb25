//! From a snapshot to useful work: until a restored guest answers a request over vsock, beside the time until it runs.
//!
//! With the snapshot's memory in the host's page cache, and without it: a template that was not used for long has to be read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use posada_tests::images;

use crate::snapshots::{Named, command};
use crate::table::{Table, median};

const RUNS: usize = 11;
const PORT: &str = "5000";
/// The guest's memory, and what of it has something in it.
const MEMORY: &str = "128M";

/// Measures it.
pub fn measure(table: &mut Table) {
    let guest = echoing();
    for (what, prefault, cold) in [
        ("page cache warm", "none", false),
        ("page cache cold", "none", true),
        ("page cache cold, prefault all", "all", true),
    ] {
        let times: Vec<_> = (0..RUNS)
            .map(|_| {
                if cold {
                    forget(&guest.place("s").join("memory"));
                }
                until_answer(&guest, prefault)
            })
            .collect();
        let middle = |of: fn(&(f64, f64)) -> f64| median(times.iter().map(of).collect());
        table.remark(format!(
            "restore, {what}: the guest runs after {:.1} ms, a request over vsock is answered after {:.1} ms",
            middle(|time| time.0),
            middle(|time| time.1)
        ));
    }
}

/// A snapshot of a guest that answers requests.
fn echoing() -> Named {
    let kernel = images::bare();
    let kernel = kernel.to_str().expect("a path of plain characters");
    let line = format!("acpi=off program=vsock-echo port={PORT} connections=1000000");
    // Its own place is not known before it is there; each restored guest is given another one.
    let first = std::env::temp_dir().join(format!("posada-bench-{}.sock", std::process::id()));
    let socket = first.to_str().expect("a path of plain characters");
    let arguments = [
        "--memory",
        MEMORY,
        "--kernel",
        kernel,
        "--cmdline",
        &line,
        "--vsock",
        socket,
    ];
    let mut guest = Named::start(&arguments);
    guest.wait_for("listening");
    guest.ask("snapshot", "s", &["--stop"]);
    guest.guest.wait().expect("the guest ends");
    guest
}

/// Milliseconds from exec until the guest runs, and until it has answered.
fn until_answer(guest: &Named, prefault: &str) -> (f64, f64) {
    let socket = guest.place("v.sock");
    let directory = guest.directory.as_path();
    let start = Instant::now();
    let millis = || start.elapsed().as_secs_f64() * 1e3;
    let mut posada = command(directory)
        .arg("restore")
        .arg(guest.place("s"))
        .args(["--background", "--prefault", prefault, "--vsock"])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("posada starts");
    let mut input = posada.stdin.take().expect("its input is piped");
    let mut output = BufReader::new(posada.stdout.take().expect("its output is piped"));
    expect(&mut output, "ready");
    writeln!(input, "go").expect("posada reads");
    expect(&mut output, "runs");
    let runs = millis();
    let stream = UnixStream::connect(&socket).expect("posada listens");
    ask(stream);
    let answered = millis();
    posada.kill().expect("posada can be ended");
    posada.wait().expect("posada ends");
    let _ = std::fs::remove_file(&socket);
    (runs, answered)
}

/// What a posada in the background says of its guest.
fn expect(output: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    output.read_line(&mut line).expect("posada's output can be read");
    assert!(line.starts_with(word), "{line}");
}

/// A request and its answer, by the protocol of posada's vsock.
fn ask(mut stream: UnixStream) {
    writeln!(stream, "CONNECT {PORT}").expect("posada reads");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("posada answers");
    assert!(line.starts_with("OK"), "{line}");
    stream.write_all(b"work").expect("the guest reads");
    let mut answer = [0; 4];
    reader.read_exact(&mut answer).expect("the guest answers");
    assert_eq!(&answer, b"work");
}

/// Has the host drop a file from its page cache.
fn forget(path: &Path) {
    let file = File::open(path).expect("the snapshot's memory");
    // SAFETY: takes a descriptor and numbers; it changes no data.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0, "the page cache can be told to drop a file");
}

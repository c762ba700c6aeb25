//! The host's side of a guest's socket device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a guest may be silent on a stream: several times what the slowest one needs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(300);

/// Connects to a port of the guest's, as users of Firecracker do.
///
/// # Panics
/// If nobody listens there.
#[track_caller]
pub fn call(socket: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("posada listens");
    let limited = stream.set_read_timeout(Some(DEADLINE));
    limited.expect("a time limit");
    writeln!(stream, "CONNECT {port}").expect("posada reads");
    let mut answer = String::new();
    // Byte by byte, so that nothing behind the line is taken.
    let mut reader = BufReader::with_capacity(1, &stream);
    reader.read_line(&mut answer).expect("posada answers");
    let host_port = answer.trim_end().strip_prefix("OK ").expect(&answer);
    assert!(host_port.parse::<u32>().is_ok(), "{answer}");
    stream
}

//! The host's side of a guest's socket device.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Connects to a port of the guest's, as users of Firecracker do.
///
/// # Panics
/// If nobody listens there.
#[track_caller]
pub fn call(socket: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).expect("posada listens");
    writeln!(stream, "CONNECT {port}").expect("posada reads");
    let mut answer = String::new();
    // Byte by byte, so that nothing behind the line is taken.
    let mut reader = BufReader::with_capacity(1, &stream);
    reader.read_line(&mut answer).expect("posada answers");
    let host_port = answer.trim_end().strip_prefix("OK ").expect(&answer);
    assert!(host_port.parse::<u32>().is_ok(), "{answer}");
    stream
}

//! What stands in for a guest's process: found by the guest's name, and answers as no posada does.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};

use crate::guest::runtime_directory;

/// In milliseconds; longer than anybody takes to ask on a busy machine.
const PATIENCE: u16 = 60_000;

/// A guest's directory with its lock and its socket, until it is dropped.
pub struct StandIn {
    directory: PathBuf,
    listener: UnixListener,
    _lock: File,
}

impl StandIn {
    /// For the guest `name`.
    pub fn new(name: &str) -> Self {
        let directory = runtime_directory().join("posada").join(name);
        fs::create_dir_all(&directory).expect("a directory for a guest");
        let lock = File::open(&directory).expect("a directory can be opened");
        lock.try_lock().expect("it is nobody else's");
        Self {
            listener: listen(&directory),
            directory,
            _lock: lock,
        }
    }

    /// Has another socket in place of this one, as the next guest of this name has.
    pub fn begin_anew(&mut self) {
        fs::remove_file(self.directory.join("control.sock")).expect("the socket is there");
        self.listener = listen(&self.directory);
    }

    /// The next who asks, and the first line of what is asked.
    ///
    /// # Panics
    /// If nobody does.
    #[track_caller]
    pub fn accept(&self) -> (UnixStream, String) {
        let mut asked = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut asked, PATIENCE), Ok(1), "nobody asks");
        let (mut stream, _) = self.listener.accept().expect("somebody has asked");
        stream
            .set_read_timeout(Some(Duration::from_millis(PATIENCE.into())))
            .expect("it can give up");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request comes as a whole");
            head.extend(byte);
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        (stream, String::from_utf8_lossy(line).into_owned())
    }
}

fn listen(directory: &Path) -> UnixListener {
    UnixListener::bind(directory.join("control.sock")).expect("a socket can be there")
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Fails when a test that fails has removed it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Answers with this status and this text, JSON.
pub fn answer(mut stream: &UnixStream, status: u16, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n");
    let length = match status {
        204 => String::new(),
        _ => format!("Content-Length: {length}\r\n"),
    };
    // Fails when nobody waits for it.
    let _ = stream.write_all(format!("{head}{length}\r\n{body}").as_bytes());
}

/// Begins an answer whose lines come one by one, until the connection is closed.
pub fn begin_lines(mut stream: &UnixStream) {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .expect("somebody reads");
}

/// One of these lines.
pub fn line(mut stream: &UnixStream, text: &str) {
    let chunk = format!("{:x}\r\n{text}\n\r\n", text.len() + 1);
    stream.write_all(chunk.as_bytes()).expect("somebody reads");
}

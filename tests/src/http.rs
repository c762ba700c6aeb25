//! A client of guests' HTTP sockets, as plain as one can be: what is sent and what comes back are there to be seen.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status; 0 if the connection was closed without one.
    pub status: u16,
    /// What follows the headers.
    pub body: String,
}

impl Reply {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or(0),
            body: body.to_owned(),
        }
    }

    /// The body's JSON.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the status, and that of a refusal the body says why.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status >= 400 {
            let fault = self.json();
            assert!(
                fault["fault_message"].as_str().is_some_and(|why| !why.is_empty()),
                "{self:?}"
            );
        }
        self
    }

    /// Checks that it was refused, with a sentence that has all of `named`.
    #[track_caller]
    pub fn expect_fault(self, named: &[&str]) {
        let reply = self.expect(400);
        let fault = reply.json()["fault_message"].to_string();
        for name in named {
            assert!(fault.contains(name), "'{name}' is not named in: {fault}");
        }
    }
}

/// Sends a request with this body to the socket, and returns what is answered.
///
/// # Panics
/// If nobody listens there, or takes too long.
#[track_caller]
pub fn request(socket: &Path, method: &str, path: &str, body: &str) -> Reply {
    raw(socket, text(method, path, body).as_bytes()).expect("the socket is served")
}

/// A request as it is sent.
pub fn text(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    let length = if length == 0 {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n{body}")
}

/// Sends these bytes and the end of the stream, and returns what is answered.
///
/// # Errors
/// Nobody listens, or takes too long.
pub fn raw(socket: &Path, bytes: &[u8]) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Who refuses need not read it all.
    unless_closed(stream.write_all(bytes))?;
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // What is not read of the request resets the connection, behind the answer.
    unless_closed(stream.read_to_end(&mut answer).map(drop))?;
    Ok(Reply::of(&String::from_utf8_lossy(&answer)))
}

/// That the other end has closed the connection is its right.
fn unless_closed(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
        done => done,
    }
}

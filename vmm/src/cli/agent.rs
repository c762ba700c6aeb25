//! The way to the agent of a running guest, through its socket device. What comes from there is a guest's word: it is bounded, and what
//! is shown of it has no power over a terminal.

use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use guest_agent::frame::{Frame, Incoming, send_json};
use guest_agent::request::{Failed, PORT, Request, VERSION, read_greeting};
use vmm::lifecycle::Phase;

use super::guests::inspect;
use super::{FAILURE, Failure, say};

/// When an agent must have greeted: several times what a slow and busy guest needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer to `CONNECT`, in bytes: `OK 4294967295` and the line's end.
const MAX_ANSWER: u64 = 14;
/// More of a guest's sentence is not shown.
const MAX_SENTENCE: usize = 2000;

/// How often it is tried whether an agent listens by now.
const INTERVAL: Duration = Duration::from_millis(50);
/// What is waited for no longer than this is not talked of.
const QUIETLY: Duration = Duration::from_secs(1);

/// What a command has to say about an agent that is not there yet.
#[derive(Args, Clone, Copy)]
pub struct Waiting {
    /// Wait so long for the agent of a guest that is still starting
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0)]
    wait: u32,
}

impl Waiting {
    fn time(self) -> Duration {
        Duration::from_secs(self.wait.into())
    }

    /// How long a guest that is called now may say nothing: one whose kernel is still starting does not even refuse.
    fn patience(self, waited: Duration) -> Duration {
        PATIENCE.max(self.time().saturating_sub(waited))
    }
}

/// An agent that has been asked for something.
pub struct Agent {
    /// Its guest's name.
    pub guest: String,
    /// The stream to it.
    pub stream: UnixStream,
    /// What has come from it.
    pub incoming: Incoming,
}

impl Agent {
    /// Asks the agent of the running guest `name`.
    ///
    /// # Errors
    /// There is no such guest, or no agent in it that understands.
    pub fn ask(name: &str, request: &Request, waiting: Waiting) -> Result<Self, Failure> {
        let guest = inspect(name)?;
        if guest.state == Phase::Paused {
            return Err(Failure::Other(format!(
                "the guest '{name}' is paused: let it go on with 'posada resume {name}'"
            )));
        }
        let path = guest.config.vsock.and_then(|vsock| vsock.path).ok_or_else(|| {
            Failure::Other(format!(
                "the guest '{name}' has no socket device, by which its agent is reached: start it with --vsock"
            ))
        })?;
        let mut stream = call(name, &path, waiting)?;
        send_json(&mut stream, request, |json| Frame::Request(json)).map_err(|error| match error.kind() {
            ErrorKind::InvalidInput => Failure::Other(format!("the command is too long: {error}")),
            _ => lost(name, &error),
        })?;
        Ok(Self {
            guest: name.to_owned(),
            stream,
            incoming: Incoming::default(),
        })
    }

    /// Why the conversation ended before its time.
    pub fn lost(&self, error: &io::Error) -> Failure {
        lost(&self.guest, error)
    }
}

/// Connects to the agent, and hears that it is one.
fn call(name: &str, path: &Path, waiting: Waiting) -> Result<UnixStream, Failure> {
    let start = Instant::now();
    let unreachable = |error: io::Error| {
        Failure::Other(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "the agent of '{name}' has said nothing in {} s: the guest may be starting, or stuck",
                start.elapsed().as_secs()
            ),
            _ if nobody_listens(&error) => format!(
                "no agent listens in the guest '{name}': if it is still starting, wait for it with --wait SECONDS; \
                 its image may also have none (docs/agent.md)"
            ),
            _ => format!(
                "cannot reach the agent of '{name}' through '{}': {error}",
                path.display()
            ),
        })
    };
    match greet_in_time(name, path, waiting, start).map_err(unreachable)? {
        (stream, Some(VERSION)) => Ok(stream),
        (_, Some(other)) => Err(Failure::Other(format!(
            "the agent in the guest '{name}' speaks version {other} and this posada version {VERSION}: \
             put the agent that goes with this posada into the guest's image (docs/agent.md)"
        ))),
        (_, None) => Err(Failure::Other(format!(
            "what listens at port {PORT} in the guest '{name}' is no agent of posada's: \
             end it there, and start the agent (docs/agent.md)"
        ))),
    }
}

/// A stream to what listens at the agent's port, and the version that it speaks if it is an agent.
type Greeted = (UnixStream, Option<u16>);

/// Tries until somebody listens, or the time from the `start` is over.
fn greet_in_time(name: &str, path: &Path, waiting: Waiting, start: Instant) -> io::Result<Greeted> {
    let mut told = !io::stderr().is_terminal();
    loop {
        match greet(path, waiting.patience(start.elapsed())) {
            Err(error) if nobody_listens(&error) && start.elapsed() < waiting.time() => {
                if !told && start.elapsed() > QUIETLY {
                    told = true;
                    say(format_args!("posada: waiting for the agent of {name}"));
                }
                thread::sleep(INTERVAL);
            }
            outcome => return outcome,
        }
    }
}

fn greet(path: &Path, patience: Duration) -> io::Result<Greeted> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    writeln!(stream, "CONNECT {PORT}")?;
    if !is_connected(&stream)? {
        return Ok((stream, None));
    }
    let version = read_greeting(&mut stream)?;
    stream.set_read_timeout(None)?;
    Ok((stream, version))
}

/// Whether the guest has refused the stream, or has ended it without a word.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// Reads the line that says that the guest has taken the stream, and nothing behind it.
fn is_connected(stream: &UnixStream) -> io::Result<bool> {
    let mut line = Vec::new();
    // Byte by byte: what follows is the agent's greeting.
    BufReader::with_capacity(1, stream.take(MAX_ANSWER)).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Ok(line.starts_with(b"OK ")),
        _ if line.len() as u64 == MAX_ANSWER => Ok(false),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// Why a conversation with the agent of `name` ended before its time.
pub fn lost(name: &str, error: &io::Error) -> Failure {
    Failure::Other(match error.kind() {
        // tar's, too.
        ErrorKind::InvalidData | ErrorKind::Other => {
            format!(
                "the agent of '{name}' says what no agent does: {}",
                sentence(&error.to_string())
            )
        }
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            format!(
                "the agent of '{name}' is gone: the guest, or the agent in it, has ended or was taken back to a snapshot"
            )
        }
        _ => format!("the agent of '{name}' cannot be talked to: {error}"),
    })
}

/// What the agent says that it could not do.
pub fn failure(json: &[u8]) -> Failure {
    match serde_json::from_slice::<Failed>(json) {
        Ok(Failed { status, message }) => Failure::Elsewhere {
            message: sentence(&message),
            status: status.max(FAILURE),
        },
        Err(_) => Failure::Other("the agent could not do it, and does not say why".to_owned()),
    }
}

/// A guest's words for a person: one line, and nothing that a terminal would obey.
pub fn sentence(words: &str) -> String {
    let letters = words.chars().take(MAX_SENTENCE);
    letters
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_one_bounded_line() {
        assert_eq!(sentence("no\x1b[2J such\nfile"), "no [2J such file");
        assert_eq!(sentence(&"x".repeat(1 << 20)).len(), MAX_SENTENCE);
    }

    #[test]
    fn a_failure_is_never_a_success() {
        for json in [&br#"{"status":0,"message":"m"}"#[..], b"{}", b"\xff"] {
            assert_ne!(failure(json).status(), 0);
        }
        assert_eq!(failure(br#"{"status":127,"message":"m"}"#).status(), 127);
    }
}

//! `posada cp`: files and trees of files, into a running guest and out of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use guest_agent::archive::{CopyError, pack};
use guest_agent::data::{self, Meaning, Reader};
use guest_agent::frame::{Frame, Malformed, PIECE};
use guest_agent::landing::Landing;
use guest_agent::request::Request;
use nix::sys::signal::{SigSet, Signal};

use super::agent::{Agent, Waiting, failure, lost, sentence};
use super::progress::Counted;
use super::{Failure, SIGNALLED, say};

pub const EXAMPLES: &str = "\
Examples:
  posada cp site.conf web:/etc/             a file into a directory of the guest
  posada cp web:/var/log .                  a tree, as ./log
  posada cp src/. web:/srv/app              what is in a directory
  mkfs.ext4 ... | posada cp - web:/disk     standard input, as a file
  posada cp web:/etc/motd - | head -1       a file, to standard output

A copy is put in its place when all of it is there. Modes and times are kept, owners are not; symbolic links are copied as links, but \
for one that is named here.
";

const STANDARD: &str = "-";

/// Copies between this machine and a guest.
#[derive(Args)]
pub struct Copy {
    #[command(flatten)]
    waiting: Waiting,
    /// What to copy: a path here, a guest's name and a path there, or - for standard input
    #[arg(value_name = "SRC|NAME:SRC", value_parser = OsStringValueParser::new().try_map(place))]
    from: Place,
    /// Where to: likewise; into it, if it is a directory
    #[arg(value_name = "NAME:DST|DST", value_parser = OsStringValueParser::new().try_map(place))]
    to: Place,
}

/// One of the two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Standard input or output.
    Standard,
    /// A path of this machine's.
    Here(PathBuf),
    /// A path in a guest.
    There { guest: String, path: String },
}

/// Reads an end as scp(1) does: a colon before the first slash ends a guest's name.
fn place(text: OsString) -> Result<Place, String> {
    let text = text.into_string().map_err(|_| {
        "its name is not UTF-8, as the agent needs it: rename it, or copy the directory that it is in"
            .to_owned()
    })?;
    let guest = text.split_once(':').filter(|(guest, _)| !guest.contains('/'));
    match guest {
        _ if text == STANDARD => Ok(Place::Standard),
        None if text.is_empty() => Err("there is no file without a name".to_owned()),
        None => Ok(Place::Here(text.into())),
        Some((guest, path)) if guest.is_empty() || path.is_empty() => {
            Err("write it as NAME:PATH, or as ./PATH for a file here".to_owned())
        }
        Some((guest, path)) => Ok(Place::There {
            guest: guest.to_owned(),
            path: path.to_owned(),
        }),
    }
}

impl Copy {
    /// Copies, and says nothing of it.
    pub fn execute(self) -> Result<(), Failure> {
        use Place::{Here, Standard, There};
        let waiting = self.waiting;
        let ask = |guest: String| move |request: &Request| Agent::ask(&guest, request, waiting);
        match (self.from, self.to) {
            (Here(from), There { guest, path }) => put(&from, path, ask(guest)),
            (Standard, There { guest, path }) => put_input(path, ask(guest)),
            (There { guest, path }, Here(to)) => get(path, &to, ask(guest)),
            (There { guest, path }, Standard) => get_output(path, ask(guest)),
            (There { .. }, There { .. }) => {
                Err(wrong("both ends are in guests: copy by way of this machine"))
            }
            _ => Err(wrong("neither end is in a guest: write one of them as NAME:PATH")),
        }
    }
}

fn wrong(why: &str) -> Failure {
    Failure::Usage(why.to_owned())
}

/// What a path's last part is called; the current directory, the one above and the root have no name of their own.
fn name_of(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    match bytes == b"." || bytes.ends_with(b"/.") {
        true => None,
        false => path.file_name(),
    }
}

/// Asks the agent of the guest that is one of the ends.
trait Ask: FnOnce(&Request) -> Result<Agent, Failure> {}

impl<T: FnOnce(&Request) -> Result<Agent, Failure>> Ask for T {}

/// Sends what is at `from`.
fn put(from: &Path, path: String, ask: impl Ask) -> Result<(), Failure> {
    // Before the guest is told of it.
    fs::metadata(from)
        .map_err(|error| Failure::Other(format!("cannot read '{}': {error}", from.display())))?;
    // Nothing is lost: a name that is not UTF-8 has been refused.
    let name = name_of(from).map(|name| name.to_string_lossy().into_owned());
    let plain = false;
    let agent = ask(&Request::Put { path, name, plain })?;
    let to = Counted::new(data::writer(&agent.stream, |bytes| Frame::Input(bytes)));
    let packed = pack(from, to);
    let left_out = ended(agent, packed)?;
    if left_out.is_any() {
        say(format_args!("posada: {left_out}"));
    }
    Ok(())
}

fn put_input(path: String, ask: impl Ask) -> Result<(), Failure> {
    let (name, plain) = (None, true);
    let agent = ask(&Request::Put { path, name, plain })?;
    let mut to = Counted::new(data::writer(&agent.stream, |bytes| Frame::Input(bytes)));
    let sent = send_input(&mut to);
    drop(to);
    ended(agent, sent)
}

fn send_input(to: &mut impl Write) -> Result<(), CopyError> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match io::stdin().read(&mut buffer) {
            Ok(0) => return Ok(to.flush()?),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            count => count.map_err(|source| CopyError::Cannot {
                doing: "read",
                path: "standard input".into(),
                source,
            })?,
        };
        to.write_all(&buffer[..count])?;
    }
}

/// Ends what was sent, and hears what has become of it.
fn ended<T>(mut agent: Agent, sent: Result<T, CopyError>) -> Result<T, Failure> {
    let sent = match sent {
        Ok(sent) => Frame::InputEnd.send(&mut agent.stream).map(|()| sent),
        Err(CopyError::Stream(error)) => Err(error),
        Err(error) => return Err(Failure::Other(error.to_string())),
    };
    // An agent that takes no more has said why before.
    match (agent.incoming.wait(&mut agent.stream), sent) {
        (Ok(Some(Frame::Exit(0))), Ok(sent)) => Ok(sent),
        (Ok(Some(Frame::Failed(json))), _) => Err(failure(json)),
        (Ok(Some(_)), _) => Err(agent.lost(&Malformed.into())),
        (_, Err(error)) | (Err(error), _) => Err(agent.lost(&error)),
        (Ok(None), _) => Err(agent.lost(&ErrorKind::UnexpectedEof.into())),
    }
}

/// What an agent sends of a file.
fn from_agent(frame: Frame<'_>) -> io::Result<Meaning<'_>> {
    match frame {
        Frame::Output(bytes) => Ok(Meaning::Bytes(bytes)),
        Frame::Error(remark) => Ok(Meaning::Remark(remark)),
        Frame::Exit(0) => Ok(Meaning::End),
        Frame::Failed(json) => Err(io::Error::other(failure(json))),
        _ => Err(Malformed.into()),
    }
}

/// Takes what is in the guest, and puts it at `to`.
fn get(path: String, to: &Path, ask: impl Ask) -> Result<(), Failure> {
    let name = name_of(Path::new(&path)).map(OsStr::to_owned);
    let plain = false;
    let mut agent = ask(&Request::Get { path, plain })?;
    let interrupted = hang_up_on_signals(&agent)?;
    let landed = land(&mut agent, to, name.as_deref());
    match (interrupted.load(Ordering::Relaxed), &landed) {
        // One that is in its place was not interrupted.
        (0, _) | (_, Ok(())) => landed,
        (signal, Err(_)) => process::exit((SIGNALLED + signal).into()),
    }
}

fn land(agent: &mut Agent, to: &Path, name: Option<&OsStr>) -> Result<(), Failure> {
    let failed = |error| match error {
        CopyError::Stream(error) => not_taken(&agent.guest, error),
        error => Failure::Other(error.to_string()),
    };
    let landing = Landing::prepare(to, name).map_err(failed)?;
    let mut from = Reader::new(&agent.stream, &mut agent.incoming, from_agent);
    landing.unpack(Counted::new(&mut from)).map_err(failed)?;
    let remark = from.finish().map_err(|error| not_taken(&agent.guest, error))?;
    landing.finish().map_err(failed)?;
    if let Some(remark) = remark {
        say(format_args!(
            "posada: {}",
            sentence(&String::from_utf8_lossy(&remark))
        ));
    }
    Ok(())
}

/// Why it did not come: what the agent has said, or why it says nothing.
fn not_taken(guest: &str, error: io::Error) -> Failure {
    error.downcast().unwrap_or_else(|error| lost(guest, &error))
}

/// Has a signal end the stream, and with it the copy, which then leaves nothing behind; a second one ends this process as it is. Returns
/// where the first one's number will be.
fn hang_up_on_signals(agent: &Agent) -> Result<&'static AtomicU8, Failure> {
    static CAME: AtomicU8 = AtomicU8::new(0);
    let ending: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]
        .into_iter()
        .collect();
    let watched = ending.thread_block().map_err(io::Error::from);
    let stream = watched.and_then(|()| agent.stream.try_clone());
    let stream = stream.map_err(|error| Failure::Other(format!("cannot watch for signals: {error}")))?;
    thread::spawn(move || {
        if let Ok(signal) = ending.wait() {
            CAME.store(signal as u8, Ordering::Relaxed);
            // Fails where the stream has ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Ok(signal) = ending.wait() {
            process::exit((SIGNALLED + signal as u8).into());
        }
    });
    Ok(&CAME)
}

fn get_output(path: String, ask: impl Ask) -> Result<(), Failure> {
    let plain = true;
    let mut agent = ask(&Request::Get { path, plain })?;
    let mut from = Reader::new(&agent.stream, &mut agent.incoming, from_agent);
    let mut counted = Counted::new(&mut from);
    let mut buffer = vec![0; PIECE];
    let mut stdout = io::stdout();
    loop {
        let count = counted.read(&mut buffer);
        let count = count.map_err(|error| not_taken(&agent.guest, error))?;
        match stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush()) {
            Ok(()) if count > 0 => {}
            Ok(()) => return Ok(()),
            // Who reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::Other(format!("cannot write standard output: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_any_slash_ends_a_guests_name() {
        let there = |guest: &str, path: &str| Place::There {
            guest: guest.to_owned(),
            path: path.to_owned(),
        };
        for (text, expected) in [
            ("web:/etc/motd", there("web", "/etc/motd")),
            ("web:a:b", there("web", "a:b")),
            ("./a:b", Place::Here("./a:b".into())),
            ("/a:b", Place::Here("/a:b".into())),
            ("file", Place::Here("file".into())),
            ("-", Place::Standard),
        ] {
            assert_eq!(place(text.into()), Ok(expected), "{text}");
        }
        for text in ["", "web:", ":/etc"] {
            assert!(place(text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_directory_that_has_no_name_of_its_own_has_none() {
        for (path, name) in [
            ("/etc/motd", Some("motd")),
            ("dir/", Some("dir")),
            ("dir/.", None),
            (".", None),
            ("..", None),
            ("/", None),
        ] {
            assert_eq!(name_of(Path::new(path)), name.map(OsStr::new), "{path}");
        }
    }
}

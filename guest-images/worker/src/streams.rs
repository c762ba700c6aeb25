//! Conversations with the host: pieces go out, and each is answered by one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use guest_worker::{ENOUGH, HOST_PORT, PIECE, Piece, Place, TCP_HOST};

use crate::{Work, vsock};

/// Pieces that go out before the first answer is read, so that something is always under way.
const AHEAD: u64 = 4;

/// Talks by TCP until the host has had enough. Returns how many pieces went each way.
pub fn tcp(work: &Work) -> io::Result<u64> {
    let mut stream = TcpStream::connect(TCP_HOST)?;
    let (mut sent, mut answered) = (0, 0);
    while !work.is_enough() {
        say(&mut stream, Place::TcpToHost, sent, work)?;
        sent += 1;
        if sent > AHEAD {
            hear(&mut stream, Place::TcpToGuest, answered, work)?;
            answered += 1;
        }
    }
    for number in answered..sent {
        hear(&mut stream, Place::TcpToGuest, number, work)?;
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(sent),
        _ => Err(io::Error::other("the host says more by TCP than it was asked")),
    }
}

/// Talks through vsock until the host has had enough, anew whenever the stream is reset: the piece that was not answered goes out
/// again. Returns how many pieces were answered, and how many streams that took.
pub fn vsock(work: &Work) -> io::Result<(u64, u64)> {
    let (mut answered, mut streams) = (0, 0);
    while !work.is_enough() {
        let mut stream = call()?;
        streams += 1;
        while !work.is_enough() {
            let said = say(&mut stream, Place::VsockToHost, answered, work);
            match said.and_then(|()| hear(&mut stream, Place::VsockToGuest, answered, work)) {
                Ok(()) => answered += 1,
                Err(error) if error.kind() == io::ErrorKind::Other => return Err(error),
                Err(_) => break,
            }
        }
    }
    Ok((answered, streams))
}

/// A stream to the host. A call that is on its way when the guest is frozen may be lost, and is made again.
fn call() -> io::Result<File> {
    const TIMES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    let mut outcome = vsock::connect(HOST_PORT);
    for _ in 1..TIMES {
        if outcome.is_ok() {
            break;
        }
        thread::sleep(PAUSE);
        outcome = vsock::connect(HOST_PORT);
    }
    outcome
}

fn say(stream: &mut impl Write, place: Place, number: u64, work: &Work) -> io::Result<()> {
    let word = work.synced();
    stream.write_all(&Piece { number, word }.at(place))
}

/// Takes the answer of this number, which may be that it is enough.
fn hear(stream: &mut impl Read, place: Place, number: u64, work: &Work) -> io::Result<()> {
    let mut bytes = [0; PIECE];
    stream.read_exact(&mut bytes)?;
    match Piece::read(place, &bytes) {
        Some(piece) if piece.number == number => {
            if piece.word == ENOUGH {
                work.end();
            }
            Ok(())
        }
        other => Err(io::Error::other(format!(
            "{place:?} has {other:?} instead of piece {number}"
        ))),
    }
}

/// Sends back what the host's streams bring, each of which has a thread, for as long as the program runs.
pub fn echo(listener: OwnedFd) {
    while let Ok(stream) = vsock::accept(&listener) {
        thread::spawn(|| send_back(stream));
    }
}

/// A stream that is reset ends like any other.
fn send_back(mut stream: File) -> io::Result<()> {
    let mut bytes = [0; PIECE];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            count => stream.write_all(&bytes[..count])?,
        }
    }
}

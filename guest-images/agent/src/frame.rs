//! Frames: a kind (one byte), the length of what follows (four bytes, little-endian), and that.
//!
//! Whoever reads them trusts nobody: lengths are bounded, and what is no frame ends the conversation.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use thiserror::Error;

use crate::request::Size;

const HEAD: usize = 5;
/// Bytes that a frame may carry.
pub const MAX_LEN: usize = 256 << 10;
/// Bytes of data that are read and sent on at a time.
pub const PIECE: usize = 64 << 10;
/// Bytes of a command's input that may be under way: sent, and not [taken](Frame::Taken) yet. So input that a command does not read
/// never keeps a signal behind it.
pub const WINDOW: usize = 256 << 10;

/// A stream of a command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Standard input.
    Input,
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// One thing that is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// To the agent: what it is asked for, a [`Request`](crate::request::Request) in JSON.
    Request(&'a [u8]),
    /// To the agent: bytes for standard input, or of what is copied. At least one.
    Input(&'a [u8]),
    /// To the agent: that was all of it.
    InputEnd,
    /// To the agent: the terminal has another size.
    Window(Size),
    /// To the agent: a signal for the command, by its number on Linux.
    Signal(u8),
    /// Either way: nobody uses this stream any more.
    Closed(Standard),
    /// From the agent: bytes of standard output, or of what is copied. At least one.
    Output(&'a [u8]),
    /// From the agent: bytes of standard error, or a remark about what is copied. At least one.
    Error(&'a [u8]),
    /// From the agent: so many bytes of input have gone where they belong.
    Taken(u32),
    /// From the agent: it is over, with this exit status.
    Exit(u8),
    /// From the agent: it could not be done, a [`Failed`](crate::request::Failed) in JSON.
    Failed(&'a [u8]),
}

/// What came is no frame.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("what came is no message of posada's or its agent's")]
pub struct Malformed;

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(ErrorKind::InvalidData, malformed)
    }
}

impl<'a> Frame<'a> {
    fn parse(kind: u8, payload: &'a [u8]) -> Result<Self, Malformed> {
        Ok(match (kind, payload) {
            (1, json) => Self::Request(json),
            (2, [_, ..]) => Self::Input(payload),
            (3, []) => Self::InputEnd,
            (4, &[r0, r1, c0, c1]) => Self::Window(Size {
                rows: u16::from_le_bytes([r0, r1]),
                cols: u16::from_le_bytes([c0, c1]),
            }),
            (5, &[number]) => Self::Signal(number),
            (6, [0]) => Self::Closed(Standard::Input),
            (6, [1]) => Self::Closed(Standard::Output),
            (6, [2]) => Self::Closed(Standard::Error),
            (7, [_, ..]) => Self::Output(payload),
            (8, [_, ..]) => Self::Error(payload),
            (9, &[a, b, c, d]) => Self::Taken(u32::from_le_bytes([a, b, c, d])),
            (10, &[status]) => Self::Exit(status),
            (11, json) => Self::Failed(json),
            _ => return Err(Malformed),
        })
    }

    /// Adds the frame's bytes to `to`. It must carry no more than [`MAX_LEN`] bytes.
    pub fn append_to(self, to: &mut Vec<u8>) {
        let mut put = |kind: u8, payload: &[u8]| {
            to.push(kind);
            // No frame that others make is longer, and who reads this one refuses it if it is.
            to.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
            to.extend(payload);
        };
        match self {
            Self::Request(json) => put(1, json),
            Self::Input(bytes) => put(2, bytes),
            Self::InputEnd => put(3, &[]),
            Self::Window(Size { rows, cols }) => {
                put(4, &[rows.to_le_bytes(), cols.to_le_bytes()].concat());
            }
            Self::Signal(number) => put(5, &[number]),
            Self::Closed(stream) => put(6, &[stream as u8]),
            Self::Output(bytes) => put(7, bytes),
            Self::Error(bytes) => put(8, bytes),
            Self::Taken(bytes) => put(9, &bytes.to_le_bytes()),
            Self::Exit(status) => put(10, &[status]),
            Self::Failed(json) => put(11, json),
        }
    }

    /// Sends the frame by itself.
    ///
    /// # Errors
    /// The stream does not take it.
    pub fn send(self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.append_to(&mut bytes);
        to.write_all(&bytes)
    }
}

/// One of the frames that carry bytes.
pub type Carrier = fn(&[u8]) -> Frame<'_>;

/// Sends a frame that carries JSON.
///
/// # Errors
/// It is too long, or the stream does not take it.
pub fn send_json(to: &mut impl Write, what: &impl Serialize, frame: Carrier) -> io::Result<()> {
    let json = serde_json::to_vec(what)?;
    if json.len() > MAX_LEN {
        let why = format!("it has {} bytes, and {MAX_LEN} are the most", json.len());
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    frame(&json).send(to)
}

/// What has come and is not read yet: never more than one frame can have.
pub struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            buffer: vec![0; HEAD + MAX_LEN].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Incoming {
    /// Reads once from the stream; returns how many bytes came, 0 at the stream's end. To be called when there is no whole frame.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = from.read(&mut self.buffer[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// It is none.
    pub fn take(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        let Some((&[kind, a, b, c, d], rest)) = self.buffer[self.start..self.end].split_first_chunk() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > MAX_LEN {
            return Err(Malformed);
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        self.start += HEAD + len;
        Frame::parse(kind, payload).map(Some)
    }

    /// Waits for the next frame; none at the stream's end, where one may have begun.
    ///
    /// # Errors
    /// Those of the stream, or what came is no frame.
    pub fn wait(&mut self, from: &mut impl Read) -> io::Result<Option<Frame<'_>>> {
        loop {
            // Asked for twice because a frame that is returned borrows the buffer.
            if self.has_frame()? {
                return Ok(self.take()?);
            }
            match self.fill(from) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn has_frame(&mut self) -> Result<bool, Malformed> {
        let start = self.start;
        let there = self.take()?.is_some();
        self.start = start;
        Ok(there)
    }
}

/// What is to be sent and has not gone out yet.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Adds a frame.
    pub fn add(&mut self, frame: Frame<'_>) {
        frame.append_to(&mut self.bytes);
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether all has gone out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sends as much as the stream takes without waiting.
    ///
    /// # Errors
    /// Those of the stream, but for that it would have to wait.
    pub fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Who reads slowly may never have all of it. Each byte that is moved is paid for by one that has gone.
        if self.sent >= self.len() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Frame<'static>; 13] = [
        Frame::Request(b"{}"),
        Frame::Input(b"in"),
        Frame::InputEnd,
        Frame::Window(Size { rows: 24, cols: 500 }),
        Frame::Signal(15),
        Frame::Closed(Standard::Input),
        Frame::Closed(Standard::Output),
        Frame::Closed(Standard::Error),
        Frame::Output(b"out"),
        Frame::Error(b"err"),
        Frame::Taken(70_000),
        Frame::Exit(143),
        Frame::Failed(b"{}"),
    ];

    /// A stream that brings so many bytes at a time.
    struct Dripping<'a>(&'a [u8], usize);

    impl Read for Dripping<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(to.len());
            self.0.read(&mut to[..count])
        }
    }

    #[test]
    fn every_frame_comes_as_it_was_sent_however_it_is_cut() {
        let mut bytes = Vec::new();
        ALL.iter().for_each(|frame| frame.append_to(&mut bytes));
        for drip in [1, 2, 7, bytes.len()] {
            let mut stream = Dripping(&bytes, drip);
            let mut incoming = Incoming::default();
            for frame in ALL {
                assert_eq!(incoming.wait(&mut stream).unwrap(), Some(frame));
            }
            assert_eq!(incoming.wait(&mut stream).unwrap(), None);
        }
    }

    /// A stream that takes a byte each time that it is asked.
    struct Trickling(Vec<u8>, bool);

    impl Write for Trickling {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.0.push(bytes[0]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_never_takes_all_that_there_is_does_not_have_it_kept() {
        const MOST: usize = 100;
        let (mut outgoing, mut stream) = (Outgoing::default(), Trickling(Vec::new(), false));
        while stream.0.len() < 100 * MOST {
            while outgoing.len() < MOST {
                outgoing.add(Frame::Output(b"out"));
            }
            outgoing.flush(&mut stream).unwrap();
            assert!(
                outgoing.bytes.capacity() < 5 * MOST,
                "{}",
                outgoing.bytes.capacity()
            );
        }
        let mut frame = Vec::new();
        Frame::Output(b"out").append_to(&mut frame);
        assert!(stream.0.chunks(frame.len()).all(|part| frame.starts_with(part)));
    }

    #[test]
    fn the_longest_frame_fits_and_a_longer_one_is_refused_by_its_head() {
        let longest = vec![b'x'; MAX_LEN];
        let mut bytes = Vec::new();
        Frame::Output(&longest).append_to(&mut bytes);
        let mut incoming = Incoming::default();
        assert_eq!(
            incoming.wait(&mut &bytes[..]).unwrap(),
            Some(Frame::Output(&longest))
        );
        let mut incoming = Incoming::default();
        let mut head = vec![7];
        head.extend((MAX_LEN as u32 + 1).to_le_bytes());
        assert!(incoming.wait(&mut &head[..]).is_err());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (kind, payload) in [
            (0, &b""[..]),
            (12, b""),
            (2, b""),
            (3, b"x"),
            (4, b"123"),
            (5, b""),
            (6, &[3]),
            (7, b""),
            (8, b""),
            (9, b"12345"),
            (10, b"12"),
        ] {
            assert_eq!(Frame::parse(kind, payload), Err(Malformed), "{kind} {payload:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_taken_or_refused(bytes: Vec<u8>, drip in 1_usize..40) {
            let mut incoming = Incoming::default();
            let mut stream = Dripping(&bytes, drip);
            let mut frames = 0;
            while let Ok(Some(_)) = incoming.wait(&mut stream) {
                frames += 1;
            }
            prop_assert!(frames * HEAD <= bytes.len());
        }
    }
}

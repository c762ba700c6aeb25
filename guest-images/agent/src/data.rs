//! Bytes of any number in frames, as a reader and a writer that wait.

use std::io::{self, BufWriter, ErrorKind, Read, Write};

use crate::frame::{Carrier, Frame, Incoming, Malformed, PIECE};

/// Writes each piece as a frame.
struct Framed<W> {
    to: W,
    frame: Carrier,
}

impl<W: Write> Write for Framed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        if !piece.is_empty() {
            (self.frame)(piece).send(&mut self.to)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A writer whose bytes go to `to` in frames. What it still has goes out when it is flushed.
pub fn writer<W: Write>(to: W, frame: Carrier) -> impl Write {
    BufWriter::with_capacity(PIECE, Framed { to, frame })
}

/// What a frame means to who reads data.
pub enum Meaning<'a> {
    /// More of it.
    Bytes(&'a [u8]),
    /// Something about it.
    Remark(&'a [u8]),
    /// There is no more.
    End,
}

/// To the agent: what is copied into the guest.
///
/// # Errors
/// It is something else.
pub fn for_agent(frame: Frame<'_>) -> io::Result<Meaning<'_>> {
    match frame {
        Frame::Input(bytes) => Ok(Meaning::Bytes(bytes)),
        Frame::InputEnd => Ok(Meaning::End),
        _ => Err(Malformed.into()),
    }
}

/// Reads the data that frames bring, until the frame that ends it. A stream that ends before is an error.
pub struct Reader<'a, R> {
    from: R,
    incoming: &'a mut Incoming,
    meaning: fn(Frame<'_>) -> io::Result<Meaning<'_>>,
    /// Bytes that have come, of which those before `read` are read.
    bytes: Vec<u8>,
    read: usize,
    remark: Option<Vec<u8>>,
    ended: bool,
}

impl<'a, R: Read> Reader<'a, R> {
    /// What `from` brings from now on.
    pub fn new(
        from: R,
        incoming: &'a mut Incoming,
        meaning: fn(Frame<'_>) -> io::Result<Meaning<'_>>,
    ) -> Self {
        Self {
            from,
            incoming,
            meaning,
            bytes: Vec::new(),
            read: 0,
            remark: None,
            ended: false,
        }
    }

    /// Waits for the end, before which nothing more may come. Returns the remark if there was one.
    ///
    /// # Errors
    /// More comes, or the stream ends.
    pub fn finish(mut self) -> io::Result<Option<Vec<u8>>> {
        match self.read(&mut [0])? {
            0 => Ok(self.remark),
            _ => Err(Malformed.into()),
        }
    }

    /// Takes frames until there are bytes, or the end.
    fn refill(&mut self) -> io::Result<()> {
        self.bytes.clear();
        self.read = 0;
        while self.bytes.is_empty() && !self.ended {
            let frame = self.incoming.wait(&mut self.from)?;
            let frame = frame.ok_or(ErrorKind::UnexpectedEof)?;
            match (self.meaning)(frame)? {
                Meaning::Bytes(bytes) => self.bytes.extend_from_slice(bytes),
                // One is enough: they are not bounded otherwise.
                Meaning::Remark(_) if self.remark.is_some() => return Err(Malformed.into()),
                Meaning::Remark(remark) => self.remark = Some(remark.to_owned()),
                Meaning::End => self.ended = true,
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.read == self.bytes.len() {
            self.refill()?;
        }
        let count = (&self.bytes[self.read..]).read(to)?;
        self.read += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_any_length_comes_through_frames() {
        for len in [0, 1, PIECE, 3 * PIECE + 7] {
            let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut stream = Vec::new();
            let mut writer = writer(&mut stream, |bytes| Frame::Input(bytes));
            writer.write_all(&data).unwrap();
            writer.flush().unwrap();
            drop(writer);
            Frame::InputEnd.append_to(&mut stream);
            let mut incoming = Incoming::default();
            let mut reader = Reader::new(&stream[..], &mut incoming, for_agent);
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            assert!(back == data, "{len} bytes");
            assert_eq!(reader.finish().unwrap(), None);
        }
    }

    #[test]
    fn data_that_ends_without_an_end_is_an_error() {
        let mut stream = Vec::new();
        Frame::Input(b"half").append_to(&mut stream);
        let mut incoming = Incoming::default();
        let mut reader = Reader::new(&stream[..], &mut incoming, for_agent);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

//! The file of a console that nobody is at. It keeps the last mebibyte of what is printed: what is older is punched out of it
//! (fallocate(2)), so that positions stay what they are and who follows it need not know.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// Bytes that are kept at least.
const KEPT: u64 = 1 << 20;
/// Bytes that are given back at once: a multiple of any page's size.
const STEP: u64 = 1 << 16;

/// A log that takes the place of one that there was.
pub struct LogWriter {
    file: File,
    /// Where it ends, in bytes.
    end: u64,
    /// Where what is kept begins.
    start: u64,
}

impl LogWriter {
    /// An empty log in a file that has just been made.
    pub fn new(file: File) -> Self {
        Self {
            file,
            end: 0,
            start: 0,
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // First: where nothing can be given back, nothing more is taken.
        if self.end - self.start >= KEPT + STEP {
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, how, self.start as i64, STEP as i64)?;
            self.start += STEP;
        }
        let bytes = bytes.get(..STEP as usize).unwrap_or(bytes);
        let written = self.file.write(bytes)?;
        self.end += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads such a file, of which the writer may be taking the beginning away.
pub struct LogReader {
    file: File,
    position: u64,
    /// What comes is the rest of a line whose beginning is gone.
    amid_line: bool,
}

impl LogReader {
    /// From the beginning of what is there.
    pub fn new(file: File) -> Self {
        Self {
            file,
            position: 0,
            amid_line: false,
        }
    }

    /// The next bytes, none if there are no more yet. Where bytes are gone, it goes on with a whole line.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; STEP as usize];
        loop {
            self.amid_line |= self.skip_hole()?;
            let length = self.file.read(&mut bytes)?;
            // What was taken away meanwhile was read as zeros.
            if self.skip_hole()? {
                self.amid_line = true;
                continue;
            }
            self.position += length as u64;
            self.file.seek(SeekFrom::Start(self.position))?;
            bytes.truncate(length);
            if !self.amid_line || length == 0 {
                return Ok(bytes);
            }
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                self.amid_line = false;
                bytes.drain(..=end);
                if !bytes.is_empty() {
                    return Ok(bytes);
                }
            }
            bytes.resize(STEP as usize, 0);
        }
    }

    /// Goes to the next byte that is there; whether there was a hole before it.
    fn skip_hole(&mut self) -> io::Result<bool> {
        let data = match lseek(&self.file, self.position as i64, Whence::SeekData) {
            Ok(data) => data as u64,
            // There is no byte behind this one.
            Err(Errno::ENXIO) => self.file.seek(SeekFrom::Start(self.position))?,
            Err(errno) => return Err(errno.into()),
        };
        let skipped = data > self.position;
        self.position = data;
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn line(number: u64) -> String {
        format!("line {number:9}\n")
    }

    fn read_all(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        loop {
            let piece = reader.read().unwrap();
            if piece.is_empty() {
                return String::from_utf8(text).unwrap();
            }
            text.extend(piece);
        }
    }

    #[test]
    fn who_prints_for_ever_fills_no_more_than_its_share() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LogWriter::new(file.reopen().unwrap());
        let mut early = LogReader::new(file.reopen().unwrap());
        log.write_all(line(0).as_bytes()).unwrap();
        assert_eq!(read_all(&mut early), line(0));
        let last = 5 * KEPT / line(0).len() as u64;
        for number in 1..=last {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        let blocks = file.as_file().metadata().unwrap().blocks() * 512;
        assert!(blocks <= KEPT + 2 * STEP, "{blocks} bytes");

        let kept = read_all(&mut LogReader::new(file.reopen().unwrap()));
        assert!(kept.len() as u64 >= KEPT - 1, "{} bytes", kept.len());
        let first = last + 1 - (kept.len() / line(0).len()) as u64;
        let expected: String = (first..=last).map(line).collect();
        assert!(kept == expected, "whole lines, to the last one");
        assert!(
            read_all(&mut early) == expected,
            "who follows goes on where there is something"
        );
        log.write_all(b"more\n").unwrap();
        assert_eq!(read_all(&mut early), "more\n");
    }

    #[test]
    fn a_host_that_gives_nothing_back_takes_no_more() {
        // A pipe cannot be punched, and stands for a file system that cannot.
        let (_reader, writer) = io::pipe().unwrap();
        let mut log = LogWriter {
            file: std::os::fd::OwnedFd::from(writer).into(),
            end: KEPT + STEP,
            start: 0,
        };
        assert!(log.write(b"more").is_err());
    }
}

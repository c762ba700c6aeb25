//! How far a copy is, on a terminal, when it takes its time.

use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

/// What is over before that is not talked of.
const PATIENCE: Duration = Duration::from_secs(1);
/// The line is written anew so often.
const INTERVAL: Duration = Duration::from_millis(250);

/// A stream whose bytes are counted.
pub struct Counted<T> {
    stream: T,
    bytes: u64,
    begun: Instant,
    /// When the line is to be written next; on no terminal, never.
    next: Option<Instant>,
    shown: bool,
}

impl<T> Counted<T> {
    /// Counts the bytes of `stream`.
    pub fn new(stream: T) -> Self {
        let begun = Instant::now();
        Self {
            stream,
            bytes: 0,
            begun,
            next: io::stderr().is_terminal().then(|| begun + PATIENCE),
            shown: false,
        }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now >= next {
            // A terminal that is gone needs no line.
            let _ = write!(io::stderr(), "\r{}\x1b[K", line(self.bytes, now - self.begun));
            self.shown = true;
            self.next = Some(now + INTERVAL);
        }
    }
}

/// How far it is, and how fast.
fn line(bytes: u64, after: Duration) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1} MiB, {:.1} MiB/s", mib / after.as_secs_f64())
}

impl<T: Read> Read for Counted<T> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(to)?;
        self.count(count);
        Ok(count)
    }
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.count(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_and_how_fast() {
        assert_eq!(line(30 << 20, Duration::from_secs(12)), "30.0 MiB, 2.5 MiB/s");
    }
}

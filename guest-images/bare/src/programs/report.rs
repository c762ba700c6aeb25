//! The line that benchmarks end with: `key=value` words for a program to read.

use crate::{clock, interrupts, println};

/// What was done in the time that is measured.
pub struct Report {
    /// Requests or frames.
    pub requests: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// Cycles of the time-stamp counter.
    pub cycles: u64,
    /// Notifications.
    pub kicks: u64,
    /// Cycles that the middle one of all requests took, for programs that have one at a time.
    pub median: Option<u64>,
}

impl Report {
    /// Prints it. Times are in ns too, where the counter's frequency is known.
    pub fn print(&self) {
        let Self {
            requests,
            bytes,
            cycles,
            kicks,
            median,
        } = self;
        let interrupts = interrupts::seen();
        println!(
            "requests={requests} bytes={bytes} tsc_cycles={cycles} kicks={kicks} interrupts={interrupts}{}{}{}",
            Word("ns", clock::nanoseconds(*cycles)),
            Word("median_cycles", *median),
            Word("median_ns", median.and_then(clock::nanoseconds)),
        );
    }
}

/// A word that is there if its value is.
struct Word(&'static str, Option<u64>);

impl core::fmt::Display for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.1 {
            Some(value) => write!(f, " {}={value}", self.0),
            None => Ok(()),
        }
    }
}

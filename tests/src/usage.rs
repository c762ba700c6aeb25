//! What a posada process takes up of its host.

use std::fs;

/// Sizes and counts, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// KiB of memory besides the guest's: the process's share of all mappings but that one.
    pub own_memory: u64,
    /// KiB of memory that it has written, likewise; unlike a share, it is the same whatever other processes do.
    pub written: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Usage {
    /// Of the process with this id, whose guest has `guest_memory` bytes.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn of(process: u32, guest_memory: u64) -> Self {
        let count = |directory: &str| {
            let entries = fs::read_dir(format!("/proc/{process}/{directory}"));
            entries.expect("posada is in /proc").count()
        };
        let smaps = fs::read_to_string(format!("/proc/{process}/smaps")).expect("posada's mappings");
        Self {
            own_memory: sum(&smaps, "Pss:", guest_memory),
            written: sum(&smaps, "Anonymous:", guest_memory),
            files: count("fd"),
            threads: count("task"),
        }
    }
}

/// The sum of a field of all mappings but the guest's memory, in KiB.
fn sum(smaps: &str, field: &str, guest_memory: u64) -> u64 {
    let (mut kib, mut guests) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Size:") => guests = number(words.next()) << 10 == guest_memory,
            Some(word) if word == field && !guests => kib += number(words.next()),
            _ => {}
        }
    }
    kib
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).expect("a number of KiB")
}

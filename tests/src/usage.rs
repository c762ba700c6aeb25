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
        let own = besides(&smaps, guest_memory);
        Self {
            own_memory: own.iter().map(|mapping| mapping.share).sum(),
            written: own.iter().map(|mapping| mapping.written).sum(),
            files: count("fd"),
            threads: count("task"),
        }
    }
}

/// A mapping: proc_pid_smaps(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mapping {
    /// Where it is.
    start: u64,
    end: u64,
    /// KiB.
    share: u64,
    written: u64,
}

/// All mappings but those that are the guest's memory: some without a gap between them, which have its size together.
fn besides(smaps: &str, guest_memory: u64) -> Vec<Mapping> {
    let all = mappings(smaps);
    let ends = |first: usize| {
        let run = all[first..]
            .windows(2)
            .take_while(|pair| pair[0].end == pair[1].start);
        let last = first
            + run
                .take_while(|pair| pair[1].end - all[first].start <= guest_memory)
                .count();
        (all[last].end - all[first].start == guest_memory).then_some(last)
    };
    let guests = (0..all.len()).find_map(|first| Some(first..=ends(first)?));
    let mut own = all.clone();
    if let Some(guests) = guests {
        own.drain(guests);
    }
    own
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::<Mapping>::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        if let Some((start, end)) = name.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).expect("an address");
            mappings.push(Mapping {
                start: address(start),
                end: address(end),
                ..Default::default()
            });
        }
        let Some(mapping) = mappings.last_mut() else {
            continue;
        };
        match name {
            "Pss:" => mapping.share = number(words.next()),
            "Anonymous:" => mapping.written = number(words.next()),
            _ => {}
        }
    }
    mappings
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).expect("a number of KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_counted_be_it_one_mapping_or_two() {
        let heap = "1000-3000 rw-p 00000000 00:00 0 [heap]\nPss: 7 kB\nPss_Dirty: 6 kB\nAnonymous: 5 kB\n";
        let two = "10000-12000 rw-p 00000000 00:00 0\nPss: 100 kB\nAnonymous: 90 kB\n\
            12000-20000 rw-p 00000000 00:00 0\nPss: 100 kB\nAnonymous: 90 kB\n\
            20000-21000 rw-p 00000000 00:00 0\nPss: 3 kB\nAnonymous: 2 kB\n";
        let sums = |guest_memory| {
            let own = besides(&format!("{heap}{two}"), guest_memory);
            let sum = |of: fn(&Mapping) -> u64| own.iter().map(of).sum::<u64>();
            (sum(|mapping| mapping.share), sum(|mapping| mapping.written))
        };
        assert_eq!(sums(0x10000), (10, 7));
        assert_eq!(sums(0xe000), (110, 97));
        assert_eq!(sums(0x50000), (210, 187));
    }
}

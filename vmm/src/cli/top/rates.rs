//! How fast guests do what is counted of them: what has come between two looks, divided by the time between.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::super::stats::GuestStats;

/// Looks that are kept for graphs.
pub const KEPT: usize = 240;

/// What one guest does. Rates are per second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Hundredths of one of the host's CPUs.
    pub cpu: f64,
    /// Bytes that posada has, with what the guest has touched.
    pub memory: u64,
    /// Exits to posada.
    pub exits: f64,
    /// Bytes from disks.
    pub read: f64,
    /// Bytes to disks.
    pub written: f64,
    /// Bytes from networks.
    pub received: f64,
    /// Bytes to networks.
    pub sent: f64,
    /// Exits by what they were for.
    pub exits_by_kind: Vec<(String, f64)>,
}

/// A guest over time.
#[derive(Debug)]
pub struct History {
    last: GuestStats,
    at: Instant,
    /// The newest is the last.
    pub rates: VecDeque<Rates>,
}

impl History {
    fn new(stats: GuestStats, at: Instant) -> Self {
        Self {
            last: stats,
            at,
            rates: VecDeque::new(),
        }
    }

    /// What it does now, if that is known: after a second look.
    pub fn now(&self) -> Option<&Rates> {
        self.rates.back()
    }

    fn look(&mut self, stats: GuestStats, at: Instant) {
        let seconds = at.duration_since(self.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        // A guest that is another one of the same name, or was rewound, has less than before.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let sum = |part: &str, names: &[&str]| rate(stats.sum(part, names), self.last.sum(part, names));
        let (kinds, before) = (exits(&stats), exits(&self.last));
        let exits_by_kind: Vec<_> = kinds
            .into_iter()
            .map(|(kind, count)| {
                let before = before.get(&kind).copied().unwrap_or(0);
                (kind, rate(count, before))
            })
            .collect();
        let rates = Rates {
            cpu: sum("thread", &["cpu_nanoseconds"]) / 1e7,
            memory: stats.sum("guest", &["resident_bytes"]),
            exits: exits_by_kind.iter().map(|(_, rate)| rate).sum(),
            read: sum("block", &["read_bytes"]),
            written: sum("block", &["written_bytes"]),
            received: sum("net", &["rx_bytes"]),
            sent: sum("net", &["tx_bytes"]),
            exits_by_kind,
        };
        if self.rates.len() == KEPT {
            self.rates.pop_front();
        }
        self.rates.push_back(rates);
        (self.last, self.at) = (stats, at);
    }
}

/// Of all vCPUs together.
fn exits(stats: &GuestStats) -> BTreeMap<String, u64> {
    let mut exits = BTreeMap::new();
    for vcpu in stats.stats.iter().filter(|stats| stats.part == "vcpu") {
        for (kind, count) in &vcpu.values {
            *exits.entry(kind.to_string()).or_default() += count;
        }
    }
    exits
}

/// All guests by their names. Those that a look does not find are forgotten.
pub fn look(guests: &mut BTreeMap<String, History>, found: Vec<GuestStats>, at: Instant) {
    guests.retain(|name, _| found.iter().any(|guest| guest.name == *name));
    for stats in found {
        match guests.get_mut(&stats.name) {
            Some(history) => history.look(stats, at),
            None => {
                guests.insert(stats.name.clone(), History::new(stats, at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm::metrics::Stats;

    use super::*;

    fn guest(name: &str, cpu: u64, reads: u64) -> GuestStats {
        let part = |part: &'static str, values: &[(&'static str, u64)]| Stats {
            part: part.into(),
            labels: BTreeMap::new(),
            values: values
                .iter()
                .map(|(name, value)| ((*name).into(), *value))
                .collect(),
        };
        let vcpu = part("vcpu", &[("port_reads", reads), ("mmio_reads", 2 * reads)]);
        GuestStats {
            name: name.to_owned(),
            stats: vec![part("thread", &[("cpu_nanoseconds", cpu)]), vcpu.clone(), vcpu],
        }
    }

    #[test]
    fn a_rate_is_what_came_between_two_looks_by_the_time_between() {
        let (mut guests, start) = (BTreeMap::new(), Instant::now());
        look(&mut guests, vec![guest("web", 0, 10)], start);
        assert!(guests["web"].now().is_none());
        look(
            &mut guests,
            vec![guest("web", 1_000_000_000, 110)],
            start + Duration::from_secs(2),
        );
        let now = guests["web"].now().unwrap();
        assert_eq!((now.cpu, now.exits), (50.0, 300.0));
        assert_eq!(
            now.exits_by_kind,
            [("mmio_reads".to_owned(), 200.0), ("port_reads".to_owned(), 100.0)]
        );
    }

    #[test]
    fn a_guest_that_begins_anew_has_no_rate_below_zero_and_one_that_ended_none() {
        let (mut guests, start) = (BTreeMap::new(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        look(
            &mut guests,
            vec![guest("web", 500, 500), guest("db", 0, 0)],
            later(0),
        );
        look(&mut guests, vec![guest("web", 5, 5)], later(1));
        assert_eq!(guests["web"].now().unwrap().exits, 0.0);
        assert_eq!(guests.len(), 1);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut guests, start) = (BTreeMap::new(), Instant::now());
        for second in 0..2 * KEPT as u64 {
            look(
                &mut guests,
                vec![guest("web", 0, second)],
                start + Duration::from_secs(second),
            );
        }
        assert_eq!(guests["web"].rates.len(), KEPT);
    }
}

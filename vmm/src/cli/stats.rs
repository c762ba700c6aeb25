//! `posada stats`: what guests have used and done since they were started.

use clap::Args;
use serde::Serialize;
use vmm::control::{self, Answer, ControlError, Request};
use vmm::metrics::Stats;
use vmm::runtime::{self, RuntimeError};

use super::output::{print, print_json};
use super::snapshot::unexpected;
use super::table::{bytes, number, table};
use super::{Failure, completions, say};

pub const EXAMPLES: &str = "\
Examples:
  posada stats
  posada stats web --json | jq '.[].stats[] | select(.part == \"block\")'
  posada stats web --prometheus > /var/lib/node_exporter/web.prom";

/// Prints what guests have used and done since they were started.
#[derive(Args)]
pub struct ShowStats {
    /// The running guests [default: all]
    #[arg(value_name = "NAME", add = completions::guests())]
    names: Vec<String>,

    /// Print all that is counted, as JSON
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,

    /// Print all that is counted of one guest, as Prometheus's text
    #[arg(long, requires = "names")]
    prometheus: bool,
}

/// What one guest has done.
#[derive(Debug, Serialize)]
pub struct GuestStats {
    pub name: String,
    pub stats: Vec<Stats>,
}

impl ShowStats {
    /// Prints a table, JSON or Prometheus's text.
    pub fn execute(self) -> Result<(), Failure> {
        if self.prometheus {
            return print_text(&self.names);
        }
        let mut silent = Vec::new();
        let guests = match self.names.is_empty() {
            true => all(|failure| silent.push(failure))?,
            false => self
                .names
                .iter()
                .map(|name| stats(name))
                .collect::<Result<_, _>>()?,
        };
        tell(&guests, self.json)?;
        // What there is has been told; that it is not all, the status says.
        let last = silent.pop();
        silent
            .iter()
            .for_each(|failure| say(format_args!("posada: {failure}")));
        last.map_or(Ok(()), Err)
    }
}

fn tell(guests: &[GuestStats], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&guests);
    }
    let head = [
        "NAME", "CPU", "MEMORY", "EXITS", "READ", "WRITTEN", "RECEIVED", "SENT",
    ];
    print(&table(head, guests.iter().map(cells)))
}

fn print_text(names: &[String]) -> Result<(), Failure> {
    let [name] = names else {
        let why = "--prometheus is for one guest at a time, whose metrics have a file of their own";
        return Err(Failure::Other(why.to_owned()));
    };
    match control::ask(name, &Request::Metrics)? {
        Answer::Text(text) => print(&text),
        _ => Err(unexpected()),
    }
}

/// Of one guest.
pub fn stats(name: &str) -> Result<GuestStats, Failure> {
    match control::ask(name, &Request::Stats)? {
        Answer::Stats(stats) => Ok(GuestStats {
            name: name.to_owned(),
            stats,
        }),
        _ => Err(unexpected()),
    }
}

/// Of all that run. Why one does not tell goes to `complain`.
pub fn all(mut complain: impl FnMut(Failure)) -> Result<Vec<GuestStats>, Failure> {
    let mut guests = Vec::new();
    for name in runtime::names().map_err(ControlError::from)? {
        match stats(&name) {
            Ok(guest) => guests.push(guest),
            // It has ended meanwhile.
            Err(Failure::Control(ControlError::Runtime(RuntimeError::Unknown(_)))) => {}
            Err(failure) => complain(failure),
        }
    }
    Ok(guests)
}

impl GuestStats {
    /// The sum of these values of all parts of a kind.
    pub fn sum(&self, part: &str, names: &[&str]) -> u64 {
        let parts = self.stats.iter().filter(|stats| stats.part == part);
        let values = parts.flat_map(|stats| names.iter().filter_map(|name| stats.values.get(*name)));
        values.sum()
    }

    /// Of one part, all values together.
    pub fn total(&self, part: &str) -> u64 {
        let parts = self.stats.iter().filter(|stats| stats.part == part);
        parts.flat_map(|stats| stats.values.values()).sum()
    }
}

fn cells(guest: &GuestStats) -> [String; 8] {
    let nanoseconds = guest.sum("thread", &["cpu_nanoseconds"]);
    [
        guest.name.clone(),
        format!("{:.1}s", nanoseconds as f64 / 1e9),
        bytes(guest.sum("guest", &["resident_bytes"])),
        number(guest.total("vcpu")),
        bytes(guest.sum("block", &["read_bytes"])),
        bytes(guest.sum("block", &["written_bytes"])),
        bytes(guest.sum("net", &["rx_bytes"])),
        bytes(guest.sum("net", &["tx_bytes"])),
    ]
}

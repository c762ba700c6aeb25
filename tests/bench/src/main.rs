//! `make bench`: what posada costs, each figure beside the floor of the same run.
//!
//! Exit status: 0 if every limit is kept, 1 if one is missed, 2 for a measurement that does not exist.

mod api;
mod bare;
mod devices;
mod disk;
mod exits;
mod linux;
mod linux_io;
mod net;
mod pairs;
mod peer;
mod snapshots;
mod start;
mod table;
mod tap;
mod threads;
mod touch;
mod useful;

use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;

/// Measures something and puts it into the table.
type Measurement = fn(&mut Table);

/// The measurements, each by the name that selects it.
const MEASUREMENTS: [(&str, Measurement); 16] = [
    ("start", start::measure),
    ("exits", exits::measure),
    ("touch", touch::measure),
    ("size", size),
    ("api", api::measure),
    ("devices", devices::measure),
    ("disk", disk::measure),
    ("net", net::measure),
    ("peer-start", peer::measure_starts),
    ("peer-disk", peer::measure_disks),
    ("peer-net", peer::measure_networks),
    ("snapshots", snapshots::measure),
    ("clones", snapshots::measure_clones),
    ("useful", useful::measure),
    ("linux", linux::measure),
    ("linux-io", linux_io::measure),
];

fn main() -> ExitCode {
    let selected: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = selected
        .iter()
        .find(|name| !MEASUREMENTS.iter().any(|(known, _)| known == name))
    {
        let names = MEASUREMENTS.map(|(name, _)| name).join(" ");
        eprintln!(
            "posada-bench: there is no measurement '{unknown}'; name some of: {names}, or none for all"
        );
        return ExitCode::from(2);
    }
    let mut table = Table::default();
    for (name, measure) in MEASUREMENTS {
        if selected.is_empty() || selected.iter().any(|other| other == name) {
            eprintln!("measuring: {name}");
            measure(&mut table);
        }
    }
    print!("{table}");
    if table.kept() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The command that is measured.
fn posada() -> PathBuf {
    beside_this("posada")
}

/// The program that makes only the ioctls.
fn floor() -> PathBuf {
    beside_this("floor")
}

/// A program that cargo built with this one.
fn beside_this(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let path = this.with_file_name(name);
    assert!(path.exists(), "{} is not built: run 'make bench'", path.display());
    path
}

fn size(table: &mut Table) {
    let bytes = posada().metadata().expect("the size of posada").len();
    table.absolute(
        "release binary, stripped",
        bytes as f64 / (1 << 20) as f64,
        "MiB",
        5.0,
    );
}

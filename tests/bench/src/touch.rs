//! The first touch of guest memory: what the host does to give a guest a page.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use posada_bench::programs::{self, TOUCHED_FROM, TOUCHED_TO};

use crate::pairs;
use crate::table::{Table, median};

const RUNS: usize = 7;
/// Microseconds.
const LIMIT: f64 = 0.6;

/// Measures a guest that touches 96 MiB, twice.
pub fn measure(table: &mut Table) {
    let pairs = pairs::measure(RUNS, programs::touch(), "touch", first_touch);
    let (posada, floor): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    table.absolute("first touch of a 4 KiB page", median(posada), "µs", LIMIT);
    table.remark(format!(
        "first touch on the floor, with huge pages: {:.3} µs",
        median(floor)
    ));
}

/// Microseconds for a page: the first pass over them less the second, in which they are there.
fn first_touch(command: &mut Command) -> f64 {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut output = child.stdout.take().expect("its output is piped");
    let mut times = [Instant::now(); 3];
    for time in &mut times {
        output.read_exact(&mut [0]).expect("the guest says something");
        *time = Instant::now();
    }
    assert!(child.wait().expect("the program ends").success());
    let (first, second) = (times[1] - times[0], times[2] - times[1]);
    let pages = ((TOUCHED_TO - TOUCHED_FROM) / 4096) as f64;
    (first.as_secs_f64() - second.as_secs_f64()) * 1e6 / pages
}

//! Process start → the guest's first output, and → the end of the process.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use posada_tests::payload;

use crate::pairs;
use crate::table::Table;

const RUNS: usize = 40;
const LIMIT: f64 = 1.2;

/// Measures a guest of a page that says something at once.
pub fn measure(table: &mut Table) {
    let pairs = pairs::measure(RUNS, payload::hello(), "hello", |command| {
        first_output(command, true)
    });
    table.ratio("start → first output, 128 MiB", &pairs, "ms", LIMIT);
}

/// Milliseconds until the first byte. A guest that `switches_off` is waited for.
pub fn first_output(command: &mut Command, switches_off: bool) -> f64 {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut output = child.stdout.take().expect("its output is piped");
    output.read_exact(&mut [0]).expect("the guest says something");
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    if switches_off {
        assert!(child.wait().expect("the program ends").success());
    } else {
        child.kill().expect("the program can be ended");
        child.wait().expect("the program ends");
    }
    elapsed
}

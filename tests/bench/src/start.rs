//! Process start → the guest's first output, and → the end of the process.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use posada_tests::payload;

use crate::table::Table;
use crate::{floor, posada};

const RUNS: usize = 40;
const LIMIT: f64 = 1.2;

/// Runs both in turn, so that a change in the machine's speed meets both.
pub fn measure(table: &mut Table) {
    let (posada, floor) = (posada(), floor());
    let kernel = std::env::temp_dir().join(format!("posada-bench-{}.elf", std::process::id()));
    fs::write(&kernel, payload::elf(payload::hello(), false)).expect("a file for the guest");
    let pairs: Vec<_> = (0..RUNS)
        .map(|_| {
            let by_posada = first_output(Command::new(&posada).args(["run", "--kernel"]).arg(&kernel));
            (by_posada, first_output(Command::new(&floor).arg("hello")))
        })
        .collect();
    fs::remove_file(&kernel).expect("the guest's file can be removed");
    table.ratio("start → first output, 128 MiB", &pairs, "ms", LIMIT);
}

/// Milliseconds until the first byte.
fn first_output(command: &mut Command) -> f64 {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut output = child.stdout.take().expect("its output is piped");
    output.read_exact(&mut [0]).expect("the guest says something");
    let elapsed = start.elapsed().as_secs_f64() * 1e3;
    assert!(child.wait().expect("the program ends").success());
    elapsed
}

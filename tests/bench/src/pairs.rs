//! A guest in posada and on the floor, in turn, so that a change in the machine's speed meets both.

use std::fs;
use std::process::Command;

use posada_tests::payload;

use crate::{floor, posada};

/// Measures `code` so often in both, each pair one right after the other; `guest` is its name on the floor.
pub fn measure(
    runs: usize,
    code: &[u8],
    guest: &str,
    measure: impl Fn(&mut Command) -> f64,
) -> Vec<(f64, f64)> {
    let (posada, floor) = (posada(), floor());
    let kernel = std::env::temp_dir().join(format!("posada-bench-{}.elf", std::process::id()));
    fs::write(&kernel, payload::elf(code, false)).expect("a file for the guest");
    let pairs = (0..runs)
        .map(|_| {
            let by_posada = measure(Command::new(&posada).args(["run", "--kernel"]).arg(&kernel));
            (by_posada, measure(Command::new(&floor).arg(guest)))
        })
        .collect();
    fs::remove_file(&kernel).expect("the guest's file can be removed");
    pairs
}

//! `make bench`: what posada costs, each figure beside the floor of the same run.

mod exits;
mod linux;
mod start;
mod table;
mod touch;

use std::path::PathBuf;

use table::Table;

fn main() {
    let posada = beside_this("posada");
    let mut table = Table::default();
    start::measure(&posada, &beside_this("floor"), &mut table);
    exits::measure(&mut table);
    touch::measure(&posada, &beside_this("floor"), &mut table);
    size(&posada, &mut table);
    linux::measure(&posada, &mut table);
    print!("{table}");
}

/// A program that cargo built with this one.
fn beside_this(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let path = this.with_file_name(name);
    assert!(path.exists(), "{} is not built: run 'make bench'", path.display());
    path
}

fn size(posada: &std::path::Path, table: &mut Table) {
    let bytes = posada.metadata().expect("the size of posada").len();
    table.absolute(
        "release binary, stripped",
        bytes as f64 / (1 << 20) as f64,
        "MiB",
        5.0,
    );
}

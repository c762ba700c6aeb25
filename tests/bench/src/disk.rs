//! A disk: requests by the bare guest through posada, and the same by fio on the same file without a VM.
//!
//! The file is in the page cache, so that what is measured is the way to it and not the machine's disk.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::bare::{self, BareGuest};
use crate::table::{Table, median};

const RUNS: usize = 5;
const IMAGE_SIZE: u64 = 512 << 20;
const MIB: usize = 1 << 20;

/// One kind of load.
pub struct Load {
    /// For the table.
    pub what: &'static str,
    op: &'static str,
    fio: &'static str,
    size: &'static str,
    depth: u32,
    pattern: &'static str,
    /// How many requests.
    pub count: u64,
    /// Most µs for a request, as a multiple of fio's.
    limit: f64,
}

/// What is measured.
pub const LOADS: [Load; 5] = [
    Load {
        what: "disk: 1 MiB read in sequence",
        op: "read",
        fio: "read",
        size: "1M",
        depth: 1,
        pattern: "seq",
        count: 2000,
        limit: 1.2,
    },
    Load {
        what: "disk: 1 MiB written in sequence",
        op: "write",
        fio: "write",
        size: "1M",
        depth: 1,
        pattern: "seq",
        count: 2000,
        limit: 1.2,
    },
    Load {
        what: "disk: 4 KiB read at random, depth 1",
        op: "read",
        fio: "randread",
        size: "4K",
        depth: 1,
        pattern: "random",
        count: 50_000,
        limit: 3.0,
    },
    Load {
        what: "disk: 4 KiB read at random, depth 32",
        op: "read",
        fio: "randread",
        size: "4K",
        depth: 32,
        pattern: "random",
        count: 300_000,
        limit: 1.0,
    },
    Load {
        what: "disk: 4 KiB written at random, depth 32",
        op: "write",
        fio: "randwrite",
        size: "4K",
        depth: 32,
        pattern: "random",
        count: 300_000,
        limit: 1.2,
    },
];
/// Flushes with nothing to write, against fdatasync(2).
pub const FLUSHES: u64 = 2_000;
const FLUSH_LIMIT: f64 = 4.0;

impl Load {
    /// The bare guest's program for it, without a count.
    pub fn program(&self) -> String {
        let Self {
            op,
            size,
            depth,
            pattern,
            ..
        } = self;
        format!("blk-bench op={op} size={size} depth={depth} pattern={pattern}")
    }
}

/// Measures each load, in posada and in fio by turns.
pub fn measure(table: &mut Table) {
    let image = Image::new();
    let cycles = bare::cycles_per_micro();
    for load in &LOADS {
        let program = load.program();
        let fio = |image: &Path| fio(load, image);
        let counted = format!("{program} count={}", load.count);
        compare(
            table,
            load.what,
            (&counted, load.count),
            &image,
            cycles,
            load.limit,
            fio,
        );
        remark_system_calls(table, load.what, &program, &image, load.count);
    }
    let program = format!("blk-bench op=flush depth=1 count={FLUSHES}");
    let what = "disk: flush with nothing to write";
    compare(
        table,
        what,
        (&program, FLUSHES),
        &image,
        cycles,
        FLUSH_LIMIT,
        fdatasync,
    );
}

fn compare(
    table: &mut Table,
    what: &'static str,
    (program, count): (&str, u64),
    image: &Image,
    cycles: f64,
    limit: f64,
    floor: impl Fn(&Path) -> f64,
) {
    let (mut pairs, mut cpu, mut kicks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        image.settle();
        let sample = BareGuest::start(program, &image.arguments()).finish();
        cpu.push(sample.cpu_micros / count as f64);
        kicks.push(sample.get("kicks") / count as f64);
        pairs.push((sample.micros(cycles), floor(&image.path)));
    }
    table.ratio(what, &pairs, "µs", limit);
    table.remark(format!(
        "{what}: {:.2} µs of posada's CPU and {:.2} kicks for a request",
        median(cpu),
        median(kicks)
    ));
}

fn remark_system_calls(table: &mut Table, what: &str, program: &str, image: &Image, count: u64) {
    match bare::system_calls(program, &image.arguments(), count) {
        Some(calls) => table.remark(format!("{what}: {calls:.2} system calls for a request")),
        None => table.remark(format!(
            "{what}: system calls were not counted, for there is no perf"
        )),
    }
}

/// A file full of data, which goes when it is dropped.
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
}

impl Image {
    /// Writes it.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("posada-bench-{}.img", std::process::id()));
        let mut file = File::create(&path).expect("a file for the disk");
        let block: Vec<u8> = (0..MIB).map(|n| (n * 7 + n / 251) as u8).collect();
        for _ in 0..IMAGE_SIZE / MIB as u64 {
            file.write_all(&block).expect("room for the disk");
        }
        file.sync_all().expect("room for the disk");
        Self { path }
    }

    /// Waits until what was written to it is on the machine's disk: the next measurement is not to wait for that.
    pub fn settle(&self) {
        let file = File::open(&self.path).expect("the disk's file");
        file.sync_all().expect("the machine's disk takes it");
    }

    /// What lets posada's guest have it.
    pub fn arguments(&self) -> Vec<String> {
        vec!["--disk".into(), self.path.display().to_string()]
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// µs for a request by fio.
fn fio(load: &Load, image: &Path) -> f64 {
    let output = Command::new("fio")
        .args([
            "--name=floor",
            "--ioengine=io_uring",
            "--registerfiles=1",
            "--invalidate=0",
            "--output-format=json",
        ])
        .args([
            "--thread",
            "--norandommap",
            "--randrepeat=0",
            "--fallocate=none",
            "--group_reporting",
        ])
        .arg(format!("--filename={}", image.display()))
        .arg(format!("--size={IMAGE_SIZE}"))
        .arg(format!("--io_size={}G", 1 << 20))
        .arg(format!("--number_ios={}", load.count))
        .arg(format!("--rw={}", load.fio))
        .arg(format!("--bs={}", load.size))
        .arg(format!("--iodepth={}", load.depth))
        .output()
        .expect("fio runs: 'make bench' installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "fio failed: {text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("fio prints JSON");
    let job = &report["jobs"][0][load.op];
    let number = |key: &str| job[key].as_f64().expect("fio's report has numbers");
    // `runtime` is in whole milliseconds, of which there are hundreds.
    number("runtime") * 1e3 / number("total_ios")
}

/// µs for an fdatasync of a file with nothing to write.
fn fdatasync(image: &Path) -> f64 {
    let file = File::options().write(true).open(image).expect("the disk's file");
    file.write_at(&[0], 0).expect("the disk's file can be written");
    file.sync_data().expect("the disk's file can be flushed");
    let start = Instant::now();
    for _ in 0..FLUSHES {
        file.sync_data().expect("the disk's file can be flushed");
    }
    start.elapsed().as_secs_f64() * 1e6 / FLUSHES as f64
}

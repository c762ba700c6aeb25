//! What devices cost a guest that does not use them: at its start, and while it is idle.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use posada_tests::{images, payload};
use vmm_sys_util::tempdir::TempDir;

use crate::bare::Output;
use crate::start::first_output;
use crate::table::Table;
use crate::{posada, tap};

const RUNS: usize = 40;
/// A multiple of the time without devices.
const START_LIMIT: f64 = 1.2;
const IDLE: Duration = Duration::from_secs(10);

/// Measures the start with a disk and a tap against the start without, and counts what wakes posada up when nothing happens.
pub fn measure(table: &mut Table) {
    // A thread of its own: it leaves this program's network.
    thread::scope(|scope| {
        let all = scope.spawn(|| match tap::enter_namespace() {
            Ok(()) => {
                let directory = TempDir::new().expect("a directory for temporary files");
                let path = |name: &str| directory.as_path().join(name).display().to_string();
                fs::write(path("disk.img"), vec![0; 1 << 20]).expect("a file for the disk");
                start(table, &path("kernel"), &path("disk.img"));
                idle(table, &path("disk.img"), &path("socket"));
            }
            Err(error) => table.remark(format!("devices: not measured, for there is no tap: {error}")),
        });
        all.join().expect("the measurement ends");
    });
}

fn start(table: &mut Table, kernel: &str, disk: &str) {
    fs::write(kernel, payload::elf(payload::hello(), false)).expect("a file for the guest");
    let command = |devices: &[&str]| {
        let mut command = Command::new(posada());
        command.args(["run", "--kernel", kernel]).args(devices);
        first_output(&mut command, true)
    };
    let network = format!("tap={}", tap::NAME);
    let pairs: Vec<(f64, f64)> = (0..RUNS)
        .map(|_| (command(&["--disk", disk, "--net", &network]), command(&[])))
        .collect();
    table.ratio(
        "start with a disk and a tap, to one without",
        &pairs,
        "ms",
        START_LIMIT,
    );
}

/// A guest that has started every device and halted: none of posada's threads is to run at all.
fn idle(table: &mut Table, disk: &str, socket: &str) {
    let network = format!("tap={}", tap::NAME);
    let devices = [
        "--disk",
        disk,
        "--net",
        &network,
        "--vsock",
        socket,
        "--rng",
        "--balloon",
        "size=0",
    ];
    let mut child = Command::new(posada())
        .args(["run", "--kernel"])
        .arg(images::bare())
        .args(["--cmdline", "acpi=off program=idle"])
        .args(devices)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("posada starts");
    let mut output = Output::of(child.stdout.take().expect("its output is piped"));
    output.wait_for("idle: 5 devices");
    // What it did last, such as printing that line, may have left a thread to wake up.
    thread::sleep(Duration::from_secs(1));
    let before = wake_ups(child.id());
    thread::sleep(IDLE);
    let after = wake_ups(child.id());
    let mut stdin = child.stdin.take().expect("its input is piped");
    stdin.write_all(b"\n").expect("the guest takes a line");
    assert!(child.wait().expect("posada ends").success());
    table.absolute(
        "idle guest with every device: wake-ups in 10 s",
        after - before,
        "",
        0.0,
    );
}

/// How often the threads of a process have gone to sleep: proc(5), `voluntary_ctxt_switches`.
fn wake_ups(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a child is in /proc");
    let switches = tasks.map(|task| {
        let status = task.expect("a child's thread is in /proc").path().join("status");
        let status = fs::read_to_string(status).expect("a child's thread is in /proc");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|number| number.trim().parse::<f64>().ok())
            .expect("a number of switches")
    });
    switches.sum()
}

//! Benchmarks that run in the bare guest, and what they cost posada.
//!
//! The guest says what it did and then waits, so that posada's threads can still be asked for their CPU time.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use posada_tests::images;

use crate::{posada, threads};

/// A bare guest that runs a benchmark.
pub struct BareGuest {
    child: Child,
    stdin: ChildStdin,
    output: Output,
    switches_off: bool,
}

/// What a bare guest prints.
pub struct Output(Lines<BufReader<ChildStdout>>);

/// What a benchmark in the guest did.
pub struct Sample {
    words: HashMap<String, f64>,
    /// CPU time of all of the VMM's threads but the vCPUs, in µs.
    pub cpu_micros: f64,
}

impl BareGuest {
    /// Starts posada with these arguments and the bare guest with this program and its arguments.
    pub fn start(program: &str, arguments: &[String]) -> Self {
        Self::spawn(Command::new(posada()), program, arguments)
    }

    /// The same, `command` being what posada's own arguments are appended to.
    pub fn spawn(mut command: Command, program: &str, arguments: &[String]) -> Self {
        command
            .args(["run", "--kernel"])
            .arg(images::bare())
            .arg("--cmdline")
            .arg(command_line(program))
            .args(arguments);
        Self::run(&mut command, true)
    }

    /// Runs a VMM with the bare guest in it; `switches_off`: the guest knows how to switch the machine off.
    pub fn run(command: &mut Command, switches_off: bool) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the VMM starts");
        let stdin = child.stdin.take().expect("its input is piped");
        let stdout = child.stdout.take().expect("its output is piped");
        Self {
            child,
            stdin,
            output: Output::of(stdout),
            switches_off,
        }
    }

    /// Waits until the guest prints a line that begins with `beginning`.
    pub fn wait_for(&mut self, beginning: &str) {
        self.output.wait_for(beginning);
    }

    /// Waits for the report, and for the guest's end.
    pub fn finish(mut self) -> Sample {
        let line = self.output.wait_for("requests=");
        let cpu_micros = io_cpu_micros(self.child.id());
        if self.switches_off {
            self.stdin.write_all(b"\n").expect("the guest takes a line");
            assert!(self.child.wait().expect("the VMM ends").success());
        }
        let words = line.split_whitespace().filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Sample {
            words: words.collect(),
            cpu_micros,
        }
    }
}

/// Nothing is left running, be it that a measurement has failed.
impl Drop for BareGuest {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command line that has the bare guest run `program` and then wait.
pub fn command_line(program: &str) -> String {
    format!("acpi=off hold=yes program={program}")
}

impl Output {
    /// What comes out of posada's standard output.
    pub fn of(stdout: ChildStdout) -> Self {
        Self(BufReader::new(stdout).lines())
    }

    /// Reads what comes until it ends.
    pub fn drain(&mut self) {
        self.0.by_ref().take_while(Result::is_ok).for_each(drop);
    }

    /// Waits until the guest prints a line that begins with `beginning`; returns the line.
    pub fn wait_for(&mut self, beginning: &str) -> String {
        loop {
            let line = self
                .0
                .next()
                .unwrap_or_else(|| panic!("the guest ended without '{beginning}'"));
            let line = line.expect("the guest prints text");
            assert!(!line.starts_with("FAILED"), "the guest says: {line}");
            if line.starts_with(beginning) {
                return line;
            }
        }
    }
}

impl Sample {
    /// A number of the report.
    pub fn get(&self, key: &str) -> f64 {
        *self
            .words
            .get(key)
            .unwrap_or_else(|| panic!("the guest reported no {key}="))
    }

    /// Microseconds for each request.
    pub fn micros(&self, cycles_per_micro: f64) -> f64 {
        self.get("tsc_cycles") / cycles_per_micro / self.get("requests")
    }
}

/// CPU time of a process's threads whose names have no "vcpu" in them.
fn io_cpu_micros(pid: u32) -> f64 {
    let threads = threads::of(pid);
    let others = threads.iter().filter(|thread| !thread.name.contains("vcpu"));
    others.map(|thread| thread.nanos).sum::<u64>() as f64 / 1e3
}

/// The frequency of the time-stamp counter in cycles per µs, which on most hosts no CPUID leaf tells.
///
/// KVM gives a guest the host's own counter, moved by a constant.
pub fn cycles_per_micro() -> f64 {
    const LONG_ENOUGH: f64 = 0.1;
    let (start, cycles) = (Instant::now(), read_counter());
    while start.elapsed().as_secs_f64() < LONG_ENOUGH {
        std::hint::spin_loop();
    }
    (read_counter() - cycles) as f64 / (start.elapsed().as_secs_f64() * 1e6)
}

fn read_counter() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets user programs execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// System calls of all of posada's threads, KVM's among them left out, for each request of `program`: what a run of `count`
/// requests makes more than one of 1, or `None` where there is no perf, or it is not let.
pub fn system_calls(program: &str, arguments: &[String], count: u64) -> Option<f64> {
    let many = counted(&format!("{program} count={count}"), arguments)?;
    let one = counted(&format!("{program} count=1"), arguments)?;
    Some((many - one) / (count - 1) as f64)
}

/// Runs posada under perf; returns all its system calls but ioctl, which is what vCPUs do.
fn counted(program: &str, arguments: &[String]) -> Option<f64> {
    let results = std::env::temp_dir().join(format!("posada-bench-{}.perf", std::process::id()));
    let mut perf = Command::new("perf");
    perf.args([
        "stat",
        "-x",
        ",",
        "-e",
        "raw_syscalls:sys_enter,syscalls:sys_enter_ioctl",
        "-o",
    ])
    .arg(&results)
    .arg("--")
    .arg(posada());
    Command::new("perf")
        .arg("--version")
        .stdout(Stdio::null())
        .spawn()
        .ok()?
        .wait()
        .ok()?;
    let mut guest = BareGuest::spawn(perf, program, arguments);
    guest.output.wait_for("requests=");
    guest.stdin.write_all(b"\n").expect("the guest takes a line");
    let ended = guest.child.wait().expect("perf ends");
    let text = fs::read_to_string(&results);
    let _ = fs::remove_file(&results);
    let counts: Vec<f64> = text
        .ok()?
        .lines()
        .filter_map(|line| line.split(',').next()?.parse().ok())
        .collect();
    match counts[..] {
        [all, ioctls] if ended.success() => Some(all - ioctls),
        _ => None,
    }
}

//! Snapshots: how long a guest rests for one, how soon it is back, and what many from one cost.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posada_tests::usage::Usage;
use posada_tests::{images, owner, payload};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

use crate::bare::Output;
use crate::table::{Table, median};
use crate::{posada, threads};

/// Milliseconds that a guest may rest.
const PAUSE_LIMIT: f64 = 10.0;
/// Of which its state may take.
const STATE_LIMIT: f64 = 2.0;
/// Milliseconds from exec to the guest's next instruction.
const RESTORE_LIMIT: f64 = 5.0;
/// Seconds for all clones.
const CLONES_LIMIT: f64 = 1.5;
/// MiB of memory of an idle clone's own.
const CLONE_MEMORY_LIMIT: f64 = 1.5;
/// What a snapshot of a restored guest may take, in snapshots of one that was not.
const OF_RESTORED_LIMIT: f64 = 1.5;
const REWIND_LIMIT: f64 = 10.0;
const RUNS: usize = 7;
const CLONES: u32 = 100;
const MEMORY: u64 = 128 << 20;
/// Diffs that are measured: each follows the one before, and no more can (docs/snapshots.md).
const DIFFS: usize = 7;

/// Measures all of it.
pub fn measure(table: &mut Table) {
    pauses(table, "128M", "64M");
    pauses(table, "1G", "512M");
    of_restored(table);
    diffs(table);
    restores(table, "128M");
    restores(table, "1G");
    rewinds(table);
}

/// A guest with a name, and a place for its snapshots, which are nobody else's.
pub struct Named {
    pub directory: TempDir,
    pub guest: Child,
    stdin: ChildStdin,
    /// Until somebody takes it.
    output: Option<Output>,
}

impl Named {
    /// Starts a guest with these arguments of `posada run`.
    pub fn start(arguments: &[&str]) -> Self {
        let directory = TempDir::new().expect("a directory for snapshots");
        let (guest, stdin, output) = spawn(
            command(directory.as_path())
                .args(["run", "--name", NAME])
                .args(arguments),
        );
        Self {
            directory,
            guest,
            stdin,
            output: Some(output),
        }
    }

    /// Ends the guest, and goes on with another one from its snapshot.
    fn restore(&mut self, snapshot: &str) {
        // Fails only when it has ended.
        let _ = self.guest.kill();
        self.guest.wait().expect("the guest ends");
        let place = self.place(snapshot);
        let (guest, stdin, output) = spawn(command(self.directory.as_path()).arg("restore").arg(place));
        (self.guest, self.stdin, self.output) = (guest, stdin, Some(output));
    }

    pub fn wait_for(&mut self, beginning: &str) {
        self.output
            .as_mut()
            .expect("nobody has taken it")
            .wait_for(beginning);
    }

    /// The bare guest that counts lines, with memory of which it uses `touch=` and writes `dirty=` for each line.
    fn counting(memory: &str, program: &str) -> Self {
        let kernel = images::bare();
        let kernel = kernel.to_str().expect("a path of plain characters");
        let line = format!("acpi=off program=count {program}");
        let mut guest = Self::start(&["--memory", memory, "--kernel", kernel, "--cmdline", &line]);
        guest.wait_for("count 1");
        guest
    }

    /// Has it count on.
    fn count(&mut self) {
        self.stdin.write_all(b"\n").expect("the guest takes a line");
        self.wait_for("count");
    }

    pub fn place(&self, snapshot: &str) -> PathBuf {
        self.directory.as_path().join(snapshot)
    }

    /// `posada VERB NAME DIR ARGUMENTS --json`: what it says that it took.
    pub fn ask(&self, verb: &str, snapshot: &str, arguments: &[&str]) -> Value {
        let ended = command(self.directory.as_path())
            .args([verb, NAME])
            .arg(self.place(snapshot))
            .args(arguments)
            .arg("--json")
            .output()
            .expect("posada starts");
        let message = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{message}");
        serde_json::from_slice(&ended.stdout).expect("posada answers in JSON")
    }

    /// The process of a clone.
    fn pid_of(&self, number: u32) -> u32 {
        let directory = self.directory.as_path();
        let owner = owner(&directory.join(format!("posada/{NAME}-{number}")));
        owner.expect("a clone is there by its name").as_raw() as u32
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.guest.kill();
        let _ = self.guest.wait();
    }
}

/// Starts a guest that can be heard and told.
fn spawn(command: &mut Command) -> (Child, ChildStdin, Output) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut guest = command.spawn().expect("posada starts");
    let output = Output::of(guest.stdout.take().expect("its output is piped"));
    let stdin = guest.stdin.take().expect("its input is piped");
    (guest, stdin, output)
}

const NAME: &str = "bench";

/// posada, for which only the guests in `directory` run.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(posada());
    command.env("XDG_RUNTIME_DIR", directory);
    command
}

fn millis(answer: &Value, key: &str) -> f64 {
    answer[key].as_f64().expect("a figure in microseconds") / 1e3
}

/// Full snapshots of a guest that has used this much of its memory.
fn pauses(table: &mut Table, memory: &str, touch: &str) {
    let guest = Named::counting(memory, &format!("touch={touch}"));
    let taken: Vec<_> = (0..RUNS)
        .map(|run| {
            let taken = guest.ask("snapshot", &run.to_string(), &[]);
            fs::remove_dir_all(guest.place(&run.to_string())).expect("a snapshot can be removed");
            taken
        })
        .collect();
    let figure = |key| median(taken.iter().map(|taken| millis(taken, key)).collect());
    table.absolute(
        &format!("snapshot: pause, {memory}, {touch} of it used"),
        figure("paused-us"),
        "ms",
        PAUSE_LIMIT,
    );
    table.absolute(
        "  of which CPU and device state",
        figure("state-us"),
        "ms",
        STATE_LIMIT,
    );
}

/// Full snapshots until they are on the disk, of a restored guest beside those of the one that it was restored from.
fn of_restored(table: &mut Table) {
    let mut guest = Named::counting("128M", "touch=64M");
    let took = |guest: &Named| {
        let taken = guest.ask("snapshot", "next", &[]);
        fs::remove_dir_all(guest.place("next")).expect("a snapshot can be removed");
        millis(&taken, "took-us")
    };
    let before: Vec<_> = (0..RUNS).map(|_| took(&guest)).collect();
    guest.ask("snapshot", "s", &["--stop"]);
    let pairs = before.into_iter().map(|before| {
        guest.restore("s");
        guest.count();
        (took(&guest), before)
    });
    let pairs: Vec<_> = pairs.collect();
    table.ratio(
        "snapshot: all of it, of a restored guest",
        &pairs,
        "ms",
        OF_RESTORED_LIMIT,
    );
}

fn diffs(table: &mut Table) {
    let mut guest = Named::counting("2G", "touch=1G dirty=10M");
    guest.ask("snapshot", "full", &[]);
    let paused = (0..DIFFS).map(|run| {
        guest.count();
        millis(&guest.ask("snapshot", &run.to_string(), &["--diff"]), "paused-us")
    });
    let paused = paused.collect();
    table.absolute(
        "diff: pause, 10 MiB written of 2 GiB",
        median(paused),
        "ms",
        PAUSE_LIMIT,
    );
}

/// Until a guest that prints without end prints again.
fn restores(table: &mut Table, memory: &str) {
    let directory = TempDir::new().expect("a directory for a kernel");
    let kernel = directory.as_path().join("kernel");
    fs::write(&kernel, payload::elf(payload::chatter(), true)).expect("a temporary file can be written");
    let kernel = kernel.to_str().expect("a path of plain characters");
    let mut guest = Named::start(&["--memory", memory, "--kernel", kernel]);
    guest.wait_for("x");
    // A guest whose output nobody reads cannot rest.
    let mut output = guest.output.take().expect("nobody else has taken it");
    let reader = thread::spawn(move || output.drain());
    guest.ask("snapshot", "s", &["--stop"]);
    guest.guest.wait().expect("the guest ends");
    reader.join().expect("the output ends with the guest");

    let times = (0..3 * RUNS).map(|_| {
        let mut command = command(guest.directory.as_path());
        crate::start::first_output(command.arg("restore").arg(guest.place("s")), false)
    });
    let times = times.collect();
    table.absolute(
        &format!("restore: exec → next instruction, {memory}"),
        median(times),
        "ms",
        RESTORE_LIMIT,
    );
}

fn rewinds(table: &mut Table) {
    let mut guest = Named::counting("128M", "touch=64M dirty=10M");
    guest.ask("snapshot", "s", &[]);
    // The first one maps the guest's memory from the snapshot; the others find it there.
    guest.ask("rewind", "s", &[]);
    let took = (0..RUNS).map(|_| {
        guest.count();
        millis(&guest.ask("rewind", "s", &[]), "took-us")
    });
    let took = took.collect();
    table.absolute("rewind: 10 MiB written", median(took), "ms", REWIND_LIMIT);
}

/// Clones of a booted Linux: until all run, and have run.
pub fn measure_clones(table: &mut Table) {
    let mut guest = Named::start(&[]);
    guest
        .stdin
        .write_all(b"echo at-the-$((1))-shell\n")
        .expect("posada takes input");
    guest.wait_for("at-the-1-shell");
    guest.ask("snapshot", "s", &["--stop"]);
    guest.guest.wait().expect("the guest ends");

    let start = Instant::now();
    let ended = command(guest.directory.as_path())
        .arg("clone")
        .arg(guest.place("s"))
        .args(["--count", &CLONES.to_string()])
        .output()
        .expect("posada starts");
    assert!(
        ended.status.success(),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    let pids: Vec<u32> = (1..=CLONES).map(|number| guest.pid_of(number)).collect();
    while !pids.iter().all(|pid| has_run(*pid)) {
        thread::yield_now();
    }
    let took = start.elapsed().as_secs_f64();
    table.absolute(
        &format!("clone: {CLONES} of a booted Linux, all have run"),
        took,
        "s",
        CLONES_LIMIT,
    );
    let memory = pids
        .iter()
        .map(|pid| Usage::of(*pid, MEMORY).own_memory as f64 / 1024.0);
    table.absolute(
        "clone: an idle one's own memory (PSS)",
        median(memory.collect()),
        "MiB",
        CLONE_MEMORY_LIMIT,
    );
    for pid in pids {
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("a clone can be ended");
    }
}

/// Whether a vCPU of this process has run its guest: it has been on a CPU for longer than all takes that comes before.
fn has_run(pid: u32) -> bool {
    const BEFORE: u64 = 2_000_000;
    threads::of(pid)
        .iter()
        .any(|thread| thread.name.starts_with("vcpu") && thread.nanos > BEFORE)
}

//! What the kernel tells of a process's threads.

use std::fs;

/// A thread, as it was when it was looked at.
pub struct Thread {
    /// What it is called: at most 15 bytes (proc_pid_comm(5)).
    pub name: String,
    /// How long it has been on a CPU, in nanoseconds.
    pub nanos: u64,
}

/// The threads of the process `pid`. One that ends meanwhile is left out.
///
/// # Panics
/// If there is no such process, or the kernel does not count what threads run.
pub fn of(pid: u32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is in /proc");
    let threads = tasks.flatten().filter_map(|task| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        // The first number is the time on a CPU (Linux, Documentation/scheduler/sched-stats.rst).
        let stat = read("schedstat")?;
        let nanos = stat
            .split_whitespace()
            .next()
            .and_then(|nanos| nanos.parse().ok());
        Some(Thread {
            name: read("comm")?,
            nanos: nanos.expect("the kernel counts what threads run"),
        })
    });
    threads.collect()
}

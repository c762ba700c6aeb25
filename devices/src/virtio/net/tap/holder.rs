//! Who has a tap open, as far as /proc tells.

use std::fs;
use std::path::Path;

/// The process that has the tap `name` of this network namespace open: "process 123 (qemu)". `None` if none is seen, be it that it
/// belongs to another user.
pub fn of_tap(name: &str) -> Option<String> {
    let namespace = fs::read_link("/proc/self/ns/net").ok()?;
    // The tap driver's line in fdinfo (Linux, drivers/net/tun.c, tun_chr_show_fdinfo).
    let line = format!("iff:\t{name}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let process = entry.path();
        let holds = fs::read_link(process.join("ns/net")).ok()? == namespace && has_open(&process, &line);
        holds.then(|| describe(pid, &process))
    })
}

fn has_open(process: &Path, line: &str) -> bool {
    let files = fs::read_dir(process.join("fdinfo"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .any(|info| info.lines().any(|found| found == line))
}

fn describe(pid: u32, process: &Path) -> String {
    let program = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("process {pid} ({})", program.trim_end())
}

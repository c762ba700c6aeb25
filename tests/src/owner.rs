//! Whose a running guest's directory is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use nix::unistd::Pid;

/// The process that holds the lock of `directory`, if there is one: proc_locks(5). A line is
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, with the device's numbers in hexadecimal.
pub fn owner(directory: &Path) -> Option<Pid> {
    let found = fs::metadata(directory).ok()?;
    let (major, minor) = (libc::major(found.dev()), libc::minor(found.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = fs::read_to_string("/proc/locks").expect("the kernel tells of locks");
    let held = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let held = held.filter(|words| words.get(1) == Some(&"FLOCK"));
    let mut owners = held.filter(|words| words.get(5) == Some(&file.as_str()));
    owners.find_map(|words| words[4].parse().ok().map(Pid::from_raw))
}

//! Whose a running guest's directory is.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::Pid;

/// The process that holds the lock of `directory`, if there is one: proc_locks(5). A line is
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, with the inode behind the device. That is another one than stat(2) tells of on btrfs, and
/// of several files with this inode's number the directory is the one that the process has open.
pub fn owner(directory: &Path) -> Option<Pid> {
    let inode = format!(":{}", fs::metadata(directory).ok()?.ino());
    let directory = directory.canonicalize().ok()?;
    let locks = fs::read_to_string("/proc/locks").expect("the kernel tells of locks");
    let held = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let held = held.filter(|words| words.get(1) == Some(&"FLOCK"));
    let mut owners = held
        .filter(|words| words.get(5).is_some_and(|file| file.ends_with(&inode)))
        .map(|words| words[4]);
    let owner = owners.find(|process| has_open(process, &directory))?;
    owner.parse().ok().map(Pid::from_raw)
}

/// Whether `directory` is nobody's. A process that is killed may have let go of its files for all that can be seen of it, and hold its
/// locks until the last of its threads has ended.
pub fn is_left(directory: &Path) -> bool {
    File::open(directory).map_or(true, |directory| directory.try_lock().is_ok())
}

fn has_open(process: &str, directory: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
    files.any(|file| file == directory)
}

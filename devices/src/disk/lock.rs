//! The lock on an image: one guest that writes, or many that read.
//!
//! It is a flock(2), which ends with the process however that ends, and which other VMMs and qemu-nbd-like tools that
//! use flock respect too.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use super::Holder;

/// How long a process that has ended may keep its lock: the kernel takes an io_uring, which holds the file, apart in the
/// background. Whoever starts a guest again at once is not to hear of it.
const AFTERLIFE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a file is not locked.
pub(super) enum LockError {
    /// Somebody else has it.
    InUse(Holder),
    /// The host does not lock it.
    Failed(io::Error),
}

/// Locks `file` until it is closed: shared if `readonly`.
pub(super) fn lock(file: &File, readonly: bool) -> Result<(), LockError> {
    let give_up_at = Instant::now() + AFTERLIFE;
    loop {
        let locked = if readonly {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        let holder = match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => holder(file),
            Err(TryLockError::Error(source)) => return Err(LockError::Failed(source)),
        };
        if holder != Holder::Unknown || Instant::now() >= give_up_at {
            return Err(LockError::InUse(holder));
        }
        thread::sleep(PAUSE);
    }
}

fn holder(file: &File) -> Holder {
    let pid = file.metadata().ok().and_then(|metadata| {
        let locks = fs::read_to_string("/proc/locks").ok()?;
        find(&locks, metadata.dev(), metadata.ino())
    });
    match pid {
        None => Holder::Unknown,
        Some(pid) if pid == process::id() => Holder::ThisGuest,
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => Holder::Process(pid, name.trim_end().to_owned()),
            // It has ended.
            Err(_) => Holder::Unknown,
        },
    }
}

/// The process that holds a flock on this inode: proc_locks(5). A line is
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, with the device's numbers in hexadecimal; one that
/// waits has `->` behind the first word, and one from another PID namespace no number above zero.
fn find(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let device = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
        (words.next() == Some(&device)).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
        1: POSIX  ADVISORY  WRITE 11 fe:00:5678 0 EOF\n\
        2: FLOCK  ADVISORY  WRITE 12 fe:00:5679 0 EOF\n\
        3: FLOCK  ADVISORY  WRITE 0 fe:01:5678 0 EOF\n\
        4: FLOCK  ADVISORY  WRITE 14 fe:00:5678 0 EOF\n\
        4: -> FLOCK  ADVISORY  WRITE 15 fe:00:5678 0 EOF\n\
        5: FLOCK";

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        assert_eq!(find(LOCKS, libc::makedev(0xfe, 0), 5678), Some(14));
        assert_eq!(find(LOCKS, libc::makedev(0xfe, 0), 5679), Some(12));
    }

    #[test]
    fn a_holder_that_is_not_named_is_nobody() {
        assert_eq!(find(LOCKS, libc::makedev(0xfe, 1), 5678), None);
        assert_eq!(find(LOCKS, libc::makedev(1, 1), 1), None);
        assert_eq!(find("", libc::makedev(0xfe, 0), 5678), None);
    }
}

//! Linux at its shell's prompt, for tests that need a guest and not its boot: each machine is booted once, and restored
//! from then on.
//!
//! The snapshots are kept beside the posada that took them, for all test programs and for the next run, each under what it
//! was made of. When posada, the guest's images or the host's last start is another one, they are removed and taken anew.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;

use crate::posada::binary;
use crate::{Guest, Running, images, posada};

/// The disk of a machine that has one, by its id.
pub const DISK: &str = "disk";
/// Its size in bytes.
pub const DISK_SIZE: u64 = 32 << 20;
/// Has the shell power its machine off at once. `poweroff` is a program, whose start takes seconds where the guest's kernel is
/// interpreted.
pub const POWER_OFF: &str = "echo o > /proc/sysrq-trigger\n";
/// The end of what the tiny guest's shell says when it is ready.
const PROMPT: &str = ":/root# ";
/// What its kernel says, in a line, when it has noticed that it has come back: from then on its console is the shell's.
const BACK: &str = "crng reseeded due to virtual machine fork";

/// A snapshot of the machine that `posada` with these arguments is, and that has the disk besides if one is wanted. It is
/// taken now if none is kept.
///
/// # Panics
/// If the guest does not boot, or its snapshot cannot be taken.
pub(crate) fn snapshot(arguments: &[OsString], with_disk: bool) -> PathBuf {
    let machine = name_for(&(arguments, with_disk));
    let directory = kept().join(&machine);
    fs::create_dir_all(&directory).expect("a directory for a booted machine");
    // Who else wants this machine waits for the one boot, in whatever process.
    let _lock = lock(&directory);
    let snapshot = directory.join("snapshot");
    if !snapshot.exists() {
        let mut guest = Guest::with_arguments(arguments.to_vec());
        if with_disk {
            let disk = empty_disk(&directory);
            guest = guest.arg("--disk").arg(format!("{},id={DISK}", plain(&disk)));
        }
        take(guest, &format!("booted-{machine}-{}", process::id()), &snapshot);
    }
    snapshot
}

/// Waits until the kernel of a restored machine has noticed that it is.
pub(crate) fn wait_until_back(guest: &mut Running) {
    guest.wait_for(BACK);
    guest.wait_for("\n");
}

fn empty_disk(directory: &Path) -> PathBuf {
    let path = directory.join("disk.img");
    let image = File::create(&path).and_then(|file| file.set_len(DISK_SIZE));
    image.expect("an image can be made");
    path
}

fn take(guest: Guest, name: &str, snapshot: &Path) {
    let mut guest = guest.named(name).start();
    guest.wait_for(PROMPT);
    posada(&["snapshot", name, plain(snapshot), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);
}

/// Where the snapshots are that fit. All others are removed, but for one that somebody else takes just now: guests that were made
/// from them keep what they have of them.
fn kept() -> &'static Path {
    static KEPT: OnceLock<PathBuf> = OnceLock::new();
    KEPT.get_or_init(|| {
        let profile = binary().parent().expect("a program is in a directory");
        let all = profile.join("booted");
        fs::create_dir_all(&all).expect("a directory for booted machines");
        let _lock = lock(&all);
        let fitting = all.join(name_for(&made_of()));
        let entries = fs::read_dir(&all).expect("a directory can be read").flatten();
        for other in entries.map(|entry| entry.path()) {
            if other.is_dir() && other != fitting {
                remove_unless_used(&other);
            }
        }
        fitting
    })
}

/// Removes the machines in `directory` that nobody has locked, and it if there are no others.
fn remove_unless_used(directory: &Path) {
    let entries = fs::read_dir(directory)
        .expect("a directory can be read")
        .flatten();
    for machine in entries.map(|entry| entry.path()) {
        let lock = File::create(machine.join("lock")).expect("a lock's file can be made");
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(&machine).expect("an old snapshot can be removed");
        }
    }
    // Fails if there are others.
    let _ = fs::remove_dir(directory);
}

/// All that decides, besides the machine, whether a snapshot is what would be taken now: the files that it is made with, and
/// the host's last start, which sets the CPU's features, KVM, and when the TSC began to count.
fn made_of() -> String {
    let files = [
        binary().to_owned(),
        images::tiny_vmlinux(),
        images::tiny_initramfs(),
    ];
    let sums = Command::new("md5sum").args(files).output().expect("md5sum runs");
    assert!(sums.status.success(), "md5sum: {sums:?}");
    let start = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    String::from_utf8_lossy(&sums.stdout).into_owned() + &start.expect("the kernel tells its start's id")
}

/// Locks a directory until what is returned is dropped.
fn lock(directory: &Path) -> File {
    let file = File::create(directory.join("lock")).expect("a lock's file can be made");
    file.lock().expect("a file can be locked");
    file
}

fn name_for(what: &(impl Hash + ?Sized)) -> String {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("cargo's directories have plain names")
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    #[test]
    fn old_machines_are_removed_but_not_one_that_somebody_boots() {
        let directory = TempDir::new().unwrap();
        let machines = directory.as_path().join("0");
        let [old, booting] = ["old", "booting"].map(|machine| machines.join(machine));
        for machine in [&old, &booting] {
            fs::create_dir_all(machine.join("snapshot")).unwrap();
        }
        let booted = lock(&booting);
        remove_unless_used(&machines);
        assert!(!old.exists() && booting.join("snapshot").exists());
        drop(booted);
        remove_unless_used(&machines);
        assert!(!machines.exists());
    }
}

//! File systems of other kinds than the one that tests are on: made in a file, for one test.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::guest::TempFile;

const MIB: u64 = 1 << 20;

/// Whether the command did what it is for.
fn does(command: &str, arguments: &[&str]) -> bool {
    match Command::new(command).args(arguments).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!(
                "{command} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            false
        }
        Err(error) => {
            eprintln!("{command}: {error}");
            false
        }
    }
}

/// A file system of this kind, in a file, on `place`, for this thread alone; it goes with the thread. False if the host has no
/// tool to make it, or its kernel none to mount it.
///
/// # Panics
/// If the thread may not mount anything: that takes root.
pub fn mount(kind: &str, file: &TempFile, place: &Path) -> bool {
    unshare_mounts();
    let medium = File::options().write(true).open(file.path()).unwrap();
    medium.set_len(512 * MIB).unwrap();
    does(&format!("mkfs.{kind}"), &["-q", file.as_str()])
        && does(
            "mount",
            &["-t", kind, "-o", "loop", file.as_str(), place.to_str().unwrap()],
        )
}

/// A file system of 64 KiB and 32 names, on `place`, for this thread and what it starts.
///
/// # Panics
/// If the thread may not mount anything: that takes root.
pub fn mount_small(place: &Path) {
    unshare_mounts();
    let arguments = ["-t", "tmpfs", "-o", "size=64k,nr_inodes=32", "tmpfs"];
    assert!(does(
        "mount",
        &[
            &arguments[..],
            &[place.to_str().expect("temporary files have plain names")]
        ]
        .concat()
    ));
}

fn unshare_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root, as it mounts a file system");
    assert!(does("mount", &["--make-rprivate", "/"]));
}

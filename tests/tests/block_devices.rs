//! Disks that are block devices of the host's: loop devices here, which grow and fail as others do.

use std::fs::File;
use std::process::Command;

use posada_tests::Guest;
use posada_tests::guest::TempFile;

const MIB: u64 = 1 << 20;

/// A loop device and the file behind it. It goes when this does.
struct LoopDevice {
    file: TempFile,
    path: String,
}

impl LoopDevice {
    /// A device of zeros.
    ///
    /// # Panics
    /// If the test does not run as root.
    fn new(size: u64) -> Self {
        let file = TempFile::new("behind.img", "");
        set_len(&file, size);
        let path = losetup(&["--find", "--show", file.as_str()]);
        Self {
            file,
            path: path.trim_end().to_owned(),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        losetup(&["--detach", &self.path]);
    }
}

fn set_len(file: &TempFile, size: u64) {
    let opened = File::options().write(true).open(file.path());
    opened.and_then(|file| file.set_len(size)).expect("a sparse file");
}

#[track_caller]
fn losetup(arguments: &[&str]) -> String {
    let output = Command::new("losetup").args(arguments).output();
    let output = output.expect("losetup runs (Debian's package mount)");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "losetup {arguments:?}: {messages}");
    String::from_utf8(output.stdout).expect("a path")
}

#[test]
fn a_block_device_that_grows_does_so_for_the_guest() {
    let device = LoopDevice::new(16 * MIB);
    // Another one grows too, of which nobody is to hear.
    let other = LoopDevice::new(MIB);
    let mut guest = Guest::bare("program=idle")
        .arg("-v")
        .arg("--disk")
        .arg(&device.path)
        .start();
    guest.wait_for("idle: 1 devices");
    set_len(&other.file, 3 * MIB);
    losetup(&["--set-capacity", &other.path]);
    set_len(&device.file, 32 * MIB);
    losetup(&["--set-capacity", &device.path]);
    guest.wait_for_message(&format!("the disk image '{}' has 65536 sectors now", device.path));
    guest.send("\n");
    guest.wait().expect_status(0);
}

#[test]
fn a_block_device_that_fails_is_an_io_error_of_the_guests_and_told_once() {
    const GUEST_CRASHED: i32 = 3;
    let device = LoopDevice::new(16 * MIB);
    // What is behind the second half is gone, but the device does not know.
    set_len(&device.file, 8 * MIB);
    let guest = Guest::bare("program=blk-check mode=read first=16384 sectors=64");
    let ended = guest.arg("--disk").arg(format!("{},readonly", device.path)).run();
    let ended = ended.expect_status(GUEST_CRASHED);
    assert!(
        ended.console().contains("FAILED: "),
        "the guest goes on and says so"
    );
    let messages = ended.messages();
    assert_eq!(messages.matches("Input/output error").count(), 1, "{messages}");
    assert!(messages.contains(&device.path), "{messages}");
    ended.expect_no_panic();
}

//! The tiny Linux guest: booted in each way, its machine as it sees it, and its ways to end.

use std::io::Write;
use std::process::{self, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use posada_tests::{Ended, Guest, checks, images, posada};
use vmm_sys_util::tempdir::TempDir;

const GUEST_CRASHED: i32 = 3;
const MIB: u64 = 1 << 20;

/// Shell commands that print `cpus=`, `memory=` (in KiB) and `now=` (in seconds since 1970).
///
/// What is typed is echoed; the echo has none of these texts followed by a number.
const DESCRIBE: &str = "\
    echo cpus=$(nproc)\n\
    echo memory=$(grep MemTotal /proc/meminfo | tr -dc 0-9)\n\
    echo now=$(date +%s)\n";

/// The number that the guest printed after `name=`.
#[track_caller]
fn number(ended: &Ended, name: &str) -> u64 {
    let console = ended.console();
    let before = format!("{name}=");
    let texts = console.split(&before).skip(1);
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let found = texts.map(digits).find(|digits| !digits.is_empty());
    found
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("no {name}= and a number"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Checks that the guest has these CPUs and this much memory, by what it has said itself.
#[track_caller]
fn describes(ended: &Ended, cpus: u64, memory: u64) {
    assert_eq!(number(ended, "cpus"), cpus);
    // The kernel keeps its own code and its tables of pages for itself.
    let total = number(ended, "memory") << 10;
    assert!(
        (memory * 3 / 4..memory).contains(&total),
        "{total} of {memory} bytes"
    );
}

/// Boots the guest, ends it by `end` and checks that it has these CPUs, this much memory and the right time.
#[track_caller]
fn boots(guest: Guest, end: &str, cpus: u64, memory: u64) -> Ended {
    const CLOCK_TOLERANCE: u64 = 3;
    let earliest = now();
    let ended = guest.input(format!("{DESCRIBE}{end}\n")).run().expect_status(0);
    let latest = now();
    describes(&ended, cpus, memory);
    let clock = number(&ended, "now");
    assert!(
        (earliest - CLOCK_TOLERANCE..=latest + CLOCK_TOLERANCE).contains(&clock),
        "the guest says {clock}, the host says {earliest} to {latest}"
    );
    assert_eq!(ended.messages(), "");
    ended
}

/// `md5sum` of these bytes, by the host.
fn checksum(bytes: &[u8]) -> String {
    let mut md5sum = Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("md5sum runs");
    md5sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = String::from_utf8(md5sum.wait_with_output().unwrap().stdout).unwrap();
    output.split_whitespace().next().unwrap().to_owned()
}

/// All of the input is there before the guest boots. The kernel opens the console long before anybody reads from it, and holds
/// input back, by RTS, while its terminal's 4 KiB are full.
#[test]
fn boots_from_elf_by_pvh_gets_more_than_64_kib_that_were_piped_in_before_and_powers_off() {
    const RECEIVE: &str = "stty -echo; cat > /tmp/received; echo sum=$(md5sum < /tmp/received)\n";
    const END_OF_FILE: &str = "\x04";
    // Long lines: a terminal hands `cat` one line at a time.
    let data: String = (0..80)
        .map(|n| format!("{}\n", format!("line {n:2}, ").repeat(100)))
        .collect();
    assert!(data.len() > 64 << 10);
    let end = format!("{RECEIVE}{data}{END_OF_FILE}poweroff");
    let ended = boots(Guest::booting().boot("pvh"), &end, 1, 128 * MIB);
    let expected = format!("sum={}", checksum(data.as_bytes()));
    assert!(ended.console().contains(&expected), "not {expected}");
    assert!(ended.console().contains("reboot: Power down"));
}

/// Its CPUs are what programs rely on.
#[test]
fn boots_from_elf_by_the_64_bit_protocol_with_two_cpus_and_a_gibibyte_passes_the_checks_and_reboots() {
    let guest = Guest::tiny_with(&images::checks())
        .boot("linux64")
        .cpus(2)
        .memory("1G");
    let end = format!("{}reboot", checks::command("/checks"));
    let ended = boots(guest, &end, 2, 1024 * MIB);
    checks::all_passed(&ended);
    assert!(ended.console().contains("reboot: Restarting system"));
}

/// It finds its virtio devices all the same, and its agent is waited for. There is no pvpanic that tells; what comes after the boot goes
/// both ways, by a snapshot.
#[test]
fn boots_from_a_bzimage_without_acpi_and_an_orderly_reboot_is_no_crash_but_a_panic_is() {
    const FIND: &str = "echo random=$(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)\n";
    let directory = TempDir::new().expect("a directory for temporary files");
    let snapshot = directory.as_path().join("snapshot");
    let name = format!("linux-without-acpi-{}", process::id());
    let mut guest = Guest::linux(&images::tiny_bzimage(), &images::tiny_initramfs())
        .append("acpi=off")
        .cpus(2)
        .arg("--rng")
        .arg("--vsock")
        .arg(directory.as_path().join("v.sock"))
        .named(&name)
        .start();
    guest.wait_for("Linux version");
    let up = posada(&["exec", "--wait", "3600", &name, "--", "echo", "up"]).expect_status(0);
    assert_eq!(up.console(), "up\n");
    guest.send(format!("{DESCRIBE}{FIND}"));
    guest.wait_for("random=16");
    posada(&["snapshot", &name, snapshot.to_str().expect("a plain name")]).expect_status(0);

    guest.send("reboot\n");
    let ended = guest.wait().expect_status(0);
    describes(&ended, 2, 128 * MIB);
    assert!(ended.console().contains("reboot: Restarting system"));
    panics(Guest::restored(&snapshot).arg("--name=guest"));
}

#[track_caller]
fn panics(guest: Guest) {
    let ended = guest
        .input("echo c > /proc/sysrq-trigger\n")
        .run()
        .expect_status(GUEST_CRASHED);
    assert!(ended.console().contains("Kernel panic"));
    assert_eq!(ended.messages(), "posada: guest crashed: its kernel panicked\n");
}

#[test]
fn a_kernel_panic_is_told_by_pvpanic() {
    panics(Guest::booted());
}

//! Guests whose drivers do what the specification forbids: the devices live on, posada says so once, and takes up no more than before.

use std::os::unix::net::UnixListener;
use std::thread;

use posada_tests::guest::TempFile;
use posada_tests::network;
use posada_tests::usage::Usage;
use posada_tests::{Guest, Running};
use vmm_sys_util::tempdir::TempDir;

const GUEST_MEMORY: u64 = 128 << 20;

/// A guest that misuses this device, which `arguments` bring, beside an entropy device.
fn hostile(device: &str, more: &str, arguments: &[&str]) -> Guest {
    let guest = Guest::bare(&format!("program=hostile device={device} {more}")).memory("128M");
    arguments
        .iter()
        .fold(guest.arg("--rng"), |guest, argument| guest.arg(argument))
}

/// Does everything once to a device that posada's log calls `name`.
#[track_caller]
fn survives_everything(device: &str, name: &str, arguments: &[&str]) {
    /// Fewer would be a table that is not all there.
    const FEWEST: usize = 105;
    let ended = hostile(device, "", arguments).run().expect_status(0);
    let console = ended.console();
    let cases = console.matches(&format!("\n{device}: ")).count() + 1;
    assert!(cases > FEWEST, "{cases} cases: {console}");
    let report = format!("\ncases={cases} repeat=1 survived={cases}\n");
    assert!(console.ends_with(&report), "not '{report}': {console}");
    let messages = ended.messages();
    assert_eq!(messages.lines().count(), 1, "one line tells of it: {messages}");
    assert!(messages.starts_with(&format!(" WARN {name}: the ")), "{messages}");
}

/// Repeats everything that the device survives, and compares what posada takes up after the first round and after the last.
#[track_caller]
fn takes_up_no_more(device: &str, repeat: u64, arguments: &[&str]) {
    /// KiB: what an allocator may need for itself, and less than a few bytes for each case.
    const SLACK: u64 = 128;
    let usage = |guest: &Running| Usage::of(guest.pid().as_raw() as u32, GUEST_MEMORY);
    let mut guest = hostile(device, &format!("hold=yes repeat={repeat}"), arguments).start();
    guest.wait_for("first round over\n");
    let before = usage(&guest);
    guest.send("\n");
    guest.wait_for(" survived=");
    let after = usage(&guest);
    guest.send("\n");
    guest.wait().expect_status(0);
    assert!(
        after.written <= before.written + SLACK,
        "{before:?}, then {after:?}"
    );
    assert_eq!(
        (after.files, after.threads),
        (before.files, before.threads),
        "files and threads"
    );
}

/// A disk of 16 MiB.
fn image() -> TempFile {
    TempFile::new("disk.img", vec![0; 16 << 20])
}

#[test]
fn the_entropy_device_survives_whatever_its_driver_does() {
    // Beside it a disk, which must not notice.
    let image = image();
    survives_everything("rng", "entropy", &["--disk", image.as_str()]);
}

#[test]
fn a_thousand_misuses_of_the_entropy_device_take_up_nothing() {
    takes_up_no_more("rng", 10, &[]);
}

#[test]
fn a_disk_survives_whatever_its_driver_does() {
    for options in [
        "engine=io_uring",
        "engine=sync",
        "engine=io_uring,iothread,queues=4",
        "readonly",
    ] {
        let image = image();
        let disk = format!("{},id=target,{options}", image.as_str());
        survives_everything("disk", "disk 'target'", &["--disk", &disk]);
    }
}

#[test]
fn two_thousand_misuses_of_a_disk_take_up_nothing() {
    for engine in ["io_uring", "sync"] {
        let image = image();
        let disk = format!("{},engine={engine}", image.as_str());
        takes_up_no_more("disk", 10, &["--disk", &disk]);
    }
}

/// A socket for a guest, and a program on the host that accepts connections to port 5000 and never reads.
struct Deaf {
    _directory: TempDir,
    option: String,
}

impl Deaf {
    fn listen() -> Self {
        /// Connections that it keeps; fewer than a process may have files.
        const KEPT: usize = 600;
        let directory = TempDir::new().expect("a directory for temporary files");
        let path = directory.as_path().join("v.sock");
        let option = path
            .to_str()
            .expect("temporary files have plain names")
            .to_owned();
        let listener = UnixListener::bind(format!("{option}_5000")).expect("a socket");
        // Ends with the test program.
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                if kept.len() == KEPT {
                    kept.clear();
                }
                kept.push(stream);
            }
        });
        Self {
            _directory: directory,
            option,
        }
    }
}

#[test]
fn a_socket_device_survives_whatever_its_driver_does() {
    let host = Deaf::listen();
    survives_everything("vsock", "vsock", &["--vsock", &host.option]);
}

#[test]
fn hundreds_of_misuses_of_a_socket_device_take_up_nothing() {
    let host = Deaf::listen();
    takes_up_no_more("vsock", 5, &["--vsock", &host.option]);
}

#[test]
fn a_balloon_survives_whatever_its_driver_does_with_any_queue() {
    for device in ["balloon", "balloon-deflate", "balloon-reports"] {
        survives_everything(device, "balloon", &["--balloon", "free-page-reporting"]);
    }
}

#[test]
fn a_thousand_misuses_of_a_balloon_take_up_nothing() {
    takes_up_no_more("balloon", 10, &["--balloon", "free-page-reporting"]);
}

/// The host's end of a network, in a namespace of the test's own; the guest asks for its address.
fn make_network() {
    network::isolate();
    network::ip("tuntap add t0 mode tap multi_queue");
    network::ip("link set t0 up");
    network::ip("addr add 192.0.2.1/24 dev t0");
}

#[test]
fn a_network_survives_whatever_its_driver_does() {
    make_network();
    for tap in ["tap=t0", "tap=t0,queues=2"] {
        survives_everything("net", "network 't0'", &["--net", tap]);
    }
}

#[test]
fn a_network_of_two_queue_pairs_survives_whatever_its_driver_commands() {
    make_network();
    survives_everything("net-control", "network 't0'", &["--net", "tap=t0,queues=2"]);
}

#[test]
fn hundreds_of_misuses_of_a_control_queue_take_up_nothing() {
    make_network();
    takes_up_no_more("net-control", 5, &["--net", "tap=t0,queues=2"]);
}

#[test]
fn a_thousand_misuses_of_a_network_take_up_nothing() {
    make_network();
    takes_up_no_more("net", 10, &["--net", "tap=t0"]);
}

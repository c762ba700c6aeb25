//! Golden snapshots: what posada has ever written is kept in tests/golden, and comes back for ever.
//!
//! `make golden` takes those of the format that is written now (docs/snapshots.md says when), on the kind of host that it runs on.
//! They come back on hosts that have the CPU features of the one they were taken on, which are written down with them; on others
//! they are read, and refused because of the CPU and nothing else.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use posada_tests::network::{self, make_tap};
use posada_tests::running::until;
use posada_tests::{Ended, Guest, images, posada};
use vmm_sys_util::tempdir::TempDir;

/// The format that is written now, as `tests/golden` has it.
const FORMAT: &str = "v1";
/// Where goldens are made, everywhere the same: snapshots have paths in them.
const HOME: &str = "/var/tmp/posada-golden";
const TAP: &str = "golden0";
const DISK_SIZE: u64 = 1 << 20;

/// Where they are kept: a directory for each format, and in it an archive for each kind of host.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The kind of this host, and what its CPU has, as /proc/cpuinfo tells it.
fn host() -> Vec<String> {
    let pvm = Path::new("/sys/module/kvm_pvm").exists();
    let cpus = fs::read_to_string("/proc/cpuinfo").expect("the CPUs are in /proc");
    let words = |name: &str| {
        let line = cpus.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("", |(_, words)| words)
    };
    let kind = if pvm { "pvm" } else { "hardware" };
    let all = format!("{kind} {} {}", words("vendor_id"), words("flags"));
    all.split_whitespace().map(str::to_owned).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary files have plain names")
}

/// `tar` with these arguments.
#[track_caller]
fn tar(arguments: &str) {
    let output = Command::new("tar").args(arguments.split_whitespace()).output();
    let output = output.expect("tar runs");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar {arguments}: {messages}");
}

/// An empty image for the disk.
fn disk(directory: &Path) -> PathBuf {
    let path = directory.join("disk.img");
    let image = File::create(&path).and_then(|file| file.set_len(DISK_SIZE));
    image.expect("a temporary file can be made");
    path
}

/// The smallest machine, with two CPUs and a device of each kind.
fn machine(program: &str) -> Guest {
    Guest::kernel("kernel".as_ref())
        .arg("--cmdline")
        .arg(format!("acpi=off program={program}"))
        .cpus(2)
        .memory("2M")
        .arg("--disk=disk.img,id=data")
        .arg(format!("--net=tap={TAP}"))
        .arg("--vsock=v.sock")
        .arg("--balloon=free-page-reporting")
        .arg("--rng")
        .in_directory(HOME.as_ref())
}

/// Takes a snapshot of a guest that has `said` how far it is.
fn take(program: &str, said: &str) {
    let mut guest = machine(program).named("golden").start();
    guest.wait_for(said);
    let snapshot = Path::new(HOME).join(program);
    posada(&["snapshot", "golden", text(&snapshot), "--stop"]).expect_status(0);
    guest.wait().expect_status(0);
}

#[test]
#[ignore = "takes golden snapshots of the format that is written now: make golden"]
fn make_golden_snapshots() {
    const PLAIN: &str = "--sort=name --owner=0 --group=0 --numeric-owner --mtime=@0";
    let host = host();
    let archive = kept().join(FORMAT).join(format!("{}.tar.xz", host[0]));
    let archive = text(&archive);
    assert!(
        !Path::new(archive).exists(),
        "there is a '{archive}': remove it first, unless its format has been released"
    );
    network::isolate();
    make_tap(TAP);
    let home = Path::new(HOME);
    fs::create_dir(home).expect("nobody else makes golden snapshots");
    fs::copy(images::bare(), home.join("kernel")).expect("the kernel can be copied");
    fs::write(home.join("host"), host.join(" ") + "\n").expect("a file can be written");
    disk(home);
    take("idle", "queues\n");
    take("vsock-echo", "port 5000\n");
    fs::create_dir_all(kept().join(FORMAT)).expect("a directory of the sources");
    tar(&format!(
        "--create --sparse --xz {PLAIN} --file {archive} --directory {HOME} host idle vsock-echo"
    ));
    fs::remove_dir_all(home).expect("what was made can be removed");
}

/// The archives of all formats and kinds of hosts.
fn archives() -> Vec<PathBuf> {
    let entries = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).expect("a directory of the sources");
        entries
            .map(|entry| entry.expect("a directory can be read").path())
            .collect()
    };
    entries(&kept())
        .iter()
        .flat_map(|format| entries(format))
        .collect()
}

/// What was in an archive.
struct Golden(TempDir);

impl Golden {
    fn unpack(archive: &Path) -> Self {
        let place = TempDir::new().expect("a directory for temporary files");
        tar(&format!(
            "--extract --file {} --directory {}",
            text(archive),
            text(place.as_path())
        ));
        Self(place)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    fn restored(&self, program: &str) -> Guest {
        Guest::restored(&self.file(program))
            .arg("--verify")
            .arg("--disk")
            .arg(format!("data={}", text(&disk(self.0.as_path()))))
            .arg("--vsock")
            .arg(self.file("v.sock"))
    }

    /// Whether the guest may be refused here, as it may use what this host's CPU has not.
    fn may_be_refused(&self) -> bool {
        let then = fs::read_to_string(self.file("host")).expect("each archive has it");
        let now = host();
        !then
            .split_whitespace()
            .all(|word| now.iter().any(|here| here == word))
    }

    /// All its devices are started, and the guest waits for a line.
    fn idle(&self) -> Ended {
        self.restored("idle").input("once more\n").run()
    }

    fn is_woken(ended: Ended) {
        let ended = ended.expect_status(0);
        assert_eq!(ended.console().trim_end(), "woken by: once more");
        assert_eq!(ended.messages(), "");
    }

    /// The guest listens for a stream.
    fn answers(&self) {
        let guest = self.restored("vsock-echo").start();
        let socket = self.file("v.sock");
        until("posada listens", || UnixStream::connect(&socket).is_ok());
        let mut stream = UnixStream::connect(&socket).expect("posada listens");
        stream.write_all(b"CONNECT 5000\nas ever").expect("posada reads");
        stream.shutdown(Shutdown::Write).expect("the stream is there");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the guest answers");
        let (accepted, echo) = answer.split_once('\n').expect("posada's line comes first");
        assert!(accepted.starts_with("OK "), "{accepted}");
        assert_eq!(echo, "as ever");
        let ended = guest.wait().expect_status(0);
        assert_eq!(ended.console(), "connections=1 bytes=7\n");
    }
}

#[track_caller]
fn is_refused_for_its_cpu(ended: Ended) {
    const REASONS: [&str; 3] = [
        "the snapshot is of a guest on a host of the kind ",
        "the snapshot is of a guest on a ",
        "the snapshot's guest uses a CPU with ",
    ];
    let messages = ended.messages();
    assert!(
        REASONS.iter().any(|reason| messages.contains(reason)),
        "{messages}"
    );
    ended.expect_refusal(1, &["this host"]);
}

#[test]
fn snapshots_of_every_format_come_back_and_their_guests_go_on() {
    network::isolate();
    make_tap(TAP);
    let archives = archives();
    assert!(!archives.is_empty(), "there are golden snapshots");
    for archive in archives {
        eprintln!("{}", archive.display());
        let golden = Golden::unpack(&archive);
        let idle = golden.idle();
        if golden.may_be_refused() && idle.status.code() == Some(1) {
            is_refused_for_its_cpu(idle);
            is_refused_for_its_cpu(golden.restored("vsock-echo").run());
        } else {
            Golden::is_woken(idle);
            golden.answers();
        }
    }
}

//! Disks: what a guest writes is on the host's image, whatever happens to posada; and images that cannot be a disk.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use devices::disk::{Image, ImageOptions, Layer, Place, SECTOR};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use posada_tests::booted::{self, POWER_OFF};
use posada_tests::guest::TempFile;
use posada_tests::payload::hello;
use posada_tests::{Ended, Guest, Running};

const FAILURE: i32 = 1;
const USAGE: i32 = 2;
const GUEST_CRASHED: i32 = 3;
const MIB: u64 = 1 << 20;

/// An image of this size, sparse.
fn image(size: u64) -> TempFile {
    let image = TempFile::new("disk.img", "");
    File::options()
        .write(true)
        .open(image.path())
        .unwrap()
        .set_len(size)
        .unwrap();
    image
}

/// The bare guest's disk check, on this disk.
fn check(words: &str, disk: impl AsRef<str>) -> Guest {
    Guest::bare(&format!("program=blk-check {words}"))
        .arg("--disk")
        .arg(disk.as_ref())
}

/// The last line of the console: how many sectors, and their checksum.
fn last_line(ended: &Ended) -> String {
    ended
        .console()
        .lines()
        .last()
        .expect("it prints a checksum")
        .to_owned()
}

#[test]
fn what_one_guest_writes_the_next_one_reads_by_each_engine_and_cache() {
    for options in ["engine=io_uring", "engine=sync", "engine=io_uring,cache=direct"] {
        let image = image(4 * MIB);
        let disk = format!("{},{options},id=the-disk,queues=2,iothread", image.as_str());
        let written = check("sectors=1000 first=24", &disk).run().expect_status(0);
        assert!(
            written
                .console()
                .contains("capacity=8192 readonly=false id=the-disk"),
            "{options}"
        );
        let other_engine = format!("{},engine=sync,readonly", image.as_str());
        let read = check("sectors=1000 first=24 mode=read", &other_engine)
            .run()
            .expect_status(0);
        assert_eq!(last_line(&read), last_line(&written), "{options}");
        assert_eq!(written.messages() + &read.messages(), "", "{options}");
    }
}

/// A block device of the host's, made of a file.
struct Loop(String);

impl Loop {
    fn of(file: &str) -> Self {
        let output = tool("losetup", &["--find", "--show", file]);
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_of_the_hosts_is_a_disk_too() {
    let image = image(4 * MIB);
    let device = Loop::of(image.as_str());
    for engine in ["io_uring", "sync"] {
        let disk = format!("{},engine={engine}", device.0);
        let written = check("sectors=1000 first=24", &disk).run().expect_status(0);
        assert!(written.console().contains("capacity=8192 readonly=false"));
        let read = check("sectors=1000 first=24 mode=read", &disk)
            .run()
            .expect_status(0);
        assert_eq!(last_line(&read), last_line(&written), "{engine}");
        assert_eq!(written.messages() + &read.messages(), "", "{engine}");
    }
}

#[test]
fn a_readonly_disk_is_left_as_it_is() {
    let image = image(MIB);
    let ended = check("sectors=8", format!("{},readonly", image.as_str()))
        .run()
        .expect_status(GUEST_CRASHED);
    assert!(
        ended.console().contains("readonly=true"),
        "the guest is told that it may not write"
    );
    let mut bytes = Vec::new();
    File::open(image.path()).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "nothing was written");
}

#[test]
fn a_limited_disk_loses_nothing() {
    let image = image(4 * MIB);
    let disk = format!(
        "{},bandwidth=20M/s,bandwidth-burst=64K,iops=1000,iops-burst=2",
        image.as_str()
    );
    check("sectors=4000", disk).run().expect_status(0);
}

#[test]
fn disks_come_in_the_order_of_their_flags() {
    let (small, large) = (image(MIB), image(2 * MIB));
    let guest = Guest::bare("program=blk-check device=1 sectors=1");
    let ended = guest
        .arg("--disk")
        .arg(small.path())
        .arg("--disk")
        .arg(large.path())
        .run()
        .expect_status(0);
    assert!(ended.console().contains("capacity=4096 "));
}

/// posada as `guest` wants it run, in a mount namespace of its own after `sh` has run `script` there, whose `$1` is `place`
/// and `$2` is `other`.
fn after(script: &str, place: &Path, other: &Path, guest: &Guest) -> Running {
    let posada = guest.command(Stdio::null());
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--map-root-user", "sh", "-ec"])
        .arg(format!("{script}; shift 2; exec \"$@\""))
        .arg("sh")
        .args([place, other])
        .arg(posada.get_program())
        .args(posada.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running::of(command)
}

/// An image of 16 MiB on a file system of one.
#[test]
fn a_full_host_is_an_io_error_of_the_guests_and_told_once() {
    const SCRIPT: &str = "mount -t tmpfs -o size=1M none \"$1\"; truncate -s 16M \"$2\"";
    let place = TempFile::new("here", "");
    let disk = place.directory().join("disk.img");
    let guest = check("sectors=16384", disk.to_str().unwrap());
    let ended = after(SCRIPT, place.directory(), &disk, &guest)
        .wait()
        .expect_status(GUEST_CRASHED);
    assert!(
        ended.console().contains("FAILED: "),
        "the guest goes on and says so"
    );
    let messages = ended.messages();
    assert_eq!(
        messages.matches("No space left on device").count(),
        1,
        "{messages}"
    );
    assert!(messages.contains(disk.to_str().unwrap()), "{messages}");
    ended.expect_no_panic();
}

#[track_caller]
fn refuses(disk: impl AsRef<str>, status: i32, named: &[&str]) {
    let guest = Guest::payload(hello()).arg("--disk").arg(disk.as_ref());
    guest.run().expect_refusal(status, named);
}

#[test]
fn a_file_that_is_no_image() {
    let directory = TempFile::new("file", "");
    refuses(
        "/nonexistent/disk",
        FAILURE,
        &["'/nonexistent/disk'", "No such file"],
    );
    refuses("/tmp", FAILURE, &["'/tmp'", "a directory"]);
    refuses("/dev/zero", FAILURE, &["'/dev/zero'", "a character device"]);
    let pipe = directory.directory().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    refuses(pipe.to_str().unwrap(), FAILURE, &["a pipe"]);
    refuses(directory.as_str(), FAILURE, &["is empty", "truncate"]);
    let half = TempFile::new("half", [0; 1000]);
    refuses(half.as_str(), FAILURE, &["1000 bytes", "multiple of 512"]);
    let qcow2 = TempFile::new("image", [&b"QFI\xfb"[..], &[0; 508]].concat());
    refuses(
        qcow2.as_str(),
        FAILURE,
        &["qcow2", "qemu-img convert", "format=raw"],
    );
}

#[test]
fn an_image_that_may_only_be_read() {
    const SCRIPT: &str = "mount --bind \"$1\" \"$2\"; mount -o remount,bind,ro \"$2\"";
    let image = image(MIB);
    let readonly = TempFile::new("mounted", "");
    let guest = Guest::payload(hello()).arg("--disk").arg(readonly.path());
    let named = [readonly.as_str(), "for writing", "',readonly'"];
    after(SCRIPT, image.path(), readonly.path(), &guest)
        .wait()
        .expect_refusal(FAILURE, &named);
    let guest = Guest::payload(hello())
        .arg("--disk")
        .arg(format!("{},readonly", readonly.as_str()));
    after(SCRIPT, image.path(), readonly.path(), &guest)
        .wait()
        .expect_status(0);
}

fn given_twice(disk: &str) -> Ended {
    let guest = Guest::payload(hello()).arg("--disk").arg(disk);
    guest.arg("--disk").arg(disk).run()
}

#[test]
fn words_that_make_no_sense() {
    let image = image(MIB);
    for (words, named) in [
        ("nonsense", "'nonsense'"),
        ("format=qcow2", "qemu-img convert"),
        ("engine=fast", "io_uring or sync"),
        ("bandwidth=fast", "100M/s"),
        ("queues=0", "1 to 16"),
        ("iops=0", "above 0"),
        ("id=a b", "printable"),
        ("id=012345678901234567890", "1 to 20"),
    ] {
        let guest = Guest::payload(hello())
            .arg("--disk")
            .arg(format!("{},{words}", image.as_str()));
        let ended = guest.run().expect_status(USAGE);
        assert!(ended.messages().contains(named), "{words}: {}", ended.messages());
    }
    let twice = format!("{},id=one", image.as_str());
    given_twice(&twice).expect_refusal(USAGE, &["'one'"]);
}

#[test]
fn an_image_that_is_in_use() {
    let image = image(MIB);
    let mut first = Guest::bare("program=idle")
        .arg("--disk")
        .arg(image.path())
        .start();
    first.wait_for("\n");
    let holder = format!("process {} (", first.pid());
    refuses(image.as_str(), FAILURE, &["in use", &holder]);
    refuses(format!("{},readonly", image.as_str()), FAILURE, &[&holder]);
    let link = image.directory().join("link");
    symlink(image.path(), &link).unwrap();
    refuses(link.to_str().unwrap(), FAILURE, &[&holder]);
    drop(first);
    Guest::payload(hello())
        .arg("--disk")
        .arg(image.path())
        .run()
        .expect_status(0);
    given_twice(image.as_str()).expect_refusal(FAILURE, &["another disk of this guest"]);
}

#[test]
fn many_guests_read_one_image() {
    let image = image(MIB);
    let disk = format!("{},readonly", image.as_str());
    let mut first = Guest::bare("program=idle").arg("--disk").arg(&disk).start();
    first.wait_for("\n");
    Guest::payload(hello())
        .arg("--disk")
        .arg(&disk)
        .run()
        .expect_status(0);
    refuses(image.as_str(), FAILURE, &["in use"]);
}

/// Runs a tool of e2fsprogs on an image.
#[track_caller]
fn tool(name: &str, arguments: &[&str]) -> Output {
    let output = Command::new(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{name} does not run: {error}"));
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {text}");
    output
}

/// An ext4 file system made by the host: without checksums, over which a guest whose kernel is interpreted takes minutes.
fn ext4() -> TempFile {
    let image = image(booted::DISK_SIZE);
    tool(
        "mkfs.ext4",
        &["-q", "-F", "-b", "4096", "-O", "^metadata_csum", image.as_str()],
    );
    image
}

/// A file's bytes, out of the image.
fn file_in(image: &Path, path: &str) -> Vec<u8> {
    let image = image.to_str().unwrap();
    tool("debugfs", &["-R", &format!("cat {path}"), image]).stdout
}

fn md5(bytes: &[u8]) -> String {
    let file = TempFile::new("bytes", bytes);
    let output = tool("md5sum", &[file.as_str()]);
    String::from_utf8(output.stdout)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned()
}

/// The words that the guest printed behind `name=`. In what is typed there are quotes in between, so its echo is none.
fn told<'a>(console: &'a str, name: &str) -> Vec<&'a str> {
    let mark = format!("{name}=");
    let lines = console.lines().filter_map(|line| line.strip_prefix(&mark));
    lines.map(str::trim).collect()
}

/// With the image growing meanwhile, which the guest's kernel notices. Not much is written: the guest's kernel may be slow.
#[test]
fn linux_mounts_a_file_system_of_the_hosts_and_leaves_it_whole() {
    const WRITE: &str = "mount -t ext4 -o discard /dev/vda /tmp/ || exit\n\
        mkdir -p /tmp/a/b /tmp/c; head -c 40000 /bin/busybox > /tmp/a/b/program\n\
        dd if=/dev/urandom of=/tmp/c/noise bs=4k count=1 2>/dev/null\n\
        sync\n\
        for f in a/b/program c/noise; do set -- $(md5sum /tmp/$f); echo; echo sum''=$1; done\n";
    let image = ext4();
    let mut guest = Guest::booted_with_disk(image.as_str()).start();
    guest.send(WRITE);
    guest.wait_for("sum=");
    guest.wait_for("sum=");
    File::options()
        .write(true)
        .open(image.path())
        .unwrap()
        .set_len(48 * MIB)
        .unwrap();
    guest.wait_for("new size: 98304 512-byte logical blocks");
    guest.send("umount /tmp; read id < /sys/block/vda/serial; echo; echo id''=$id\n");
    guest.send(POWER_OFF);
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
    let console = ended.console();
    assert_eq!(told(&console, "id"), [booted::DISK]);
    tool("fsck.ext4", &["-f", "-n", image.as_str()]);
    let sums = ["/a/b/program", "/c/noise"].map(|path| md5(&file_in(image.path(), path)));
    assert_eq!(told(&console, "sum"), sums);
}

/// Has Linux write to a file system, flush, and write on until posada is killed; returns the check sum of what was flushed.
fn die_while_linux_writes(disk: &str) -> String {
    const WRITE: &str = "mount -t ext4 /dev/vda /tmp || exit\n\
        head -c 40000 /bin/busybox > /tmp/flushed; sync\n\
        set -- $(md5sum /tmp/flushed); echo; echo sum''=$1\n\
        while true; do dd if=/dev/zero of=/tmp/more bs=16k count=1 2>/dev/null; echo writ''ten; done\n";
    let mut guest = Guest::booted_with_disk(disk).start();
    guest.send(WRITE);
    guest.wait_for("sum=");
    let sum = guest.wait_for("\n");
    guest.wait_for("written");
    guest.signal(Signal::SIGKILL);
    let ended = guest.wait();
    assert_eq!(ended.status.code(), None, "it was killed");
    sum.trim().to_owned()
}

/// The journal is the guest's; the host's fsck replays it.
#[track_caller]
fn expect_whole_with(image: &Path, sum: &str) {
    let path = image.to_str().unwrap();
    // It replays the journal, and may count that as a correction; what needs an answer is status 4.
    let replayed = Command::new("fsck.ext4").args(["-p", path]).output();
    let status = replayed.expect("e2fsprogs are there").status.code();
    assert!(
        matches!(status, Some(0 | 1)),
        "fsck.ext4 -p ended with {status:?}"
    );
    tool("fsck.ext4", &["-f", "-n", path]);
    assert_eq!(md5(&file_in(image, "/flushed")), sum);
}

#[test]
fn what_linux_has_flushed_survives_the_sudden_death_of_posada() {
    let image = ext4();
    let sum = die_while_linux_writes(image.as_str());
    expect_whole_with(image.path(), &sum);
}

/// The disk over `base`, as a raw image.
fn flattened(base: &Path, overlay: &Path) -> TempFile {
    let raw = TempFile::new("flat.img", "");
    let disk = Image::open_over(base, overlay, ImageOptions::default()).expect("the guest's overlay");
    let (mut at, size) = (0, disk.sectors() * u64::from(SECTOR));
    let mut bytes = vec![0; MIB as usize];
    let file = File::options().write(true).open(raw.path()).unwrap();
    while at < size {
        let Place { layer, offset, len } = disk.find(at, (size - at).min(MIB));
        let from = match layer {
            Layer::Top => disk.file(),
            Layer::Base => disk.base().expect("it has a base"),
        };
        let bytes = &mut bytes[..len as usize];
        from.read_exact_at(bytes, offset).unwrap();
        file.write_all_at(bytes, at).unwrap();
        at += len;
    }
    raw
}

#[test]
fn what_linux_has_flushed_to_an_overlay_survives_too_and_its_base_stays_as_it_is() {
    let base = ext4();
    let before = md5(&fs::read(base.path()).unwrap());
    let overlay = base.directory().join("overlay");
    let sum = die_while_linux_writes(&format!("{},overlay={}", base.as_str(), overlay.display()));
    expect_whole_with(flattened(base.path(), &overlay).path(), &sum);
    assert_eq!(md5(&fs::read(base.path()).unwrap()), before);
}

#[test]
fn guests_share_a_base_and_each_has_a_disk_of_its_own() {
    let base = image(4 * MIB);
    check("sectors=2000", base.as_str()).run().expect_status(0);
    let before = fs::read(base.path()).unwrap();
    let disk = |name: &str| {
        let overlay = base.directory().join(name);
        format!("{},overlay={}", base.as_str(), overlay.display())
    };
    let writes = |name: &str, seed| check(&format!("sectors=1000 first=24 seed={seed}"), disk(name));
    let engines = [
        ("a,engine=io_uring", 10_000),
        ("b,engine=sync", 20_000),
        ("c,cache=direct", 30_000),
    ];
    let guests = engines.map(|(name, seed)| writes(name, seed).start());
    for guest in guests {
        assert_eq!(guest.wait().expect_status(0).messages(), "");
    }
    for (name, seed) in engines {
        let reads = |words: String| {
            check(&format!("{words} mode=read"), disk(name))
                .run()
                .expect_status(0)
        };
        reads(format!("sectors=1000 first=24 seed={seed}"));
        reads("sectors=24".to_owned());
        reads("sectors=900 first=1024".to_owned());
    }
    assert!(
        fs::read(base.path()).unwrap() == before,
        "the base stays as it is"
    );
}

#[test]
fn what_a_guest_did_not_flush_is_kept_when_it_ends() {
    let base = image(4 * MIB);
    let overlay = base.directory().join("overlay");
    let words = format!("{},overlay={}", base.as_str(), overlay.display());
    Guest::bare("program=blk-bench op=write size=64K count=10")
        .arg("--disk")
        .arg(words)
        .run()
        .expect_status(0);
    let disk = Image::open_over(base.path(), &overlay, ImageOptions::default()).unwrap();
    let Place { layer, len, .. } = disk.find(0, MIB);
    assert_eq!((layer, len), (Layer::Top, 640 << 10));
}

#[test]
fn overlays_that_cannot_be() {
    let (base, other) = (image(MIB), image(MIB));
    let overlay = base.directory().join("overlay").display().to_string();
    let over = |base: &TempFile| format!("{},overlay={overlay}", base.as_str());
    let mut first = Guest::bare("program=idle").arg("--disk").arg(over(&base)).start();
    first.wait_for("\n");
    let holder = format!("process {} (", first.pid());
    refuses(over(&base), FAILURE, &[&overlay, "in use", &holder]);
    refuses(base.as_str(), FAILURE, &[base.as_str(), "in use", &holder]);
    drop(first);
    refuses(
        over(&other),
        FAILURE,
        &[&overlay, "belongs to", base.as_str(), other.as_str()],
    );
    refuses(&overlay, FAILURE, &["is an overlay"]);
    refuses(
        format!("{},overlay={}", base.as_str(), other.as_str()),
        FAILURE,
        &["is no overlay"],
    );
    refuses(
        format!("{},readonly", over(&base)),
        USAGE,
        &["leave one of them out"],
    );
    File::options()
        .write(true)
        .open(base.path())
        .unwrap()
        .write_all_at(b"!", 0)
        .unwrap();
    refuses(
        over(&base),
        FAILURE,
        &[&overlay, base.as_str(), "has changed", "cp -p"],
    );
}

/// A base of 16 MiB, and an overlay on a file system of one.
#[test]
fn a_full_host_is_an_io_error_of_the_guest_with_an_overlay_too() {
    const SCRIPT: &str = "mount -t tmpfs -o size=1M none \"$1\"";
    let (base, place) = (image(16 * MIB), TempFile::new("here", ""));
    let overlay = place.directory().join("overlay");
    let disk = format!("{},overlay={}", base.as_str(), overlay.display());
    let ended = after(
        SCRIPT,
        place.directory(),
        &overlay,
        &check("sectors=16384", &disk),
    )
    .wait()
    .expect_status(GUEST_CRASHED);
    let messages = ended.messages();
    assert!(messages.contains("No space left on device"), "{messages}");
    assert!(messages.contains(overlay.to_str().unwrap()), "{messages}");
    ended.expect_no_panic();
}

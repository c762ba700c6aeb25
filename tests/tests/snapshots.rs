//! Snapshots: a guest is frozen, goes on, and comes back in other processes, from where it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::disk::{Image, ImageOptions, Layer, Place};
use nix::sys::signal::{Signal, kill};
use posada_tests::booted::POWER_OFF;
use posada_tests::running::until;
use posada_tests::{Ended, Guest, Running, guest, owner, posada};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

/// A name that no other test's guest has.
fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("snapshots-{}-{number}", std::process::id())
}

/// A guest with a name, and a place for its snapshots.
struct Story {
    name: String,
    directory: TempDir,
}

impl Story {
    fn new() -> Self {
        Self {
            name: unique_name(),
            directory: TempDir::new().unwrap(),
        }
    }

    fn place(&self, snapshot: &str) -> PathBuf {
        self.directory.as_path().join(snapshot)
    }

    /// `posada snapshot NAME DIR ARGUMENTS --json`.
    fn snapshot(&self, snapshot: &str, arguments: &[&str]) -> Value {
        let ended = self.ask("snapshot", snapshot, arguments).expect_status(0);
        serde_json::from_str(&ended.console()).unwrap()
    }

    fn ask(&self, verb: &str, snapshot: &str, arguments: &[&str]) -> Ended {
        let place = self.place(snapshot);
        let mut command = vec![verb, &self.name, place.to_str().unwrap(), "--json"];
        command.extend(arguments);
        posada(&command)
    }
}

/// Tells a bare `echo` guest a line and takes what it makes of it.
fn echo(mut guest: Running, line: &str) -> Ended {
    guest.send(format!("{line}\n"));
    guest.wait()
}

#[test]
fn a_guest_goes_on_after_its_snapshot_and_comes_back_from_it_twice() {
    let story = Story::new();
    let mut guest = Guest::bare("program=echo").named(&story.name).start();
    guest.wait_for("listening\n");
    let taken = story.snapshot("s", &[]);
    assert!(taken["written"].is_string(), "{taken}");
    let ended = echo(guest, "the first").expect_status(0);
    assert!(ended.console().contains("the first"), "{}", ended.console());
    for line in ["the second", "the third"] {
        let ended = echo(Guest::restored(&story.place("s")).start(), line).expect_status(0);
        assert!(ended.console().contains(line), "{}", ended.console());
        assert!(!ended.console().contains("listening"), "it did not start anew");
        assert_eq!(ended.messages(), "");
    }
}

#[test]
fn a_guest_that_is_to_stop_with_its_snapshot_ends_in_good_order() {
    let story = Story::new();
    let mut guest = Guest::bare("program=echo").named(&story.name).start();
    guest.wait_for("listening\n");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    echo(Guest::restored(&story.place("s")).start(), "later").expect_status(0);
}

#[test]
fn a_snapshot_is_refused_where_something_is_and_for_a_guest_that_is_not() {
    let story = Story::new();
    let mut guest = Guest::bare("program=echo").named(&story.name).start();
    guest.wait_for("listening\n");
    fs::create_dir(story.place("s")).unwrap();
    story
        .ask("snapshot", "s", &[])
        .expect_refusal(1, &["there is a", "/s' already"]);
    story
        .ask("snapshot", "no/where", &[])
        .expect_refusal(1, &["no/where", "No such file or directory"]);
    echo(guest, "still there").expect_status(0);
    story
        .ask("snapshot", "t", &[])
        .expect_refusal(1, &["no running guest", &story.name]);
    assert!(!story.place("t").exists());
}

#[test]
fn two_guests_cannot_have_one_name() {
    let story = Story::new();
    let mut guest = Guest::bare("program=echo").named(&story.name).start();
    guest.wait_for("listening\n");
    Guest::bare("program=echo")
        .named(&story.name)
        .run()
        .expect_refusal(1, &[&story.name, "--name"]);
    guest.signal(Signal::SIGKILL);
    guest.wait();
    // The kernel has let go of the name with the process.
    echo(Guest::bare("program=echo").named(&story.name).start(), "again").expect_status(0);
}

#[test]
fn a_guest_goes_back_in_time_and_forward_again() {
    let story = Story::new();
    let mut guest = Guest::bare("program=count").named(&story.name).start();
    guest.wait_for("count 1\n");
    story.snapshot("s", &[]);
    for round in 0..3 {
        for number in 2..4 {
            guest.send("\n");
            guest.wait_for(&format!("count {number}\n"));
        }
        let rewound = story.ask("rewind", "s", &[]).expect_status(0);
        assert!(rewound.console().contains("took-us"), "round {round}");
    }
    guest.send("\n");
    guest.wait_for("count 2\n");
    guest.signal(Signal::SIGTERM);
    guest.wait();
}

#[test]
fn diffs_have_what_has_changed_and_come_back_with_what_has_not() {
    let story = Story::new();
    let mut guest = Guest::bare("program=count").named(&story.name).start();
    guest.wait_for("count 1\n");
    story
        .ask("snapshot", "early", &["--diff"])
        .expect_refusal(1, &["take a full one first"]);
    story.snapshot("s1", &[]);
    for number in 2..4 {
        guest.send("\n");
        guest.wait_for(&format!("count {number}\n"));
        story.snapshot(&format!("s{number}"), &["--diff"]);
    }
    guest.signal(Signal::SIGTERM);
    guest.wait();
    let size = |snapshot: &str| {
        fs::metadata(story.place(snapshot).join("memory"))
            .unwrap()
            .blocks()
    };
    assert!(
        size("s2") < size("s1"),
        "{} and {} blocks",
        size("s2"),
        size("s1")
    );
    // And a diff of what was made from a diff.
    let mut guest = Guest::restored(&story.place("s3"))
        .named(&story.name)
        .arg("--verify")
        .start();
    guest.send("\n");
    guest.wait_for("count 4\n");
    story.snapshot("s4", &["--diff", "--stop"]);
    guest.wait().expect_status(0);
    for number in 1..5 {
        let mut guest = Guest::restored(&story.place(&format!("s{number}"))).start();
        guest.send("\n");
        guest.wait_for(&format!("count {}\n", number + 1));
    }
}

#[test]
fn what_a_restored_guest_uses_first_is_recorded_once_and_read_ahead_from_then_on() {
    let story = Story::new();
    let mut guest = Guest::bare("program=count touch=16M").named(&story.name).start();
    guest.wait_for("count 1\n");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    let restored = |what: &str| {
        let restored = Guest::restored(&story.place("s")).arg("--prefault").arg(what);
        let mut guest = restored.arg("-v").start();
        guest.send("\n");
        guest.wait_for("count 2\n");
        guest
    };
    let record = story.place("s").join("working-set");
    let mut first = restored("working-set");
    first.wait_until("the working set is recorded", |_| record.exists());
    drop(first);
    let written = fs::read(&record).unwrap();
    let second = restored("working-set");
    assert!(
        second
            .messages()
            .contains("pages of the guest's memory, as recorded"),
        "{}",
        second.messages()
    );
    drop(second);
    assert_eq!(fs::read(&record).unwrap(), written, "it is recorded once");
    // A record that is none is no reason not to run.
    fs::write(&record, "damaged").unwrap();
    assert!(restored("working-set").messages().contains("cannot be used"));
    let all = restored("all");
    let resident = all.resident();
    assert!(resident > 128 << 20, "{resident} bytes");
}

#[test]
fn what_is_damaged_newer_or_cut_short_is_refused_before_the_guest_runs() {
    let story = Story::new();
    let mut guest = Guest::bare("program=count").named(&story.name).start();
    guest.wait_for("count 1\n");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    let file = |name: &str| story.place("s").join(name);
    let state = fs::read(file("state")).unwrap();
    let refused = |named: &[&str]| Guest::restored(&story.place("s")).run().expect_refusal(1, named);

    let mut damaged = state.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    fs::write(file("state"), &damaged).unwrap();
    refused(&["/s/state' is damaged", "checksum"]);
    fs::write(file("state"), &state[..middle]).unwrap();
    refused(&["/s/state' is damaged"]);
    let mut newer = state.clone();
    newer[8..12].copy_from_slice(&999u32.to_le_bytes());
    fs::write(file("state"), &newer).unwrap();
    refused(&["format 999", "newer"]);
    fs::write(file("state"), "something else").unwrap();
    refused(&["no snapshot of posada's"]);
    fs::write(file("state"), &state).unwrap();

    let memory = fs::read(file("memory")).unwrap();
    fs::remove_file(file("memory")).unwrap();
    refused(&["/s/memory", "No such file"]);
    fs::write(file("memory"), &memory[..memory.len() - 4096]).unwrap();
    refused(&["/s/memory", "cut short"]);
    let mut damaged = memory.clone();
    let place = damaged.iter().position(|byte| *byte != 0).unwrap();
    damaged[place] ^= 1;
    fs::write(file("memory"), &damaged).unwrap();
    Guest::restored(&story.place("s"))
        .arg("--verify")
        .run()
        .expect_refusal(1, &["/s/memory", "damaged"]);
    fs::write(file("memory"), &memory).unwrap();
    let mut guest = Guest::restored(&story.place("s")).arg("--verify").start();
    guest.send("\n");
    guest.wait_for("count 2\n");
}

#[test]
fn a_disk_that_has_changed_since_is_refused_and_a_copy_from_then_is_taken() {
    let story = Story::new();
    let image = story.place("disk.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = format!("{},id=data", image.display());
    let mut guest = Guest::bare("program=blk-check hold=yes")
        .arg("--disk")
        .arg(disk)
        .named(&story.name)
        .start();
    guest.wait_for("checksum=");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    fs::copy(&image, story.place("copy.img")).unwrap();
    let end = |guest: Guest| guest.input("\n").run();
    end(Guest::restored(&story.place("s"))).expect_status(0);
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    end(Guest::restored(&story.place("s")))
        .expect_refusal(1, &["disk.img", "has been written", "--disk ID=PATH"]);
    let copy = format!("data={}", story.place("copy.img").display());
    end(Guest::restored(&story.place("s")).arg("--disk").arg(copy)).expect_status(0);
    fs::remove_file(&image).unwrap();
    end(Guest::restored(&story.place("s"))).expect_refusal(1, &["disk.img"]);
    end(Guest::restored(&story.place("s")).arg("--disk").arg("root=x"))
        .expect_refusal(2, &["no disk 'root'"]);
}

/// `blk-check` that goes on with each line of input, on a disk of 1 MiB in the story's directory.
fn disk_guest(story: &Story, words: &str) -> Guest {
    fs::write(story.place("disk.img"), vec![0; 1 << 20]).unwrap();
    let disk = format!("{},id=data{words}", story.place("disk.img").display());
    Guest::bare("program=blk-check rounds=yes seed=1000")
        .arg("--disk")
        .arg(disk)
        .named(&story.name)
}

/// Has `blk-check` go on with these arguments, which succeeds.
fn round(guest: &mut Running, arguments: &str) {
    guest.send(format!("{arguments}\n"));
    guest.wait_for("checksum=");
}

/// Ends `blk-check`.
fn end(mut guest: Running) -> Ended {
    guest.send("end\n");
    guest.wait()
}

#[test]
fn clones_share_an_image_and_each_has_a_disk_of_its_own() {
    let story = Story::new();
    let mut guest = disk_guest(&story, ",cache=direct").start();
    guest.wait_for("checksum=");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    let before = fs::read(story.place("disk.img")).unwrap();

    let clone = |number| {
        Guest::restored(&story.place("s"))
            .named(&format!("{}-{number}", story.name))
            .arg("--clone")
            .start()
    };
    let mut clones: Vec<_> = (1..=3).map(|number| (number, clone(number))).collect();
    for (number, clone) in &mut clones {
        round(clone, &format!("sectors=32 seed={number}000000"));
    }
    Guest::restored(&story.place("s"))
        .run()
        .expect_refusal(1, &["disk.img", "in use"]);
    for (number, mut clone) in clones {
        round(&mut clone, &format!("sectors=32 seed={number}000000 mode=read"));
        round(&mut clone, "first=32 sectors=32 seed=1000 mode=read");
        assert_eq!(end(clone).expect_status(0).messages(), "");
    }

    assert!(
        fs::read(story.place("disk.img")).unwrap() == before,
        "the image stays as it is"
    );
    let mut guest = Guest::restored(&story.place("s")).start();
    round(&mut guest, "mode=read seed=1000");
    end(guest).expect_status(0);
}

#[test]
fn a_clone_begins_with_the_image_whatever_a_killed_one_has_left() {
    let story = Story::new();
    let mut guest = disk_guest(&story, "").start();
    guest.wait_for("checksum=");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    let clone = || {
        Guest::restored(&story.place("s"))
            .named(&story.name)
            .arg("--clone")
            .start()
    };
    let mut killed = clone();
    round(&mut killed, "seed=5000");
    killed.signal(Signal::SIGKILL);
    killed.wait();
    let mut next = clone();
    round(&mut next, "seed=1000 mode=read");
    // Its memory could go back to the snapshot, but not its disk.
    story
        .ask("rewind", "s", &[])
        .expect_refusal(1, &[".overlay", "cannot be taken back"]);
    end(next).expect_status(0);
}

#[test]
fn a_guest_with_an_overlay_comes_back_if_the_overlay_is_as_it_was() {
    let story = Story::new();
    let overlay = story.place("overlay");
    let mut guest = disk_guest(&story, &format!(",overlay={}", overlay.display())).start();
    guest.wait_for("checksum=");
    story.snapshot("s", &[]);
    end(guest).expect_status(0);
    fs::copy(&overlay, story.place("copy")).unwrap();

    let restored = || Guest::restored(&story.place("s"));
    let mut guest = restored().start();
    round(&mut guest, "seed=1000 mode=read");
    round(&mut guest, "seed=2000");
    end(guest).expect_status(0);
    restored()
        .run()
        .expect_refusal(1, &["/overlay'", "has been written"]);

    let disk = format!(
        "data={},overlay={}",
        story.place("disk.img").display(),
        story.place("copy").display()
    );
    let mut guest = restored().arg("--disk").arg(disk).start();
    round(&mut guest, "seed=1000 mode=read");
    end(guest).expect_status(0);
}

#[test]
fn clones_of_a_guest_with_an_overlay_have_a_copy_each() {
    let story = Story::new();
    let (image, overlay) = (story.place("disk.img"), story.place("overlay"));
    let mut guest = disk_guest(&story, &format!(",overlay={}", overlay.display())).start();
    guest.wait_for("checksum=");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    let names: Vec<_> = (1..=2).map(|number| format!("{}-{number}", story.name)).collect();
    let clone = |count, arguments: &[&str]| {
        let place = story.place("s");
        posada(&[&["clone", place.to_str().unwrap(), "--count", count], arguments].concat())
    };

    clone("1", &[]).expect_status(0);
    end_in_background(&names[0]);
    let copy = |which: &str| story.place(&format!("copy{which}"));
    for which in ["1", "2"] {
        fs::copy(&overlay, copy(which)).unwrap();
    }
    let disk = format!("data={},overlay={}", image.display(), copy("{}").display());
    clone("2", &["--disk", &disk]).expect_status(0);
    names.iter().for_each(|name| end_in_background(name));
}

#[test]
fn what_a_guest_did_not_flush_to_its_overlay_is_there_for_its_snapshot() {
    let story = Story::new();
    let (image, overlay) = (story.place("disk.img"), story.place("overlay"));
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let disk = format!("{},overlay={}", image.display(), overlay.display());
    let mut guest = Guest::bare("program=blk-bench op=write size=64K count=10 hold=yes")
        .arg("--disk")
        .arg(disk)
        .named(&story.name)
        .start();
    guest.wait_for("requests=");
    story.snapshot("s", &[]);
    guest.signal(Signal::SIGKILL);
    guest.wait();
    let disk = Image::open_over(&image, &overlay, ImageOptions::default()).unwrap();
    let Place { layer, len, .. } = disk.find(0, 1 << 20);
    assert_eq!((layer, len), (Layer::Top, 640 << 10));
    drop(disk);
    Guest::restored(&story.place("s"))
        .input("\n")
        .run()
        .expect_status(0);
}

#[test]
fn clones_run_in_the_background_until_they_are_ended() {
    let story = Story::new();
    let mut guest = Guest::bare("program=count").named(&story.name).start();
    guest.wait_for("count 1\n");
    story.snapshot("s", &[]);
    let place = story.place("s");
    let place = place.to_str().unwrap();
    let ended = posada(&["clone", place, "--count", "3"]).expect_status(0);
    let names: Vec<_> = (1..=3).map(|number| format!("{}-{number}", story.name)).collect();
    assert_eq!(ended.console().lines().collect::<Vec<_>>(), names);
    // Their names are taken now; so is none of what a failed clone had.
    let again = posada(&["clone", place, "--count", "1"]).expect_status(1);
    assert!(
        again.messages().contains("running guest named"),
        "{}",
        again.messages()
    );
    for name in &names {
        end_in_background(name);
    }
    guest.signal(Signal::SIGTERM);
    guest.wait();
}

/// Ends a guest that runs apart from the tests, and waits until its process is gone.
fn end_in_background(name: &str) {
    let directory = guest::runtime_directory().join("posada").join(name);
    kill(owner(&directory).unwrap(), Signal::SIGTERM).unwrap();
    until("a guest's directory goes with it", || !directory.exists());
}

#[test]
fn linux_comes_back_from_a_snapshot_with_what_it_had_in_memory() {
    let story = Story::new();
    let mut guest = Guest::booted().cpus(2).named(&story.name).start();
    guest.send("echo kept in memory >/tmp/file; echo writ''ten\n");
    guest.wait_for("written");
    story.snapshot("s", &["--stop"]);
    guest.wait().expect_status(0);
    for _ in 0..2 {
        let guest = Guest::restored(&story.place("s"));
        let ended = guest
            .input(format!("cat /tmp/file; nproc\n{POWER_OFF}"))
            .run()
            .expect_status(0);
        assert!(
            ended.console().contains("\nkept in memory"),
            "{}",
            ended.console()
        );
        assert!(ended.console().contains("\n2\r\n"), "{}", ended.console());
    }
}

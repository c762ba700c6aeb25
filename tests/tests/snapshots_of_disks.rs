//! Snapshots with copies of the guest's disks: what a guest has written since is taken back with it, and a running guest is cloned.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use posada_tests::file_system::mount;
use posada_tests::guest::{TempFile, runtime_directory};
use posada_tests::running::until;
use posada_tests::{Ended, Guest, Running, owner, posada};
use vmm_sys_util::tempdir::TempDir;

/// A guest that writes to its disk and reads it, and a place for both and for snapshots.
struct Story {
    name: String,
    place: PathBuf,
}

impl Story {
    fn at(place: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("with-disks-{}-{number}", std::process::id()),
            place: place.to_owned(),
        }
    }

    /// `blk-check`, which has written what goes by the seed 1000, and goes on with each line of input.
    fn start(&self, words: &str) -> Running {
        fs::write(self.file("disk.img"), vec![0; 1 << 20]).unwrap();
        let mut guest = Guest::bare("program=blk-check rounds=yes seed=1000")
            .arg("--disk")
            .arg(format!("{},id=data{words}", self.file("disk.img").display()))
            .named(&self.name)
            .start();
        guest.wait_for("checksum=");
        guest
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// `posada VERB NAME DIR ARGUMENTS`.
    fn ask(&self, verb: &str, arguments: &[&str]) -> Ended {
        let place = self.file("s");
        posada(&[&[verb, &self.name, place.to_str().unwrap()], arguments].concat())
    }

    fn restored(&self, arguments: &[&str]) -> Guest {
        let guest = Guest::restored(&self.file("s"));
        arguments.iter().fold(guest, Guest::arg)
    }
}

/// Has `blk-check` go on with these arguments, which succeeds.
fn round(guest: &mut Running, arguments: &str) {
    guest.send(format!("{arguments}\n"));
    guest.wait_for("checksum=");
}

fn end(mut guest: Running) {
    guest.send("end\n");
    guest.wait().expect_status(0);
}

/// What is on the disk is what goes by this seed.
fn has(guest: &mut Running, seed: u32) {
    round(guest, &format!("mode=read seed={seed}"));
}

fn writes(guest: &mut Running, seed: u32) {
    round(guest, &format!("seed={seed}"));
}

/// A file system on which files can share their data, if there is one here.
fn with_reflinks(story: impl FnOnce(Story)) {
    let (medium, place) = (TempFile::new("medium", ""), TempFile::new("here", ""));
    match mount("btrfs", &medium, place.directory()) {
        true => story(Story::at(place.directory())),
        false => eprintln!("not tested: there is no btrfs here"),
    }
}

#[test]
fn a_guest_that_ends_with_its_snapshot_comes_back_with_its_disk() {
    for words in ["", ",cache=direct", ",overlay="] {
        let directory = TempDir::new().unwrap();
        let story = Story::at(directory.as_path());
        let overlay = story.file("overlay");
        let (written, words) = match words {
            ",overlay=" => (&overlay, format!("{words}{}", overlay.display())),
            _ => (&story.file("disk.img"), words.to_owned()),
        };
        let guest = story.start(&words);
        story.ask("snapshot", &["--stop", "--disks"]).expect_status(0);
        guest.wait().expect_status(0);

        let mut guest = story.restored(&[]).start();
        has(&mut guest, 1000);
        writes(&mut guest, 2000);
        story
            .restored(&["--disks", "--name", &format!("{}-b", story.name)])
            .run()
            .expect_refusal(1, &["cannot be put back", "in use"]);
        end(guest);
        let name = written.to_str().unwrap();
        story
            .restored(&[])
            .run()
            .expect_refusal(1, &[name, "has been written", "--disks"]);
        let back = |story: &Story| {
            let mut guest = story.restored(&["--disks"]).start();
            has(&mut guest, 1000);
            end(guest);
        };
        back(&story);
        fs::remove_file(written).unwrap();
        back(&story);
    }
}

#[test]
fn a_guest_whose_disk_cannot_be_copied_while_it_runs_goes_on_without_a_snapshot() {
    let directory = TempDir::new_with_prefix("/dev/shm/posada-").unwrap();
    let story = Story::at(directory.as_path());
    let mut guest = story.start("");
    let remedies = ["/disk.img'", "--stop", "btrfs"];
    story.ask("snapshot", &["--disks"]).expect_refusal(1, &remedies);
    posada(&["clone", &story.name]).expect_refusal(1, &remedies);
    assert_eq!(fs::read_dir(&story.place).unwrap().count(), 1, "the image alone");
    has(&mut guest, 1000);
    // It has no copy of the disk, so it is as before.
    story.ask("snapshot", &[]).expect_status(0);
    writes(&mut guest, 2000);
    story
        .ask("rewind", &["--disks"])
        .expect_refusal(1, &["no copy", "/disk.img'"]);
    has(&mut guest, 2000);
    end(guest);
}

#[test]
fn as_root_a_running_guest_goes_back_with_its_disk() {
    with_reflinks(|story| {
        let mut guest = story.start("");
        story.ask("snapshot", &["--disks"]).expect_status(0);
        for seed in [2000, 3000] {
            writes(&mut guest, seed);
            story
                .ask("rewind", &[])
                .expect_refusal(1, &["has been written", "--disks"]);
            has(&mut guest, seed);
            story.ask("rewind", &["--disks"]).expect_status(0);
            has(&mut guest, 1000);
        }
        writes(&mut guest, 4000);
        end(guest);
        let mut guest = story.restored(&["--disks"]).start();
        has(&mut guest, 1000);
        end(guest);
    });
}

#[test]
fn as_root_clones_of_a_running_guest_begin_with_its_disk_as_it_was() {
    with_reflinks(|story| {
        for words in [
            String::new(),
            format!(",overlay={}", story.file("overlay").display()),
        ] {
            let mut guest = story.start(&words);
            story.ask("snapshot", &["--disks"]).expect_status(0);
            writes(&mut guest, 2000);
            let clones: Vec<_> = (1..=2)
                .map(|number| (number, format!("{}-c{number}", story.name)))
                .collect();
            let mut clones: Vec<_> = clones
                .iter()
                .map(|(number, name)| (number, story.restored(&["--clone"]).named(name).start()))
                .collect();
            for (number, clone) in &mut clones {
                has(clone, 1000);
                writes(clone, *number * 10_000);
            }
            for (number, mut clone) in clones {
                has(&mut clone, number * 10_000);
                end(clone);
            }
            has(&mut guest, 2000);

            let ended = posada(&["clone", &story.name, "--count", "2"]).expect_status(0);
            let names: Vec<_> = ended.console().lines().map(str::to_owned).collect();
            assert_eq!(names.len(), 2);
            writes(&mut guest, 3000);
            for name in names {
                let directory = runtime_directory().join("posada").join(name);
                assert!(directory.join("disk-0.overlay").exists());
                terminate(&directory);
            }
            has(&mut guest, 3000);
            end(guest);
            fs::remove_dir_all(story.file("s")).unwrap();
        }
        // The snapshots that were taken for clones have gone.
        let left = fs::read_dir(&story.place).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["disk.img", "overlay"]);
    });
}

/// Ends the guest of this directory, which is in the background.
fn terminate(directory: &Path) {
    kill(owner(directory).unwrap(), Signal::SIGTERM).unwrap();
    until("a guest's directory goes with it", || !directory.exists());
}

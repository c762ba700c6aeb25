//! Generation ids: what comes back from a snapshot knows that it is not what it was, and Linux draws other random numbers.

use std::path::PathBuf;

use posada_tests::booted::POWER_OFF;
use posada_tests::{Guest, Running, posada};
use vmm_sys_util::tempdir::TempDir;

/// A place for a snapshot of the guest with this name.
struct Snapshot {
    _directory: TempDir,
    path: PathBuf,
    name: String,
}

impl Snapshot {
    fn of(test: &str) -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        Self {
            path: directory.as_path().join("snapshot"),
            _directory: directory,
            name: format!("generations-{test}-{}", std::process::id()),
        }
    }

    /// `posada VERB NAME DIR`.
    fn ask(&self, verb: &str) {
        let path = self.path.to_str().expect("temporary files have plain names");
        posada(&[verb, &self.name, path]).expect_status(0);
    }

    /// Another guest from it, beside the one that it was taken of.
    fn twin(&self) -> Running {
        let name = format!("{}-twin", self.name);
        Guest::restored(&self.path).named(&name).start()
    }
}

/// The id that the bare guest has in memory, and how often it has been told of another.
fn generation(guest: &mut Running) -> (String, u32) {
    guest.send("\n");
    guest.wait_for("generation ");
    let line = guest.wait_for("\n");
    let (id, notified) = line.trim_end().split_once(" notified ").expect("both are told");
    assert_eq!(id.len(), 32, "128 bits: {id}");
    (id.to_owned(), notified.parse().expect("a number"))
}

fn end(mut guest: Running) {
    guest.send("end\n");
    guest.wait().expect_status(0);
}

#[test]
fn a_guest_that_comes_back_has_another_id_each_time_and_has_been_told_by_its_next_instruction() {
    let snapshot = Snapshot::of("bare");
    let mut guest = Guest::bare("program=generation").named(&snapshot.name).start();
    guest.wait_for("ready to tell the generation\n");
    let (first, notified) = generation(&mut guest);
    assert_eq!(notified, 0);
    assert_ne!(first, "0".repeat(32));

    snapshot.ask("snapshot");
    assert_eq!(
        generation(&mut guest),
        (first.clone(), 0),
        "it is still the same machine"
    );

    let mut ids = vec![first];
    let mut is_new = |(id, notified): (String, u32)| {
        assert_eq!(notified, 1);
        assert!(!ids.contains(&id), "{id} is one of {ids:?}");
        ids.push(id);
    };
    for _ in 0..2 {
        let mut twin = snapshot.twin();
        is_new(generation(&mut twin));
        end(twin);
    }
    for _ in 0..2 {
        snapshot.ask("rewind");
        is_new(generation(&mut guest));
    }
    end(guest);
}

#[test]
fn linux_seeds_its_random_numbers_anew_each_time_it_comes_back() {
    let snapshot = Snapshot::of("linux");
    let mut guest = Guest::booted().named(&snapshot.name).start();
    snapshot.ask("snapshot");
    snapshot.ask("rewind");
    let mut twin = snapshot.twin();
    for guest in [&mut guest, &mut twin] {
        guest.wait_for("crng reseeded due to virtual machine fork");
        guest.send(POWER_OFF);
    }
    guest.wait().expect_status(0);
    twin.wait().expect_status(0);
}

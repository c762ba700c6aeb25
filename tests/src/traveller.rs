//! A guest that is moved from process to process by snapshots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::tempdir::TempDir;

use crate::guest::runtime_directory;
use crate::{Ended, Guest, Running, posada};

/// A guest with a name and a place for its snapshots.
pub struct Traveller {
    guest: Option<Running>,
    name: String,
    snapshots: TempDir,
    taken: u32,
    /// What the guest has printed in the processes where it was.
    printed: Vec<u8>,
}

impl Traveller {
    /// Starts the guest.
    pub fn start(guest: Guest) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("traveller-{}-{number}", process::id());
        Self {
            guest: Some(guest.named(&name).start()),
            name,
            snapshots: TempDir::new().expect("a directory for temporary files"),
            taken: 0,
            printed: Vec::new(),
        }
    }

    /// The guest, in the process where it is now.
    pub fn guest(&mut self) -> &mut Running {
        self.guest.as_mut().expect("it is somewhere")
    }

    /// Takes a snapshot, after which the guest goes on.
    #[track_caller]
    pub fn snapshot(&mut self) {
        self.take(&[]);
    }

    /// Takes a snapshot, with which the guest's process ends, and has the guest go on in a new one.
    ///
    /// # Panics
    /// If the process does not end in good order, without a message.
    #[track_caller]
    pub fn move_on(&mut self) {
        self.pack();
        self.unpack(&["--verify"]);
    }

    /// Moves on like [`move_on`](Self::move_on), without a look at all of the snapshot first, so that the guest runs at once.
    #[track_caller]
    pub fn hurry_on(&mut self) {
        self.pack();
        self.unpack(&[]);
    }

    fn unpack(&mut self, arguments: &[&str]) {
        let restored = Guest::restored(&self.latest()).named(&self.name);
        let restored = arguments
            .iter()
            .fold(restored, |guest, argument| guest.arg(argument));
        self.guest = Some(restored.start());
    }

    /// Takes a snapshot, with which the guest's process ends.
    #[track_caller]
    pub fn pack(&mut self) {
        self.take(&["--stop"]);
        let ended = self.guest.take().expect("it is somewhere").wait();
        let ended = ended.expect_status(0);
        assert_eq!(ended.messages(), "");
        self.printed.extend(&ended.stdout);
    }

    /// Waits for the guest's end. Its console is what it has printed in all processes.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let mut ended = self.guest.take().expect("it is somewhere").wait();
        self.printed.append(&mut ended.stdout);
        ended.stdout = self.printed;
        ended
    }

    #[track_caller]
    fn take(&mut self, arguments: &[&str]) {
        let socket = runtime_directory()
            .join("posada")
            .join(&self.name)
            .join("control.sock");
        self.guest().wait_until("it can be asked", |_| socket.exists());
        let former = self.latest();
        self.taken += 1;
        let latest = self.latest();
        let path = latest.to_str().expect("temporary files have plain names");
        let command = [&["snapshot", &self.name, path], arguments].concat();
        posada(&command).expect_status(0);
        // The guest keeps what it has of the one that it came from.
        if former.exists() {
            remove(&former);
        }
    }

    /// The snapshot that was taken last.
    pub fn latest(&self) -> PathBuf {
        self.snapshots.as_path().join(self.taken.to_string())
    }
}

fn remove(snapshot: &Path) {
    fs::remove_dir_all(snapshot).expect("a snapshot can be removed");
}

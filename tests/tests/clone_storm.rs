//! A storm of clones: hundreds of guests from one snapshot, some of them killed at any moment; the others do not notice, and nothing
//! is left in the end.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posada_tests::guest::TempFile;
use posada_tests::running::until;
use posada_tests::{Ended, Guest, Moments, Traveller, guest, is_left, owner, posada, vsock};

const CLONES: u64 = 200;
/// One of so many is killed.
const KILLED: u64 = 10;

/// Clones of one snapshot, numbered from 1.
struct Storm {
    snapshot: PathBuf,
    name: String,
}

impl Storm {
    fn begin(&self, count: u64) -> Ended {
        let snapshot = self.snapshot.to_str().expect("temporary files have plain names");
        posada(&[
            "clone",
            snapshot,
            "--name",
            &self.name,
            "--count",
            &count.to_string(),
        ])
    }

    fn name(&self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    fn directory(&self, number: u64) -> PathBuf {
        running().join(self.name(number))
    }

    /// The clone's process, once there is one.
    fn process(&self, number: u64) -> Option<Pid> {
        owner(&self.directory(number))
    }

    fn kill(&self, number: u64) {
        until("a clone's process is there", || self.process(number).is_some());
        let process = self.process(number).expect("it does not go by itself");
        kill(process, Signal::SIGKILL).expect("it can be killed");
    }

    /// Has the clone's guest send back a line.
    fn converse(&self, number: u64) {
        let mut stream = vsock::call(&self.directory(number).join("vsock.sock"), 5000);
        let line = format!("are you {number}?");
        stream.write_all(line.as_bytes()).expect("the guest reads");
        let mut back = vec![0; line.len()];
        stream.read_exact(&mut back).expect("the guest answers");
        assert_eq!(back, line.as_bytes());
    }

    /// Ends these clones in good order, and waits until nothing of them is left.
    fn end(&self, numbers: &[u64]) {
        let processes: Vec<_> = numbers
            .iter()
            .filter_map(|number| self.process(*number))
            .collect();
        assert_eq!(processes.len(), numbers.len(), "all of them run");
        for process in &processes {
            kill(*process, Signal::SIGTERM).expect("it can be told");
        }
        for (number, process) in numbers.iter().zip(processes) {
            until("a clone's process and directory are gone", || {
                is_gone(process) && !self.directory(*number).exists()
            });
        }
    }

    /// What there is of clones: directories, sockets of the kernel's, and this process's files.
    fn remains(&self) -> [usize; 3] {
        let mark = format!("{}-", self.name);
        let entries = fs::read_dir(running()).expect("the directory of running guests");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let directories = names.filter(|name| name.to_string_lossy().starts_with(&mark));
        let sockets = fs::read_to_string("/proc/net/unix").expect("the kernel tells of sockets");
        let files = fs::read_dir("/proc/self/fd").expect("a process has files");
        [directories.count(), sockets.matches(&mark).count(), files.count()]
    }
}

impl Drop for Storm {
    /// Clones do not end with a test that fails.
    fn drop(&mut self) {
        for process in (1..=CLONES).filter_map(|number| self.process(number)) {
            // Fails only when it has ended.
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

fn running() -> PathBuf {
    guest::runtime_directory().join("posada")
}

/// Whether the process has ended; who has started it may not have asked for its status yet.
fn is_gone(process: Pid) -> bool {
    kill(process, None) == Err(Errno::ESRCH)
        || fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|arguments| arguments.is_empty())
}

/// Which clones are to die, in the order in which they do.
fn victims() -> Vec<u64> {
    let mut moments = Moments::of(200);
    let mut victims: Vec<u64> = (0..CLONES / KILLED)
        .map(|ten| ten * KILLED + moments.below(KILLED) + 1)
        .collect();
    // Some early, some late.
    for last in (1..victims.len()).rev() {
        victims.swap(last, moments.below(last as u64 + 1) as usize);
    }
    victims
}

/// A snapshot of a guest that answers, and nothing of it that runs.
fn template() -> Traveller {
    let guest = Guest::bare("program=vsock-echo connections=1000 wait=interrupt").memory("16M");
    let place = TempFile::new("place", "");
    let mut template = Traveller::start(guest.arg("--vsock").arg(place.directory().join("v.sock")));
    template.guest().wait_for("listening");
    template.pack();
    template
}

#[test]
fn of_two_hundred_clones_twenty_are_killed_and_the_others_answer_and_in_the_end_nothing_is_left() {
    let template = template();
    let storm = Storm {
        snapshot: template.latest(),
        name: format!("storm-{}", process::id()),
    };
    let before = storm.remains();
    let victims = victims();
    let (early, late) = victims.split_at(victims.len() / 2);
    let kill = |numbers: &[u64]| numbers.iter().for_each(|number| storm.kill(*number));
    let survivors: Vec<u64> = (1..=CLONES).filter(|number| !victims.contains(number)).collect();

    // Half of them die while clones are still being made.
    let ended = thread::scope(|scope| {
        scope.spawn(|| kill(early));
        storm.begin(CLONES)
    });
    ended.expect_no_panic();
    let console = ended.console();
    let started: HashSet<_> = console.lines().map(str::to_owned).collect();
    let missing = |number: &&u64| !started.contains(&storm.name(**number));
    assert_eq!(
        survivors.iter().chain(late).find(missing),
        None,
        "{}",
        ended.messages()
    );
    // The other half dies while those that live answer.
    thread::scope(|scope| {
        scope.spawn(|| kill(late));
        survivors.iter().for_each(|number| storm.converse(*number));
    });
    for number in &victims {
        until("a killed clone is gone", || is_left(&storm.directory(*number)));
    }
    survivors.iter().for_each(|number| storm.converse(*number));
    storm.end(&survivors);

    // What the killed ones have left, the next ones of their names take over.
    assert!(storm.remains()[0] > 0);
    storm.begin(CLONES).expect_status(0);
    let all: Vec<_> = (1..=CLONES).collect();
    victims.iter().for_each(|number| storm.converse(*number));
    // Or whoever makes clones next sweeps it away.
    let (late, others) = all.split_at(late.len());
    kill(late);
    for number in late {
        until("a killed clone has let go of its name", || {
            is_left(&storm.directory(*number))
        });
    }
    let other = Storm {
        snapshot: storm.snapshot.clone(),
        name: format!("{}-other", storm.name),
    };
    other.begin(1).expect_status(0);
    assert!(late.iter().all(|number| !storm.directory(*number).exists()));
    other.end(&[1]);
    storm.end(others);
    // A process's memory goes before its sockets do.
    until("nothing is left", || storm.remains() == before);
}

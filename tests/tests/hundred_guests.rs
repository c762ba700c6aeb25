//! A hundred guests on one machine: started, listed and ended, and nothing of them is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use posada_tests::guest::runtime_directory;
use posada_tests::running::until;
use posada_tests::{Guest, network, posada};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

const GUESTS: usize = 100;

/// What a machine has of guests whose names have a mark in common, and this process of anything.
#[derive(Debug, PartialEq, Eq)]
struct Remains {
    directories: usize,
    sockets: usize,
    processes: usize,
    cgroups: usize,
    networks: usize,
    files: usize,
}

impl Remains {
    fn of(mark: &str) -> Self {
        let sockets = fs::read_to_string("/proc/thread-self/net/unix").expect("the kernel tells of sockets");
        let processes = entries(Path::new("/proc"));
        let arguments = processes
            .iter()
            .filter_map(|process| fs::read(process.join("cmdline")).ok());
        Self {
            directories: marked(&entries(&runtime_directory().join("posada")), mark),
            sockets: sockets.matches(mark).count(),
            processes: arguments
                .filter(|arguments| String::from_utf8_lossy(arguments).contains(mark))
                .count(),
            cgroups: marked(&below(Path::new("/sys/fs/cgroup")), mark),
            networks: network::interfaces(),
            files: entries(Path::new("/proc/self/fd")).len(),
        }
    }
}

fn marked(paths: &[PathBuf], mark: &str) -> usize {
    let names = paths.iter().filter_map(|path| path.file_name());
    names.filter(|name| name.to_string_lossy().contains(mark)).count()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Directories at any depth.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut at = 0;
    while let Some(directory) = found.get(at) {
        let directories = entries(directory)
            .into_iter()
            .filter(|path| path.is_dir() && !path.is_symlink());
        found.extend(directories.collect::<Vec<_>>());
        at += 1;
    }
    found
}

/// The names of those of the mark that are listed as running.
fn listed(mark: &str) -> Vec<String> {
    let list = posada(&["ps", "--json"]).expect_status(0).console();
    let list: Vec<Value> = serde_json::from_str(&list).expect("it is JSON");
    let running = list.iter().filter(|guest| guest["state"] == "running");
    let names = running.filter_map(|guest| guest["name"].as_str());
    names
        .filter(|name| name.contains(mark))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_hundred_guests_are_started_listed_and_ended_and_leave_nothing() {
    network::isolate();
    let mark = format!("hundred-{}", process::id());
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    let snapshot = snapshot.to_str().unwrap();
    let template = Guest::bare("program=count")
        .named(&mark)
        .memory("16M")
        .arg("--net=tap=hundred")
        .arg("--vsock");
    let mut template = template.arg(place.as_path().join("v.sock")).start();
    template.wait_for("count 1\n");
    posada(&["snapshot", &mark, snapshot, "--stop"]).expect_status(0);
    template.wait().expect_status(0);
    let before = Remains::of(&mark);

    let count = GUESTS.to_string();
    let taps = "--net=hundred=hundred{}";
    let started = posada(&["clone", snapshot, "--count", &count, taps])
        .expect_status(0)
        .console();
    let mut names: Vec<_> = started.lines().collect();
    names.sort_unstable();
    assert_eq!(names.len(), GUESTS);
    assert_eq!(listed(&mark), names);
    let during = Remains::of(&mark);
    assert!(
        during.directories == GUESTS && during.processes == GUESTS,
        "{during:?}"
    );
    assert_eq!(during.networks, before.networks + GUESTS);
    // One for its name, and one for its streams.
    assert!(during.sockets >= 2 * GUESTS, "{during:?}");

    posada(&[&["kill"], names.as_slice()].concat()).expect_status(0);
    assert_eq!(listed(&mark), [""; 0]);
    // A process's sockets go after its name.
    until("nothing is left", || Remains::of(&mark) == before);
}

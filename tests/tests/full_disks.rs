//! Full disks: of where running guests are, of snapshots, and of logs. What cannot be is told in a sentence, and guests go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use posada_tests::file_system::mount_small;
use posada_tests::guest::{TempFile, command};
use posada_tests::{Guest, Running, images};

/// A file system of a few pages, for this test's thread and what it starts; what is to be full is filled.
struct Small {
    place: TempFile,
}

impl Small {
    fn new() -> Self {
        let place = TempFile::new("x", "");
        mount_small(place.directory());
        Self { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.directory().join(name)
    }

    /// Leaves no page.
    fn fill(&self) {
        fs::write(self.path("filling"), vec![1; 1 << 20]).expect_err("it is smaller");
    }

    /// Leaves no name, either.
    fn fill_with_names(&self) {
        let file = |number| fs::write(self.path(&format!("name-{number}")), "");
        (0..1000)
            .find_map(|number| file(number).err())
            .expect("it is smaller");
        self.fill();
    }

    fn as_str(&self) -> &str {
        self.place.directory().to_str().unwrap()
    }
}

/// `posada` with these arguments, where guests are found in `runtime`.
fn posada(runtime: &Small, arguments: &[&str]) -> Running {
    let mut command = command(arguments);
    command.env("XDG_RUNTIME_DIR", runtime.as_str());
    Running::of(command)
}

#[test]
fn as_root_guests_run_without_a_place_among_the_running_ones_or_are_refused_in_a_sentence() {
    let runtime = Small::new();
    runtime.fill_with_names();
    let guest = Guest::bare("program=echo")
        .named("full")
        .env("XDG_RUNTIME_DIR", runtime.as_str());
    let mut guest = guest.start();
    guest.wait_for("listening\n");
    guest.send("still there\n");
    let ended = guest.wait().expect_status(0);
    assert!(ended.console().contains("still there"));
    let kernel = images::bare();
    let run = [
        "run",
        "-d",
        "--name",
        "full",
        "--cmdline",
        "program=count",
        "--kernel",
    ];
    posada(&runtime, &[&run[..], &[kernel.to_str().unwrap()]].concat())
        .wait()
        .expect_refusal(1, &[runtime.as_str(), "No space left"]);
    posada(&runtime, &["ps"])
        .wait()
        .expect_status(0)
        .expect_no_panic();
    posada(&runtime, &["kill", "full"])
        .wait()
        .expect_refusal(1, &["there is no running guest named 'full'"]);
}

#[test]
fn as_root_a_guest_goes_on_whose_snapshot_does_not_fit_and_nothing_of_it_is_left() {
    let small = Small::new();
    let name = format!("does-not-fit-{}", process::id());
    let mut guest = Guest::bare("program=count touch=4194304").named(&name).start();
    guest.wait_for("count 1\n");
    let snapshot = small.path("s");
    let take = |path: &Path| posada_tests::posada(&["snapshot", &name, path.to_str().unwrap()]);
    take(&snapshot).expect_refusal(1, &["No space left"]);
    assert_eq!(fs::read_dir(small.place.directory()).unwrap().count(), 0);
    small.fill_with_names();
    take(&snapshot).expect_refusal(1, &[snapshot.to_str().unwrap(), "No space left"]);
    guest.send("\n");
    guest.wait_for("count 2\n");
    let elsewhere = TempFile::new("x", "");
    take(&elsewhere.directory().join("s")).expect_status(0);
    posada_tests::posada(&["kill", &name]).expect_status(0);
    guest.wait().expect_status(0);
}

#[test]
fn as_root_a_guest_goes_on_whose_log_and_console_are_full() {
    let small = Small::new();
    small.fill();
    let log = small.path("filling");
    let kernel = images::bare();
    let description = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_args": "acpi=off program=echo"}},
            "serial": {{"serial_out_path": "{}"}}}}"#,
        kernel.display(),
        log.display()
    );
    let description = TempFile::new("guest.json", description);
    let name = format!("full-log-{}", process::id());
    let arguments = [
        "serve",
        "--no-api",
        "--id",
        &name,
        "--level",
        "Trace",
        "--config-file",
    ];
    let arguments = [
        &arguments[..],
        &[description.as_str(), "--log-path", log.to_str().unwrap()],
    ]
    .concat();
    let mut command = command(&arguments);
    command.stdin(process::Stdio::piped());
    let mut served = Running::of(command);
    let runs = || {
        let list = posada_tests::posada(&["ps"]).expect_status(0).console();
        list.lines()
            .any(|line| line.contains(&name) && line.contains("running"))
    };
    posada_tests::running::until("it runs", runs);
    // What it echoes goes nowhere; that it ends is what it has heard.
    served.send("hello\n");
    served.wait().expect_status(0).expect_no_panic();
}

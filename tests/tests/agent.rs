//! The agent in a guest: commands with all that a command has, files both ways, in one Linux guest from its boot to a clone of it; and what a
//! guest may say that is no friend.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use posada_tests::agent::{Played, answer};
use posada_tests::guest::{self, command};
use posada_tests::running::until;
use posada_tests::{Ended, Guest, Running, posada};
use vmm_sys_util::tempdir::TempDir;

/// Bytes of which no two pages are alike.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = move || {
        // The linear congruential generator of Numerical Recipes.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(len / 4 + 1).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// A directory for a test, and paths in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory for temporary files"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a plain name")
            })
            .collect();
        names.sort();
        names
    }
}

/// A tree with all that is copied.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("deep/empty")).expect("a directory");
    fs::write(root.join("deep/noise"), noise(5000)).expect("a file");
    fs::write(root.join("script"), "#!/bin/sh\nexit 9\n").expect("a file");
    fs::set_permissions(root.join("script"), Permissions::from_mode(0o751)).expect("a mode");
    fs::set_permissions(root.join("deep/empty"), Permissions::from_mode(0o710)).expect("a mode");
    symlink("deep/noise", root.join("link")).expect("a link");
    symlink("/nowhere", root.join("dangling")).expect("a link");
}

/// What there is: names, modes, times, links and contents.
fn described(root: &Path) -> Vec<String> {
    let (mut all, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).expect("it is there");
        let what = if found.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            left.extend(entries.map(|entry| entry.expect("an entry").path()));
            String::new()
        } else if found.is_symlink() {
            fs::read_link(&path).expect("a link").display().to_string()
        } else {
            format!("{:?}", fs::read(&path).expect("a file"))
        };
        let name = path.strip_prefix(root).expect("it is below").display();
        all.push(format!("{name} {:o} {} {what}", found.mode(), found.mtime()));
    }
    all.sort();
    all
}

#[track_caller]
fn expect(ended: Ended, status: i32, output: &str, error: &str) {
    let ended = ended.expect_status(status);
    assert_eq!(
        (ended.console().as_str(), ended.messages().as_str()),
        (output, error)
    );
}

#[test]
fn a_linux_guest_runs_commands_and_takes_files_and_so_does_its_clone() {
    let name = format!("agent-{}", process::id());
    let guest = Guest::booted().named(&name).start();
    let exec = |arguments: &[&str]| posada(&[&["exec", &name, "--"], arguments].concat());
    expect(
        exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]),
        7,
        "out\n",
        "err\n",
    );
    // busybox's, which has no links in the tiny guest.
    expect(exec(&["echo", "a  b", "$HOME"]), 0, "a  b $HOME\n", "");
    assert_eq!(exec(&["no-such-command"]).status.code(), Some(127));

    let input = noise(50_000);
    let mut cat = Running::of(streaming(&["exec", &name, "cat"]));
    cat.send(&input);
    cat.end_input();
    assert!(
        cat.wait().expect_status(0).stdout == input,
        "it comes back as it went"
    );

    let mut sleep = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo sleeps; exec sleep 10000",
    ]));
    sleep.wait_for("sleeps");
    sleep.signal(Signal::SIGTERM);
    sleep.wait().expect_status(143);

    // A terminal that tells no size is taken for a usual one.
    let script = "stty size; read line; stty size";
    let (mut size, before) = guest::on_terminal(&["exec", "-t", &name, "sh", "-c", script]);
    size.wait_for("24 80\r\n");
    size.terminal().resize(20, 40);
    size.send("\r");
    size.wait_for("20 40\r\n");
    assert_eq!(size.wait().expect_status(0).terminal, Some(before));

    let place = Place::new();
    plant(&place.path("tree"));
    posada(&["cp", &place.text("tree"), &format!("{name}:/tmp")]).expect_status(0);
    expect(exec(&["/tmp/tree/script"]), 9, "", "");
    posada(&["cp", &format!("{name}:/tmp/tree"), &place.text("back")]).expect_status(0);
    assert_eq!(described(&place.path("back")), described(&place.path("tree")));

    // A command is under way when the snapshot is taken that the clone comes from, where nobody is there for it.
    let mut held = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo holds; exec sleep 10000",
    ]));
    held.wait_for("holds");
    posada(&["clone", &name, "--name", &name]).expect_status(0);
    let clone = format!("{name}-1");
    let told = posada(&["exec", &clone, "--", "cat", "/tmp/tree/script"]);
    expect(told, 0, "#!/bin/sh\nexit 9\n", "");
    posada(&["kill", &clone]).expect_status(0);
    held.signal(Signal::SIGINT);
    held.wait().expect_status(130);

    // The guest's end is the command's.
    let mut left = Running::of(command(&[
        "exec",
        &name,
        "--",
        "sh",
        "-c",
        "echo stays; exec sleep 10000",
    ]));
    left.wait_for("stays");
    posada(&["kill", &name]).expect_status(0);
    let messages = left.wait().expect_status(1).messages();
    assert!(messages.contains("is gone"), "{messages}");
    guest.wait().expect_status(0);
}

/// A posada with these arguments that reads what the test sends.
fn streaming(arguments: &[&str]) -> process::Command {
    let mut command = command(arguments);
    command.stdin(process::Stdio::piped());
    command
}

#[test]
fn an_agent_that_is_still_starting_is_waited_for_if_one_is_told_to() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let guest = Played::by(|stream| {
        if CALLS.fetch_add(1, Ordering::Relaxed) > 3 {
            answer(stream);
        }
    });
    guest
        .exec(&["true"])
        .expect_refusal(1, &["no agent listens", "--wait"]);
    expect(
        posada(&["exec", "--wait", "3600", guest.name(), "echo", "up"]),
        0,
        "up\n",
        "",
    );
}

#[test]
fn a_command_has_its_streams_and_its_status() {
    let guest = Played::by_an_agent();
    expect(
        guest.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]),
        7,
        "out\n",
        "err\n",
    );
    expect(guest.exec(&["sh", "-c", "kill -TERM $$"]), 143, "", "");
    guest
        .exec(&["/nonexistent"])
        .expect_refusal(127, &["/nonexistent", "No such file"]);
    guest
        .exec(&["/etc/passwd"])
        .expect_refusal(126, &["/etc/passwd", "Permission denied"]);
    let environment = [
        "-e",
        "WORD=a b",
        "--cwd",
        "/usr",
        guest.name(),
        "sh",
        "-c",
        "pwd; echo $WORD",
    ];
    expect(
        posada(&[&["exec"], &environment[..]].concat()),
        0,
        "/usr\na b\n",
        "",
    );
    posada(&["exec", "--cwd", "/nonexistent", guest.name(), "true"]).expect_refusal(126, &["/nonexistent"]);
}

#[test]
fn a_hundred_megabytes_go_through_a_command_unchanged() {
    let guest = Played::by_an_agent();
    let input = noise(100_000_000);
    let mut cat = Running::of(guest.command(&["cat"]));
    cat.send(&input);
    cat.end_input();
    assert!(
        cat.wait().expect_status(0).stdout == input,
        "it comes back as it went"
    );
}

#[test]
fn who_does_not_read_holds_the_command_back_and_no_signal() {
    let guest = Played::by_an_agent();
    let mut yes = Running::of(guest.command(&["sh", "-c", "trap 'exit 3' INT; yes"]));
    yes.wait_for("y\n");
    // From here on nobody reads, until the command has been told.
    yes.signal(Signal::SIGINT);
    let ended = yes.wait().expect_status(3);
    const ON_THE_WAY: usize = 4 << 20;
    assert!(ended.stdout.len() < ON_THE_WAY, "{} bytes", ended.stdout.len());
}

#[test]
fn a_signal_reaches_a_command_past_input_that_it_does_not_read() {
    let guest = Played::by_an_agent();
    let mut deaf = Running::of(guest.command(&["sh", "-c", "echo ready; exec sleep 10000"]));
    deaf.send(noise(2_000_000));
    deaf.wait_for("ready\n");
    deaf.signal(Signal::SIGHUP);
    deaf.wait().expect_status(129);
}

#[test]
fn a_command_that_does_not_listen_does_not_hold_posada() {
    let guest = Played::by_an_agent();
    let mut stubborn = Running::of(guest.command(&[
        "sh",
        "-c",
        "trap 'echo no' INT; echo ready; while :; do sleep 0.02; done",
    ]));
    stubborn.wait_for("ready\n");
    for _ in 0..2 {
        stubborn.signal(Signal::SIGINT);
        stubborn.wait_for("no\n");
    }
    stubborn.signal(Signal::SIGINT);
    stubborn.wait().expect_status(130);
}

#[test]
fn a_command_whose_posada_is_killed_is_hung_up() {
    let (guest, place) = (Played::by_an_agent(), Place::new());
    let script = format!(
        "trap 'echo bye; echo bye >&2; echo > {}; exit' HUP; echo ready; while :; do sleep 0.02; done",
        place.text("told")
    );
    let mut lost = Running::of(guest.command(&["sh", "-c", &script]));
    lost.wait_for("ready\n");
    lost.signal(Signal::SIGKILL);
    until("the command has been told", || place.path("told").exists());
}

#[test]
fn a_pipe_that_is_closed_is_closed_for_the_other_end() {
    let guest = Played::by_an_agent();
    let mut yes = Running::of(guest.command(&["yes"]));
    yes.wait_for("y\n");
    yes.close_stdout();
    yes.wait().expect_status(128 + Signal::SIGPIPE as i32);
    // The command's reading end: what is sent beyond is nobody's, and does no harm.
    let mut head = Running::of(guest.command(&["head", "-c", "3"]));
    head.send(noise(1_000_000));
    assert_eq!(head.wait().expect_status(0).stdout, noise(3));
}

#[test]
fn a_terminal_is_the_commands_until_it_ends() {
    let guest = Played::by_an_agent();
    let script = "tty; read line; stty size; sleep 10000";
    let (mut running, before) = guest::on_terminal(&["exec", "-t", guest.name(), "sh", "-c", script]);
    running.wait_for("/dev/pts/");
    running.terminal().resize(20, 60);
    running.send("\r");
    running.wait_for("20 60\r\n");
    assert_ne!(running.terminal().settings(), before, "keys go through");
    running.send("\x03");
    let ended = running.wait().expect_status(130);
    assert_eq!(ended.terminal, Some(before));
}

#[test]
fn files_and_trees_are_copied_as_cp_would() {
    let (guest, here, there) = (Played::by_an_agent(), Place::new(), Place::new());
    plant(&here.path("tree"));
    let in_guest = |name: &str| format!("{{}}:{}", there.text(name));
    let cp = |from: &str, to: &str| expect(guest.cp(from, to), 0, "", "");

    cp(&here.text("tree"), &in_guest("")); // into a directory
    cp(&here.text("tree"), &in_guest("other")); // by another name
    assert_eq!(described(&there.path("tree")), described(&here.path("tree")));
    assert_eq!(described(&there.path("other")), described(&here.path("tree")));
    cp(&in_guest("tree"), &here.text("back"));
    assert_eq!(described(&here.path("back")), described(&here.path("tree")));

    // A tree that is there gets what is new, and keeps what it has.
    fs::write(here.path("tree/script"), "new").expect("a file");
    fs::write(there.path("tree/kept"), "kept").expect("a file");
    cp(&here.text("tree"), &in_guest(""));
    cp(&here.text("tree/."), &in_guest("other"));
    for name in ["tree", "other"] {
        assert_eq!(
            fs::read(there.path(name).join("script")).expect("it is there"),
            b"new"
        );
    }
    assert_eq!(fs::read(there.path("tree/kept")).expect("it is there"), b"kept");

    cp(&in_guest("tree/link"), &here.text("followed"));
    assert_eq!(fs::read(here.path("followed")).expect("a file"), noise(5000));
    expect(guest.cp(&in_guest("tree/script"), "-"), 0, "new", "");
    let mut input = Running::of(streaming(&[
        "cp",
        "-",
        &format!("{}:{}", guest.name(), there.text("input")),
    ]));
    input.send(noise(300_000));
    input.end_input();
    expect(input.wait(), 0, "", "");
    assert!(fs::read(there.path("input")).expect("it is there") == noise(300_000));
    assert_eq!(
        there.names(""),
        ["input", "other", "tree"],
        "nothing else is left"
    );
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let (guest, here, there) = (Played::by_an_agent(), Place::new(), Place::new());
    fs::write(here.path("file"), "file").expect("a file");
    let refused = |from: &str, to: &str, named: &[&str]| guest.cp(from, to).expect_refusal(1, named);
    refused("/nonexistent", "{}:/tmp", &["/nonexistent", "No such file"]);
    refused(
        "{}:/nonexistent",
        &here.text(""),
        &["/nonexistent", "No such file"],
    );
    refused(
        &here.text("file"),
        &format!("{{}}:{}", there.text("missing/name")),
        &["missing", "No such file"],
    );
    refused(
        &here.text("file"),
        &format!("{{}}:{}", there.text("missing/")),
        &["missing/", "No such file"],
    );
    refused("{}:/dev/null", &here.text(""), &["/dev/null", "device"]);
    refused("{}:/etc/passwd", "/dev/null", &["/dev/null", "device"]);
    refused("{}:/etc", "-", &["/etc", "directory"]);
    fs::create_dir(there.path("file")).expect("a directory");
    fs::write(there.path("file/file"), "old").expect("a file");
    fs::create_dir(here.path("dir")).expect("a directory");
    fs::create_dir(there.path("dir")).expect("a directory");
    fs::write(there.path("dir/dir"), "a file").expect("a file");
    refused(
        &here.text("dir"),
        &format!("{{}}:{}", there.text("dir")),
        &["dir", "Not a directory"],
    );
    for (from, to, named) in [
        ("a", "b", "neither end is in a guest"),
        ("{}:/a", "{}:/b", "both ends are in guests"),
        ("-", "-", "neither end"),
    ] {
        guest.cp(from, to).expect_refusal(2, &[named]);
    }
    assert_eq!(
        (here.names(""), there.names("")),
        (
            vec!["dir".into(), "file".into()],
            vec!["dir".into(), "file".into()]
        )
    );
}

//! Restored guests whose memory another process serves.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posada_tests::{Ended, Guest, Running, posada};
use serde_json::Value;
use vmm_sys_util::tempdir::TempDir;

const PAGE: usize = 4096;
/// What the guest has used before its snapshot.
const TOUCHED: u64 = 16 << 20;

/// A snapshot of a bare guest, and a socket at which its memory is served.
struct Story {
    name: String,
    directory: TempDir,
}

impl Story {
    /// The guest has run until it said `ready`.
    fn of(guest: Guest, ready: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let story = Self {
            name: format!("served-{}-{number}", std::process::id()),
            directory: TempDir::new().unwrap(),
        };
        let mut guest = guest.named(&story.name).start();
        guest.wait_for(ready);
        story.ask("snapshot", "s", &["--stop"]).expect_status(0);
        guest.wait().expect_status(0);
        story
    }

    fn of_a_counting_guest() -> Self {
        let guest = Guest::bare(&format!("program=count touch={TOUCHED}"));
        Self::of(guest, "count 1\n")
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.as_path().join(name)
    }

    fn ask(&self, verb: &str, snapshot: &str, arguments: &[&str]) -> Ended {
        let place = self.place(snapshot);
        let mut command = vec![verb, &self.name, place.to_str().unwrap()];
        command.extend(arguments);
        posada(&command)
    }

    /// A process that serves the memory, at most so many pages of it.
    fn handler(&self, pages: u64) -> Running {
        self.handler_at("socket", pages)
    }

    fn handler_at(&self, socket: &str, pages: u64) -> Running {
        let _ = fs::remove_file(self.place(socket));
        let mut command = Command::new(env!("CARGO_BIN_EXE_serve-memory"));
        command
            .args([self.place(socket), self.place("s").join("memory")])
            .arg(pages.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut handler = Running::of(command);
        handler.wait_for("listening\n");
        handler
    }

    fn served(&self) -> Guest {
        Guest::restored(&self.place("s"))
            .named(&self.name)
            .arg("--memory-from")
            .arg(self.place("socket"))
    }

    /// The guest, which counts on to 2.
    fn start(&self) -> Running {
        let mut guest = self.served().start();
        guest.send("\n");
        guest.wait_for("count 2\n");
        guest
    }
}

/// What a handler says when it is not needed any more: the pages that it has served, that it has served as zeros, and that the
/// guest has dropped.
fn figures(handler: Running) -> [u64; 3] {
    let console = handler.wait().expect_status(0).console();
    let figure = |name: &str| {
        let word = console
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name));
        word.expect("the handler's figures").parse().unwrap()
    };
    [figure("served="), figure("zeros="), figure("dropped=")]
}

fn end(guest: Running) {
    guest.signal(Signal::SIGTERM);
    guest.wait();
}

#[test]
fn a_guest_is_given_the_pages_that_it_touches_and_no_others() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let mut guest = story.start();
    guest.send("\n");
    guest.wait_for("count 3\n");
    end(guest);
    let [served, zeros, dropped] = figures(handler);
    assert!(0 < served && served < TOUCHED / PAGE as u64, "{served}");
    assert_eq!((zeros, dropped), (0, 0));
}

#[test]
fn a_snapshot_of_such_a_guest_has_what_it_never_touched() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let guest = story.start();
    story
        .ask("snapshot", "early", &["--diff"])
        .expect_refusal(1, &["take a full one first"]);
    story.ask("snapshot", "t", &["--stop"]).expect_status(0);
    guest.wait().expect_status(0);
    let [served, ..] = figures(handler);
    let [before, after] =
        ["s", "t"].map(|snapshot| fs::File::open(story.place(snapshot).join("memory")).unwrap());
    let pages = before.metadata().unwrap().len() / PAGE as u64;
    assert_eq!(served, pages, "each page is served once");
    let differs = |page: &u64| {
        let read = |file: &fs::File| {
            let mut bytes = [0; PAGE];
            file.read_exact_at(&mut bytes, page * PAGE as u64).unwrap();
            bytes
        };
        read(&before) != read(&after)
    };
    let different = (0..pages).filter(differs).count();
    assert!(0 < different && different < 100, "{different} of {pages} pages");
    let mut guest = Guest::restored(&story.place("t")).arg("--verify").start();
    guest.send("\n");
    guest.wait_for("count 3\n");
}

#[test]
fn a_guest_that_goes_back_has_its_memory_from_the_snapshot_and_needs_the_handler_no_more() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let mut guest = story.start();
    story.ask("rewind", "s", &[]).expect_status(0);
    figures(handler);
    for number in 2..5 {
        guest.send("\n");
        guest.wait_for(&format!("count {number}\n"));
    }
    assert_eq!(guest.messages(), "");
    end(guest);
}

#[test]
fn a_guest_whose_handler_dies_ends_and_says_why() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let guest = story.start();
    handler.signal(Signal::SIGKILL);
    let ended = guest.wait().expect_status(3);
    let messages = ended.messages();
    assert!(
        messages.contains("crashed: the process that serves"),
        "{messages}"
    );
    assert!(messages.contains("/socket' has ended"), "{messages}");
    assert_eq!(messages.matches('\n').count(), 1, "{messages}");
    handler.wait();
}

#[test]
fn a_guest_whose_handler_dies_before_it_runs_is_refused() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(0);
    let guest = story.served().start();
    figures(handler);
    guest
        .wait()
        .expect_refusal(1, &["the process that serves", "/socket' has ended"]);
}

/// Whenever it dies: while the machine is made, while it is let go, or later.
#[test]
fn a_guest_whose_handler_dies_at_any_page_ends_and_says_why_once() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    end(story.start());
    let [needed, ..] = figures(handler);
    for pages in 1..needed {
        let handler = story.handler(pages);
        let mut guest = story.served().start();
        guest.send("\n");
        let ended = guest.wait();
        let messages = ended.messages();
        assert_eq!(
            messages.matches("/socket' has ended").count(),
            1,
            "{pages} pages: {messages}"
        );
        assert_eq!(messages.matches('\n').count(), 1, "{pages} pages: {messages}");
        let status = ended.status.code();
        assert!(matches!(status, Some(1 | 3)), "{pages} pages: {status:?}");
        figures(handler);
    }
}

/// Has a snapshot wait for memory that is not served until `then`, which comes after posada has told so. Returns what the snapshot's
/// command says.
fn snapshot_in_vain(
    story: &Story,
    guest: &mut Running,
    handler: &Running,
    then: impl FnOnce(&Running),
) -> Ended {
    handler.signal(Signal::SIGSTOP);
    thread::scope(|scope| {
        let snapshot = scope.spawn(|| story.ask("snapshot", "t", &[]));
        guest.wait_until("posada has told of it", |guest| {
            guest.messages().contains("has served nothing")
        });
        then(guest);
        snapshot.join().expect("the command has ended")
    })
}

#[test]
fn a_user_is_told_that_nothing_is_served_and_it_goes_on_when_something_is() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let mut guest = story.start();
    let go_on = |_: &Running| handler.signal(Signal::SIGCONT);
    snapshot_in_vain(&story, &mut guest, &handler, go_on).expect_status(0);
    guest.send("\n");
    guest.wait_for("count 3\n");
    end(guest);
}

/// Ended by its user, posada waits for the snapshot that is being taken, which waits for memory.
#[test]
fn a_guest_that_is_ended_while_memory_is_waited_for_ends_with_the_handler() {
    let story = Story::of_a_counting_guest();
    let handler = story.handler(u64::MAX);
    let mut guest = story.start();
    let end_both = |guest: &Running| {
        guest.signal(Signal::SIGTERM);
        handler.signal(Signal::SIGKILL);
    };
    snapshot_in_vain(&story, &mut guest, &handler, end_both).expect_refusal(1, &["does not answer"]);
    let ended = guest.wait().expect_status(3);
    let messages = ended.messages();
    assert_eq!(messages.matches("/socket' has ended").count(), 1, "{messages}");
    handler.wait();
    assert!(!story.place("t").exists());
}

#[test]
fn clones_have_their_memory_served_each_by_itself() {
    let story = Story::of_a_counting_guest();
    let handlers = [
        story.handler_at("socket1", u64::MAX),
        story.handler_at("socket2", u64::MAX),
    ];
    let (directory, socket) = (story.place("s"), story.place("socket{}"));
    let [directory, socket] = [&directory, &socket].map(|path| path.to_str().unwrap());
    let name = format!("{}-c", story.name);
    let clones = [
        "clone",
        directory,
        "--name",
        &name,
        "--count",
        "2",
        "--json",
        "--memory-from",
        socket,
    ];
    let ended = posada(&clones).expect_status(0);
    let clones: Value = serde_json::from_str(&ended.console()).unwrap();
    for clone in clones.as_array().unwrap() {
        let pid = clone["pid"].as_i64().unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    }
    for handler in handlers {
        let [served, ..] = figures(handler);
        assert!(served > 0);
    }
    posada(&["clone", &story.name, "--memory-from", socket])
        .expect_refusal(1, &["--memory-from", "directory"]);
}

#[test]
fn where_nobody_serves_memory_the_guest_is_refused() {
    let story = Story::of_a_counting_guest();
    let refused = |named: &[&str]| story.served().run().expect_refusal(1, named);
    refused(&["/socket", "No such file"]);
    fs::write(story.place("socket"), "").unwrap();
    refused(&["/socket' is no Unix socket"]);
    fs::remove_file(story.place("socket")).unwrap();
    drop(UnixListener::bind(story.place("socket")).unwrap());
    refused(&["/socket", "Connection refused"]);
    let ended = story.served().arg("--prefault").arg("all").run().expect_status(2);
    assert!(
        ended.messages().contains("cannot be used with"),
        "{}",
        ended.messages()
    );
}

/// The handler hears of what is in the balloon, and does not bring it back as the snapshot has it.
#[test]
fn what_goes_into_the_balloon_comes_back_as_zeros() {
    const HANDED_OVER: u64 = 8 << 20;
    let guest = Guest::bare("program=balloon size=8M by=list")
        .arg("--balloon")
        .arg("size=8M");
    let story = Story::of(guest, "used: 8388608 bytes\n");
    let handler = story.handler(u64::MAX);
    let mut guest = story.served().start();
    guest.send("\n");
    guest.wait_for("handed over: 8388608 bytes\n");
    guest.send("\n");
    guest.wait_for("taken back: 8388608 bytes\n");
    guest.wait().expect_status(0);
    let [_, zeros, dropped] = figures(handler);
    let pages = HANDED_OVER / PAGE as u64;
    assert!(
        dropped >= pages && zeros >= pages,
        "{dropped} dropped, {zeros} zeros"
    );
}

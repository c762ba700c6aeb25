//! The memory balloon: what a guest gives up is the host's again, and what it takes back works.

use posada_tests::{Guest, posada};
use vmm_sys_util::tempdir::TempDir;

const MIB: u64 = 1 << 20;

/// Memory that the guest has used leaves the host's when the guest hands it over, and comes back as zeros.
#[track_caller]
fn goes_back_to_the_host(balloon: &str, by: &str) {
    const HANDED_OVER: u64 = 64 * MIB;
    /// Tables of pages and such come and go.
    const SLACK: u64 = MIB;
    let mut guest = Guest::bare(&format!("program=balloon size=64M by={by}"))
        .arg("--balloon")
        .arg(balloon)
        .start();
    guest.wait_for("used: 67108864 bytes\n");
    let used = guest.resident();
    assert!(used > HANDED_OVER, "{used}");
    guest.send("\n");
    guest.wait_for("handed over: 67108864 bytes\n");
    let left = guest.resident();
    assert!(
        left + HANDED_OVER < used + SLACK,
        "{left} bytes are left of {used}"
    );
    guest.send("\n");
    guest.wait_for("taken back: 67108864 bytes\n");
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
}

#[test]
fn memory_in_the_balloon_is_the_hosts() {
    goes_back_to_the_host("size=64M", "list");
}

#[test]
fn memory_that_is_reported_free_is_the_hosts() {
    goes_back_to_the_host("free-page-reporting", "report");
}

/// A restored guest's memory is its snapshot's file, of which nothing shines through where the guest has handed memory over; and
/// a diff that is taken then has that too.
#[track_caller]
fn comes_back_as_zeros(balloon: &str, by: &str) {
    let directory = TempDir::new().unwrap();
    let place = |snapshot: &str| directory.as_path().join(snapshot);
    let name = format!("balloon-{by}-{}", std::process::id());
    let ask = |verb: &str, snapshot: &str, how: &[&str]| {
        let place = place(snapshot);
        let command = [&[verb, &name, place.to_str().unwrap()], how].concat();
        posada(&command).expect_status(0);
    };
    let mut guest = Guest::bare(&format!("program=balloon size=8M by={by}"))
        .named(&name)
        .arg("--balloon")
        .arg(balloon)
        .start();
    guest.wait_for("used: 8388608 bytes\n");
    ask("snapshot", "full", &["--stop"]);
    guest.wait().expect_status(0);

    let mut guest = Guest::restored(&place("full")).named(&name).start();
    let mut hand_over = |snapshot: &str, how: &[&str]| {
        guest.send("\n");
        guest.wait_for("handed over: 8388608 bytes\n");
        ask("snapshot", snapshot, how);
    };
    hand_over("first", &["--diff"]);
    // What was handed over before a rewind is there again, and is handed over once more.
    ask("rewind", "full", &[]);
    hand_over("second", &["--diff", "--stop"]);
    guest.wait().expect_status(0);
    for diff in ["first", "second"] {
        let mut guest = Guest::restored(&place(diff)).arg("--verify").start();
        guest.send("\n");
        guest.wait_for("taken back: 8388608 bytes\n");
        guest.wait().expect_status(0);
    }
}

#[test]
fn memory_that_a_restored_guest_hands_over_comes_back_as_zeros() {
    comes_back_as_zeros("size=8M", "list");
}

#[test]
fn memory_that_a_restored_guest_reports_free_comes_back_as_zeros() {
    comes_back_as_zeros("free-page-reporting", "report");
}

/// Linux fills the balloon while it boots, and says what it does with its memory.
#[test]
fn linux_fills_the_balloon_tells_what_it_does_and_agrees_to_report_free_memory() {
    let mut guest = Guest::booting()
        .arg("--balloon")
        .arg("size=4M,deflate-on-oom,free-page-reporting,stats=2")
        .arg("--verbose")
        .start();
    guest.wait_until("the balloon full", |guest| {
        let messages = guest.messages();
        let line = messages
            .lines()
            .rfind(|line| line.contains("balloon: 4 MiB handed over"));
        line.is_some_and(|line| {
            ["free ", "total ", "available "]
                .iter()
                .all(|part| line.contains(part))
        })
    });
    guest.send("poweroff\n");
    let ended = guest.wait().expect_status(0);
    assert!(ended.console().contains("Free page reporting enabled"));
}

#[test]
fn a_balloon_that_cannot_be_is_refused() {
    for (balloon, named) in [
        ("size=128M", "leaves nothing"),
        ("size=5000", "multiple of the page size"),
        ("stats=0", "1 to 86400"),
    ] {
        posada(&["run", "--balloon", balloon]).expect_refusal(2, &["balloon", named]);
    }
    let ended = posada(&["run", "--balloon", "64M"]).expect_status(2);
    assert!(ended.messages().contains("'64M'"), "{}", ended.messages());
}

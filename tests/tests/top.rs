//! `posada top`, as somebody at a terminal sees it.

use nix::sys::signal::Signal;
use posada_tests::{Guest, guest, posada};
use vmm_sys_util::tempdir::TempDir;

#[test]
fn top_shows_what_guests_do_until_a_key_ends_it() {
    let place = TempDir::new().unwrap();
    let image = place.as_path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let name = format!("top-{}", std::process::id());
    let mut busy = Guest::bare("program=blk-renew")
        .arg("--disk")
        .arg(&image)
        .named(&name)
        .start();
    busy.wait_for("renewing");

    let (mut top, before) = guest::on_terminal(&["top"]);
    top.terminal().resize(40, 120);
    top.wait_for("EXITS/s");
    top.wait_for(&name);
    // Its graphs, once there has been a second look.
    top.wait_for("written");
    top.wait_until("the terminal is raw", |top| top.terminal().settings() != before);
    top.send("\x1b[B\x1b[As");
    // Another column is the one that is sorted by.
    top.wait_for("▾");
    // There is nothing to be seen on a terminal as small as that.
    top.terminal().resize(1, 1);
    top.wait_for("\x1b[2J");
    top.terminal().resize(40, 120);
    top.wait_for("EXITS/s");
    top.send("q");
    top.wait_until("the terminal is as it was", |top| {
        top.terminal().settings() == before
    });
    top.wait().expect_status(0);

    let (mut top, before) = guest::on_terminal(&["top"]);
    top.terminal().resize(40, 120);
    top.wait_for("EXITS/s");
    top.signal(Signal::SIGTERM);
    top.wait_until("the terminal is as it was", |top| {
        top.terminal().settings() == before
    });
    top.wait().expect_status(128 + Signal::SIGTERM as i32);
    posada(&["kill", &name]).expect_status(0);
}

#[test]
fn top_ends_with_its_terminal() {
    let (mut top, _) = guest::on_terminal(&["top"]);
    top.terminal().resize(40, 120);
    top.wait_for("EXITS/s");
    top.hang_up();
    // By a signal, or as it has seen it.
    assert_ne!(top.wait().status.code(), Some(0));
}

#[test]
fn top_without_a_terminal_says_what_there_is_for_scripts() {
    posada(&["top"]).expect_refusal(1, &["terminal", "stats --json"]);
    posada(&["top", "--interval", "0"]).expect_status(2);
}

//! Files and trees, copied into a guest and out of it by its agent, as cp(1) would.

use std::fs;

use posada_tests::Running;
use posada_tests::agent::Played;
use posada_tests::guest::streaming;
use posada_tests::tree::{Place, described, noise, plant};

#[test]
fn files_and_trees_are_copied_as_cp_would() {
    let (guest, here, there) = (Played::by_an_agent(), Place::empty(), Place::empty());
    plant(&here.path("tree"));
    let in_guest = |name: &str| format!("{{}}:{}", there.text(name));
    let cp = |from: &str, to: &str| guest.cp(from, to).expect_said(0, "", "");

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
    guest.cp(&in_guest("tree/script"), "-").expect_said(0, "new", "");
    let mut input = Running::of(streaming(&[
        "cp",
        "-",
        &format!("{}:{}", guest.name(), there.text("input")),
    ]));
    input.send(noise(300_000));
    input.end_input();
    input.wait().expect_said(0, "", "");
    assert!(fs::read(there.path("input")).expect("it is there") == noise(300_000));
    assert_eq!(
        there.names(""),
        ["input", "other", "tree"],
        "nothing else is left"
    );
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let (guest, here, there) = (Played::by_an_agent(), Place::empty(), Place::empty());
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

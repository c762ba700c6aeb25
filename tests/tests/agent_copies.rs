//! Files and trees, copied into a guest and out of it by its agent, as cp(1) would.

use std::ffi::OsStr;
use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_agent::archive::pack;
use guest_agent::frame::Frame;
use guest_agent::request::greet;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use posada_tests::agent::Played;
use posada_tests::guest::{command, streaming};
use posada_tests::tree::{Place, described, noise, plant};
use posada_tests::{Running, posada};

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
    let odd = OsStr::from_bytes(b"/tmp/odd-\xff");
    let ended = posada(&["cp".as_ref(), odd, "web:/tmp".as_ref()]).expect_status(2);
    for named in ["odd-", "UTF-8", "rename it"] {
        assert!(ended.messages().contains(named), "{}", ended.messages());
    }
    assert_eq!(
        (here.names(""), there.names("")),
        (
            vec!["dir".into(), "file".into()],
            vec!["dir".into(), "file".into()]
        )
    );
}

/// A pipe that has no room.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("a pipe");
    let wait = |writer: &PipeWriter, flags| fcntl(writer, FcntlArg::F_SETFL(flags)).expect("a pipe's flags");
    wait(&writer, OFlag::O_NONBLOCK);
    // By whole pages, which leave nothing between them.
    while writer.write(&[0; 4096]).is_ok() {}
    wait(&writer, OFlag::empty());
    (reader, writer)
}

#[test]
fn a_copy_that_is_in_place_is_not_undone_by_a_signal_and_a_second_one_ends_posada() {
    let here = Place::empty();
    fs::write(here.path("file"), "new").expect("a file");
    let (mut said, mut archive) = (Vec::new(), Vec::new());
    pack(&here.path("file"), &mut archive).expect("a vector takes everything");
    greet(&mut said).expect("a vector takes everything");
    for frame in [Frame::Output(&archive), Frame::Error(b"a remark"), Frame::Exit(0)] {
        frame.append_to(&mut said);
    }
    static HUNG_UP: AtomicBool = AtomicBool::new(false);
    let guest = Played::by(move |mut stream| {
        stream.write_all(&said).expect("who calls listens");
        // The request, and no more.
        let _ = stream.read_to_end(&mut Vec::new());
        HUNG_UP.store(true, Ordering::Relaxed);
    });
    for (signals, status) in [(1, 0), (2, 128 + Signal::SIGINT as i32)] {
        // The remark, which comes last, cannot be said.
        let (reader, writer) = full_pipe();
        let mut copy = command(&["cp", &format!("{}:/file", guest.name()), &here.text("copy")]);
        copy.stderr(writer);
        let mut copy = Running::of(copy);
        copy.wait_until("the copy being there", |_| here.path("copy").exists());
        copy.signal(Signal::SIGINT);
        copy.wait_until("the agent being hung up on", |_| {
            HUNG_UP.swap(false, Ordering::Relaxed)
        });
        match signals {
            1 => drop(reader),
            _ => copy.signal(Signal::SIGINT),
        }
        copy.wait().expect_status(status);
        fs::remove_file(here.path("copy")).expect("it is there");
    }
}

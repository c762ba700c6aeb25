//! The control socket of a running guest: what comes to it that is no request harms nobody.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use posada_tests::{Guest, guest, http, posada};
use vmm_sys_util::tempdir::TempDir;

fn directory(name: &str) -> PathBuf {
    guest::runtime_directory().join("posada").join(name)
}

fn connect(name: &str) -> UnixStream {
    UnixStream::connect(directory(name).join("control.sock")).unwrap()
}

#[test]
fn what_is_no_request_is_answered_by_a_sentence_and_the_guest_goes_on() {
    let name = format!("control-{}", std::process::id());
    let mut running = Guest::bare("program=echo").named(&name).start();
    running.wait_for("listening\n");
    let socket = directory(&name).join("control.sock");
    for bytes in [
        &b""[..],
        b"\n",
        b"hello\n",
        b"\xff\xfe\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let reply = http::raw(&socket, bytes).unwrap();
        assert!([0, 400].contains(&reply.status), "{bytes:?}: {reply:?}");
    }
    for (verb, body) in [
        ("snapshot", ""),
        ("snapshot", "{}"),
        ("snapshot", "[]"),
        (
            "snapshot",
            "{\"directory\":\"/x\",\"diff\":false,\"stop\":false,\"more\":1}",
        ),
        ("destroy", ""),
        ("pause", "{\"now\":true}"),
    ] {
        http::request(&socket, "PUT", &format!("/posada/v1/{verb}"), body).expect(400);
    }
    let long = vec![b'x'; 1 << 20];
    // Whoever sends without end is cut off, whoever says nothing does not keep others from being heard, in time.
    let mut endless = connect(&name);
    let _ = endless.write_all(&long);
    let _silent = connect(&name);
    let place = TempDir::new().unwrap();
    let snapshot = place.as_path().join("s");
    posada(&["snapshot", &name, snapshot.to_str().unwrap()]).expect_status(0);
    running.send("still there\n");
    let ended = running.wait().expect_status(0);
    assert!(ended.console().contains("still there"), "{}", ended.console());
    ended.expect_no_panic();
    assert!(!directory(&name).exists(), "its directory goes with it");
}

#[test]
fn only_its_user_can_reach_a_guest() {
    let name = format!("control-private-{}", std::process::id());
    let mut running = Guest::bare("program=echo").named(&name).start();
    running.wait_for("listening\n");
    let mode = fs::metadata(directory(&name)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    running.send("\n");
    running.wait().expect_status(0);
}

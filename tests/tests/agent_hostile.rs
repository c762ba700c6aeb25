//! Agents that are none, or no friends: what they say ends in one sentence, in bounded time and memory, and writes nothing where it was
//! not asked for. And guests that have no agent.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process;

use guest_agent::frame::{Frame, MAX_LEN, Standard};
use guest_agent::request::greet;
use nix::sys::signal::Signal;
use posada_tests::agent::Played;
use posada_tests::guest::command;
use posada_tests::{Guest, Running, Script, posada};
use tar::{Builder, EntryType, Header};
use vmm_sys_util::tempdir::TempDir;

/// The greeting of an agent, and these frames behind it.
fn agent_saying(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut said = Vec::new();
    greet(&mut said).expect("a vector takes everything");
    frames.iter().for_each(|frame| frame.append_to(&mut said));
    said
}

fn header(kind: EntryType, name: &str, target: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header
}

/// An archive with these entries: kind, name, and where a link leads.
fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (kind, name, target) in entries {
        let content: &[u8] = if kind.is_file() { b"from the guest" } else { b"" };
        let header = header(*kind, name, target, content.len() as u64);
        archive
            .append(&header, content)
            .expect("a vector takes everything");
    }
    archive.into_inner().expect("a vector takes everything")
}

/// A directory to copy into, and what is beside it.
struct Beside {
    directory: TempDir,
    into: PathBuf,
}

impl Beside {
    fn new() -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        let into = directory.as_path().join("into");
        fs::create_dir(&into).expect("a directory");
        Self { directory, into }
    }

    /// How many files there are in the directory, and how many directories there are beside it.
    fn counts(&self) -> (usize, usize) {
        let count = |path: &Path| fs::read_dir(path).expect("a directory").count();
        (count(&self.into), count(self.directory.as_path()) - 1)
    }
}

#[test]
fn an_archive_of_a_guests_writes_nothing_outside_and_nothing_half() {
    let beside = Beside::new();
    let outside = beside.directory.as_path().display().to_string();
    let absolute = format!("{outside}/file");
    let (file, link) = (EntryType::Regular, EntryType::Symlink);
    let forged: [&[_]; 9] = [
        &[(file, "../file", "")],
        &[(file, "copy/../../file", "")],
        &[(file, &absolute, "")],
        &[(link, "copy", ".."), (file, "copy/file", "")],
        &[(link, "copy/a", &outside), (file, "copy/a/file", "")],
        &[(link, "copy/file", &absolute), (file, "copy/file", "")],
        &[(EntryType::Link, "copy", "/etc/passwd")],
        &[(EntryType::Char, "copy", "")],
        &[(file, "copy", ""), (file, "copy/file", "")],
    ];
    for entries in forged {
        let said = agent_saying(&[Frame::Output(&archive(entries)), Frame::Exit(0)]);
        let guest = Played::saying(said);
        let to = beside.into.display().to_string();
        guest.cp("{}:/x", &to).expect_refusal(1, &[]);
        assert_eq!(beside.counts(), (0, 0), "{entries:?}");
    }
}

#[test]
fn an_archive_that_never_ends_or_ends_too_soon_leaves_nothing() {
    let beside = Beside::new();
    let to = beside.into.display().to_string();
    let whole = archive(&[(EntryType::Regular, "copy", "")]);
    for (frames, named) in [
        (&[Frame::Output(&whole)][..], "is gone"),
        (&[Frame::Output(&whole[..700]), Frame::Exit(0)], "no agent does"),
        (&[Frame::Output(&whole), Frame::Output(b"more")], "no agent does"),
        (&[Frame::Output(b"no archive"), Frame::Exit(0)], "no agent does"),
        (&[Frame::Output(&[b'x'; 2000]), Frame::Exit(0)], "no agent does"),
        (&[Frame::Failed(b"{}")], "does not say why"),
        (&[Frame::Exit(1)], "no message"),
        (&[Frame::Error(b"a"), Frame::Error(b"b")], "no message"),
    ] {
        let guest = Played::saying(agent_saying(frames));
        guest.cp("{}:/x", &to).expect_refusal(1, &[named]);
        assert_eq!(beside.counts(), (0, 0), "{frames:?}");
    }
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let beside = Beside::new();
    let file = header(EntryType::Regular, "copy", "", 1 << 40);
    let begun = agent_saying(&[Frame::Output(file.as_bytes()), Frame::Output(b"and so on")]);
    let guest = Played::by(move |mut stream| {
        stream.write_all(&begun).expect("who calls listens");
        // No end comes before the caller's.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let from = format!("{}:/x", guest.name());
    let mut copy = Running::of(command(&["cp", &from, &beside.into.display().to_string()]));
    copy.wait_until("it has begun", |_| beside.counts() == (1, 0));
    copy.signal(Signal::SIGINT);
    copy.wait().expect_status(128 + Signal::SIGINT as i32);
    assert_eq!(beside.counts(), (0, 0));
}

#[test]
fn an_agent_that_says_what_none_does_is_told_of_in_one_sentence() {
    let too_long = [&agent_saying(&[])[..], &[7], &(MAX_LEN as u32 + 1).to_le_bytes()].concat();
    let unknown = [&agent_saying(&[])[..], &[99, 0, 0, 0, 0]].concat();
    let mut newer = agent_saying(&[]);
    *newer.last_mut().expect("its version") = 9;
    for (said, named) in [
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "no agent of posada's"),
        (newer, "put the agent that goes with this posada"),
        (Vec::new(), "no agent listens"),
        (b"posada".to_vec(), "no agent listens"),
        (agent_saying(&[]), "is gone"),
        (too_long, "no message"),
        (unknown, "no message"),
        (agent_saying(&[Frame::Taken(1)]), "no message"),
        (agent_saying(&[Frame::Closed(Standard::Output)]), "no message"),
        (agent_saying(&[Frame::Request(b"{}")]), "no message"),
        (agent_saying(&[Frame::Failed(b"\xff\xff")]), "does not say why"),
        (
            agent_saying(&[Frame::Failed(
                br#"{"status":0,"message":"it cannot\u001b[2J\nbe"}"#,
            )]),
            "it cannot [2J be",
        ),
    ] {
        let guest = Played::saying(said);
        guest.exec(&["true"]).expect_refusal(1, &[named]);
    }
}

#[test]
fn output_without_end_ends_with_who_reads_it() {
    let guest = Played::by(|mut stream| {
        let mut said = agent_saying(&[]);
        while stream.write_all(&said).is_ok() {
            said.clear();
            Frame::Output(b"endless ").append_to(&mut said);
        }
    });
    let mut endless = Running::of(guest.command(&["true"]));
    endless.wait_for("endless endless ");
    endless.close_stdout();
    let messages = endless.wait().expect_status(1).messages();
    assert!(messages.contains("no message"), "{messages}");
}

#[test]
fn a_guest_without_an_agent_is_told_of_with_what_to_do() {
    let place = TempDir::new().expect("a directory for temporary files");
    let name = format!("no-agent-{}", process::id());
    posada(&["exec", &name, "true"]).expect_refusal(1, &["there is no running guest named", &name]);

    let halted = Script::new().say("halts").halt().code();
    let mut without = Guest::payload(&halted).named(&name).start();
    without.wait_for("halts");
    posada(&["exec", &name, "true"]).expect_refusal(1, &[&name, "no socket device", "--vsock"]);
    posada(&["kill", &name]).expect_status(0);
    without.wait().expect_status(0);

    // A guest that has the device, and nobody at the agent's port.
    let path = place.as_path().join("v.sock");
    let other = Guest::bare("program=vsock-echo wait=interrupt")
        .arg("--vsock")
        .arg(path);
    let mut other = other.named(&name).start();
    other.wait_for("listening");
    posada(&["exec", &name, "true"]).expect_refusal(1, &["no agent listens", &name, "docs/agent.md"]);
    posada(&["pause", &name]).expect_status(0);
    posada(&["cp", &format!("{name}:/x"), "-"]).expect_refusal(1, &["is paused", "posada resume"]);
    posada(&["kill", &name]).expect_status(0);
    other.wait().expect_status(0);
}

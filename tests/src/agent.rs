//! Guests whose socket device is played by the test: posada finds them by their names, calls their agents as always, and is answered by
//! this process. So what goes through an agent is tested at the host's speed, and what no agent would say can be said.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use guest_agent::request::PORT;
use guest_agent::serve::serve;
use vmm_sys_util::tempdir::TempDir;

use crate::{Ended, Guest, Running, Script, guest, posada};

/// A guest that halts, and calls to it that this process takes.
pub struct Played {
    name: String,
    _guest: Running,
    _directory: TempDir,
}

impl Played {
    /// With the agent itself, which runs its commands on this host.
    pub fn by_an_agent() -> Self {
        Self::by(answer)
    }

    /// With an agent that says these bytes to each caller, and then ends the stream.
    pub fn saying(bytes: Vec<u8>) -> Self {
        Self::by(move |mut stream| {
            // Its caller may have heard enough.
            let _ = stream
                .write_all(&bytes)
                .and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = io::copy(&mut stream, &mut io::sink());
        })
    }

    /// With `agent` for each stream that the guest's port has been asked for.
    ///
    /// # Panics
    /// If the host has no /dev/kvm.
    pub fn by(agent: impl Fn(UnixStream) + Clone + Send + 'static) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("played-{}-{number}", process::id());
        let directory = TempDir::new().expect("a directory for temporary files");
        let path = directory.as_path().join("v.sock");
        let code = Script::new().say("halts").halt().code();
        let mut guest = Guest::payload(&code)
            .named(&name)
            .arg("--vsock")
            .arg(&path)
            .start();
        guest.wait_for("halts");
        fs::remove_file(&path).expect("the device's socket is there");
        let listener = UnixListener::bind(&path).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let agent = agent.clone();
                thread::spawn(move || agent(taken(stream.expect("a socket that listens"))));
            }
        });
        Self {
            name,
            _guest: guest,
            _directory: directory,
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `posada exec` with these arguments behind the guest's name, and nothing to read.
    pub fn exec(&self, arguments: &[&str]) -> Ended {
        posada(&[&["exec", &self.name, "--"], arguments].concat())
    }

    /// `posada exec` with these arguments behind the guest's name, to be started by the test, which has its input.
    pub fn command(&self, arguments: &[&str]) -> Command {
        guest::streaming(&[&["exec", &self.name], arguments].concat())
    }

    /// `posada cp`, with `{}` in the guest's place.
    pub fn cp(&self, from: &str, to: &str) -> Ended {
        posada(&[
            "cp",
            &from.replace("{}", &self.name),
            &to.replace("{}", &self.name),
        ])
    }
}

/// Answers a call as the agent, which runs its commands on this host.
pub fn answer(stream: UnixStream) {
    // Its caller is told what there is to be told.
    let _ = serve(&File::from(OwnedFd::from(stream)));
}

/// Takes a call as the device does (docs/vsock.md).
fn taken(mut stream: UnixStream) -> UnixStream {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a call has a line");
        line.extend(byte);
    }
    assert_eq!(line, format!("CONNECT {PORT}\n").as_bytes());
    stream.write_all(b"OK 1073741824\n").expect("who calls listens");
    stream
}

//! Works on everything that the guest has: writes files to its disk, talks to the host by TCP and through vsock, all at once, until
//! the host has had enough. Its streams through vsock may be reset at any time; nothing else may go wrong.
//!
//! Prints one line at its end: how many pieces (see the library) went where. It is frugal with system calls, each of which takes
//! tenths of a millisecond where the host interprets the guest's kernel.

mod disk;
mod streams;
mod vsock;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// What the parts of the work tell each other.
#[derive(Default)]
struct Work {
    /// Pieces that are on the disk for certain.
    synced: AtomicU64,
    enough: AtomicBool,
}

impl Work {
    fn synced(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// What a part has come to. If it has failed, the others end too.
    fn outcome<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        if outcome.is_err() {
            self.end();
        }
        outcome
    }
}

fn main() -> ExitCode {
    match work() {
        Ok(report) => {
            println!("worker: {report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("worker: failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what there are devices for, and says how much that was.
fn work() -> io::Result<String> {
    let has = |path| Path::new(path).exists();
    let (disk, network) = (has("/dev/vda"), has("/sys/class/net/eth0"));
    let work = Work::default();
    if disk {
        disk::mount()?;
    }
    let listener = vsock::listen(guest_worker::ECHO_PORT)?;
    thread::spawn(|| streams::echo(listener));
    let report = thread::scope(|scope| {
        let tcp = scope.spawn(|| work.outcome(if network { streams::tcp(&work) } else { Ok(0) }));
        let vsock = scope.spawn(|| work.outcome(streams::vsock(&work)));
        let files = work.outcome(if disk { disk::write(&work) } else { Ok(0) });
        let ended = "a thread of the worker's panicked";
        let tcp = tcp.join().map_err(|_| io::Error::other(ended))?;
        let vsock = vsock.join().map_err(|_| io::Error::other(ended))?;
        let (pieces, calls) = vsock?;
        Ok::<_, io::Error>(format!(
            "disk={} tcp={} vsock={pieces} calls={calls}",
            files?, tcp?
        ))
    })?;
    if disk {
        disk::unmount()?;
    }
    Ok(report)
}

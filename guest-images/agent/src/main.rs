//! Listens for the host, and serves each of its streams on a thread of its own. It takes no arguments and ends with the machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use guest_agent::request::PORT;
use guest_agent::serve::serve;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen, socket,
};

/// Streams at a time. Another one is closed at once.
const MAX_STREAMS: usize = 128;
/// How long to wait when the machine has no room for another stream.
const PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let listener = match open() {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("posada-agent: cannot listen at port {PORT} of vsock: {error}");
            return ExitCode::FAILURE;
        }
    };
    let streams = Arc::new(());
    loop {
        match accept(&listener) {
            // The count has one for this loop.
            Ok(Some(stream)) if Arc::strong_count(&streams) <= MAX_STREAMS => {
                let counted = streams.clone();
                let serving = thread::Builder::new().spawn(move || {
                    // Who is gone hears of no error.
                    let _ = serve(&stream);
                    drop(counted);
                });
                if let Err(error) = serving {
                    eprintln!("posada-agent: cannot serve a stream: {error}");
                }
            }
            Ok(_) => {}
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let listener = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Any of the machine's addresses: it may get another one when it is restored.
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

/// The next stream; none if it is not the host's.
fn accept(listener: &OwnedFd) -> io::Result<Option<File>> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the descriptor is new and nobody else's.
    let stream = unsafe { File::from_raw_fd(fd) };
    let peer: VsockAddr = getpeername(fd)?;
    Ok((peer.cid() == libc::VMADDR_CID_HOST).then_some(stream))
}

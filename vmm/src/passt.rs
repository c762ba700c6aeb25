//! User networks: a `passt` process for each, which translates between the guest's frames and sockets of the host's that
//! anybody may open.
//!
//! passt has one socket to posada and nothing else of posada's. It confines itself before it looks at a frame, goes to the background when
//! its ports are open, and ends when the socket is closed, which the kernel does however posada ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use thiserror::Error;
use tracing::debug;

use crate::config::NetConfig;
use crate::config::net::{Forward, Protocol};

const PROGRAM: &str = "passt";

/// Why there is no user network.
#[derive(Debug, Error)]
pub enum PasstError {
    /// The program is not installed.
    #[error(
        "a user network needs '{PROGRAM}', which is not installed: run 'sudo apt-get install passt', or use a tap"
    )]
    Missing,
    /// The program does not start.
    #[error("cannot start '{PROGRAM}' for a user network: {0}")]
    Start(io::Error),
    /// A port is not free.
    #[error("{0} cannot be forwarded: it is in use, or not yours to open; name another one")]
    Port(String),
    /// It ended at once.
    #[error("'{PROGRAM}' cannot make a user network: {0}")]
    Failed(String),
}

/// Starts passt for this network; returns posada's end of its socket. When this returns, the ports are open.
///
/// # Errors
/// It is not installed, or does not start, or a port is not free.
pub fn start(config: &NetConfig) -> Result<UnixStream, PasstError> {
    let (ours, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
    let theirs = inherited(theirs.into()).map_err(PasstError::Start)?;
    let output = command(config, &theirs)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Start(error),
        })?;
    if output.status.success() {
        debug!("passt runs for the network '{config}'");
        Ok(ours)
    } else {
        Err(explain(config, &output))
    }
}

/// Makes a descriptor one that programs started from here keep.
fn inherited(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd)
}

fn command(config: &NetConfig, socket: &OwnedFd) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("--quiet")
        .arg("--stderr")
        .args(["--fd", &socket.as_raw_fd().to_string()])
        .stdin(Stdio::null());
    if let Some(mtu) = config.mtu {
        command.args(["--mtu", &mtu.to_string()]);
    }
    for (protocol, flag) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let of_protocol = |forward: &&Forward| forward.protocol == protocol;
        let mut forwards = config.forward.iter().filter(of_protocol).peekable();
        // Unless told otherwise, it opens the UDP ports of the TCP ports' numbers as well.
        if forwards.peek().is_none() {
            command.args([flag, "none"]);
        }
        for forward in forwards {
            command.args([flag, &port_spec(forward)]);
        }
    }
    command
}

/// `passt(1)`, `-t`: ADDRESS/HOSTPORT:GUESTPORT.
fn port_spec(forward: &Forward) -> String {
    let (address, port) = (forward.address, forward.host_port);
    format!("{address}/{port}:{}", forward.guest_port)
}

/// What passt said when it ended: it names the ports that it could not open as they were given to it.
fn explain(config: &NetConfig, output: &Output) -> PasstError {
    let said = String::from_utf8_lossy(&output.stderr);
    let refused = said.lines().find(|line| line.contains("Failed to bind"));
    if let Some(line) = refused
        && let Some(forward) = config
            .forward
            .iter()
            .find(|forward| line.contains(&port_spec(forward)))
    {
        return PasstError::Port(forward.host_side());
    }
    // Where there is no system log, it says so each time before what it has to say.
    let is_news = |line: &&str| !line.contains("to syslog") && !line.trim().is_empty();
    let last = said.lines().rfind(is_news);
    PasstError::Failed(match last {
        Some(line) => line.trim().to_owned(),
        None => format!("it ended with {}", output.status),
    })
}

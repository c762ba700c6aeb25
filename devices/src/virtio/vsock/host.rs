//! The host's side: the Unix socket that host programs connect to, what they say there, and the sockets that the guest's
//! connections go to.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use thiserror::Error;
use tracing::debug;

/// Bytes of a Unix socket's path, without the NUL: unix(7), `sun_path`.
const MAX_SOCKET_PATH: usize = 107;
/// What a port adds to the path at most: `_4294967295`.
const MAX_PORT_SUFFIX: usize = 11;
/// Longest path of a socket that has room for what a port adds, in bytes.
pub const MAX_PATH: usize = MAX_SOCKET_PATH - MAX_PORT_SUFFIX;
/// Longest first line of a host program: `CONNECT 4294967295` and the line's end, with room for spaces.
const MAX_LINE: usize = 32;

/// Why posada cannot listen for host programs.
#[derive(Debug, Error)]
pub enum BindError {
    /// With a port behind it, it would be no socket's address.
    #[error(
        "the vsock path '{path}' is too long: a Unix socket's name, with a port behind it, has room for {max} bytes",
        path = .0.display(), max = MAX_PATH
    )]
    TooLong(PathBuf),
    /// Somebody answers there.
    #[error("the vsock socket '{path}' is in use: another process listens there; end it, or give another path", path = .0.display())]
    InUse(PathBuf),
    /// Not to be replaced.
    #[error("the vsock path '{path}' is taken by something that is no socket; remove it, or give another path", path = .0.display())]
    NotASocket(PathBuf),
    /// The host refuses.
    #[error("cannot listen at the vsock socket '{path}': {source}", path = path.display())]
    Refused {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket's name in the file system. Dropping it removes the name, unless it has become somebody else's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            debug!("cannot remove '{}': {error}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Listens at `path`, in the place of a socket that nobody listens at any more.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(BindError::TooLong(path.to_owned()));
    }
    let refused = |source| BindError::Refused {
        path: path.to_owned(),
        source,
    };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path)
        }
        result => result,
    };
    let listener = listener.map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path).map_err(refused)?,
    };
    Ok((listener, file))
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let refused = |source| BindError::Refused {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(path).map_err(refused)?;
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(refused),
        // One whose queue is full (WouldBlock) is listened at as well.
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(BindError::InUse(path.to_owned())),
        Err(error) => Err(refused(error)),
    }
}

/// Connects to the socket that is `path` with a port behind it: where a host program listens for the guest.
pub fn connect_to_port(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    connect(Path::new(&name))
}

/// Connects without waiting, not even for a listener that is slow to accept.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// A host program that has connected and has not said yet to which port.
pub struct Handshake {
    socket: UnixStream,
    line: Vec<u8>,
}

/// How far a [`Handshake`] has come.
pub enum Greeting {
    /// More is to come.
    Unfinished,
    /// This is the guest's port.
    Port(u32),
    /// It is none.
    Nonsense,
}

impl Handshake {
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            line: Vec::with_capacity(MAX_LINE),
        }
    }

    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// Reads what there is of the first line, and nothing behind it: that is the guest's.
    pub fn read(&mut self) -> Greeting {
        let mut bytes = [0; MAX_LINE];
        let room = MAX_LINE - self.line.len();
        let peeked = match self.receive(&mut bytes[..room], MsgFlags::MSG_PEEK) {
            Ok(0) => return Greeting::Nonsense,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Greeting::Unfinished,
            Err(_) => return Greeting::Nonsense,
        };
        let end = bytes[..peeked].iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(peeked, |end| end + 1);
        // What was seen is still there.
        if self.receive(&mut bytes[..taken], MsgFlags::empty()).is_err() {
            return Greeting::Nonsense;
        }
        self.line.extend_from_slice(&bytes[..taken]);
        match end {
            Some(_) => port(&self.line).map_or(Greeting::Nonsense, Greeting::Port),
            None if self.line.len() == MAX_LINE => Greeting::Nonsense,
            None => Greeting::Unfinished,
        }
    }

    fn receive(&self, into: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
        let flags = flags | MsgFlags::MSG_DONTWAIT;
        Ok(socket::recv(self.socket.as_raw_fd(), into, flags)?)
    }
}

/// The port of `CONNECT 1234`, as Firecracker's users write it.
fn port(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port, rest) = (words.next()?, words.next()?, words.next());
    (command.eq_ignore_ascii_case("connect") && rest.is_none())
        .then(|| port.parse().ok())
        .flatten()
}

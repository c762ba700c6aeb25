//! Guest memory that another process serves: the handshake with it, which is Firecracker's, and what happens when it ends.
//!
//! posada connects to the process's socket and sends one message: where the guest's regions are, as JSON, and with it the descriptor of
//! a userfaultfd(2) in which they are registered. From then on whoever touches a page that is not there (a vCPU, KVM, a device) waits
//! until the process has put it there. posada keeps a copy of the descriptor, without which the kernel would fill what is
//! missing with zeros when the process dies; so it has to find out, and ends the guest: nothing else can be right.

mod handshake;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use tracing::{error, warn};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::image;
use super::ranges::PageRanges;
use super::uffd::{Uffd, UffdError};
use crate::lifecycle::Stop;
use crate::memory::GuestMemory;
use crate::vm::RunningVm;

/// How long it may take until a guest has what it needs to run.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether the guest waits in vain: so long, or twice that, until its user is told.
const LOOK: Duration = Duration::from_secs(5);
/// How long a machine that has stopped may take to end its process, until it is clear that it waits for memory.
const GRACE: Duration = Duration::from_secs(2);
/// A process that dies closes its connection a moment before it is gone.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// Why memory is not served.
#[derive(Debug, Error)]
pub enum ServedError {
    /// The host does not do it.
    #[error(transparent)]
    Uffd(#[from] UffdError),
    /// The wrong file was named.
    #[error("'{path}' is no Unix socket: name the one of the process that serves the guest's memory", path = .0.display())]
    NotASocket(PathBuf),
    /// Nobody listens.
    #[error(
        "cannot reach the process that serves the guest's memory at '{path}': {source}; start it first",
        path = path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is not there any more.
    #[error("the process that serves the guest's memory at '{path}' has ended, and the guest needs more of it", path = .0.display())]
    Gone(PathBuf),
    /// It has accepted, or not even that.
    #[error("the process at '{path}' does not serve the guest's memory: nothing came for {limit:?}", path = path.display())]
    Mute {
        /// The socket.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The host refuses something.
    #[error("cannot have the guest's memory served: {0}")]
    Refused(#[from] io::Error),
}

/// The process that serves a guest's memory.
#[derive(Debug)]
pub struct Handler {
    socket: PathBuf,
    connection: UnixStream,
    /// Readable when the process is gone. None for one of a PID namespace that this process does not see.
    process: Option<OwnedFd>,
    /// The copy that makes the kernel wait and not fill in zeros.
    uffd: Uffd,
    /// What ends this process when nobody else does.
    last_resort: OnceLock<LastResort>,
    hung_up: AtomicBool,
    /// The guest does not need it any more.
    released: AtomicBool,
}

/// Is told why the machine has stopped.
struct LastResort(Box<dyn Fn(Stop) + Send + Sync>);

impl fmt::Debug for LastResort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastResort")
    }
}

/// What was waited for and came first.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    /// The descriptor that was given is readable.
    Readable,
    /// There is nobody to serve memory any more.
    Gone,
    /// The time is over.
    TimedOut,
}

impl Handler {
    /// Hands `memory`, anonymous and not touched yet, to the process that listens at `socket`.
    ///
    /// # Errors
    /// There is none, or the host does not do it.
    pub fn connect(socket: &Path, memory: &GuestMemory) -> Result<Self, ServedError> {
        let unreachable = |source| ServedError::Unreachable {
            path: socket.to_owned(),
            source,
        };
        let connection = handshake::connect(socket, PATIENCE)?;
        let uffd = Uffd::new()?;
        for region in memory.iter() {
            let start = region.as_ptr() as usize;
            uffd.register(start..start + region.len() as usize)?;
        }
        let message = serde_json::to_vec(&handshake::mappings(memory)).map_err(io::Error::from)?;
        // A few hundred bytes: the socket takes them at once.
        connection
            .send_with_fd(message.as_slice(), uffd.as_fd().as_raw_fd())
            .map_err(|errno| unreachable(errno.into()))?;
        Ok(Self {
            socket: socket.to_owned(),
            process: handshake::peer(&connection),
            connection,
            uffd,
            last_resort: OnceLock::new(),
            hung_up: AtomicBool::new(false),
            released: AtomicBool::new(false),
        })
    }

    /// Does `work`, which touches the memory, and gives up when nobody serves that any more. What waits for it then does so until
    /// this process ends, and cannot be helped: to let go of it would be to let it read zeros.
    ///
    /// # Errors
    /// The handler is gone, or does nothing.
    pub fn serves<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServedError> {
        self.serves_within(PATIENCE, work)
    }

    fn serves_within<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ServedError> {
        // Its end is told by the closing of `theirs`.
        let (ours, theirs) = UnixStream::pair()?;
        let (done, result) = mpsc::channel();
        thread::Builder::new().name("restore".to_owned()).spawn(move || {
            // Nobody takes the result of work that was given up.
            let _ = done.send(work());
            drop(theirs);
        })?;
        match self.wait(ours.as_fd(), Some(limit))? {
            Waited::Readable => result
                .recv()
                .map_err(|_| io::Error::other("its thread has panicked").into()),
            Waited::Gone => Err(self.gone()),
            Waited::TimedOut => Err(ServedError::Mute {
                path: self.socket.clone(),
                limit,
            }),
        }
    }

    /// Has `end` end this process, of which it is told why, if nobody else does when the memory is lost: whoever should may wait
    /// for it himself.
    pub fn ends_by(&self, end: impl Fn(Stop) + Send + Sync + 'static) {
        // Who came first is as good.
        let _ = self.last_resort.set(LastResort(Box::new(end)));
    }

    /// Ends `vm` when there is nobody to serve its memory any more.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn watch(self: &Arc<Self>, vm: &RunningVm) -> Result<(), ServedError> {
        let (handler, lifecycle) = (self.clone(), vm.lifecycle().clone());
        let thread = thread::Builder::new().name("served".to_owned());
        thread.spawn(move || {
            // SAFETY: `lifecycle` keeps the descriptor open for as long as this closure runs.
            let stopped = unsafe { BorrowedFd::borrow_raw(lifecycle.stopped().as_raw_fd()) };
            match handler.watch_until(stopped) {
                Ok(Waited::Gone) => {
                    let lost = Stop::MemoryLost(handler.gone().to_string());
                    lifecycle.stop(lost.clone());
                    if let Some(LastResort(end)) = handler.last_resort.get() {
                        thread::sleep(GRACE);
                        end(lost);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    error!("nobody will know when the guest's memory is not served any more: {error}")
                }
            }
        })?;
        Ok(())
    }

    /// Waits until `stopped` is readable or the handler is gone, or not needed any more; tells when the guest waits in vain.
    fn watch_until(&self, stopped: BorrowedFd<'_>) -> io::Result<Waited> {
        let mut stall = Stall::default();
        loop {
            let waited = self.wait(stopped, Some(LOOK))?;
            if self.released.load(Ordering::Acquire) {
                return Ok(Waited::Readable);
            }
            match waited {
                Waited::TimedOut if stall.begins(Look::now(&self.uffd)?) => warn!(
                    "the process that serves the guest's memory at '{}' has served nothing for {LOOK:?}: the guest waits for it",
                    self.socket.display()
                ),
                Waited::TimedOut => {}
                ended => return Ok(ended),
            }
        }
    }

    /// The guest's memory is all its own: the handler is let go.
    pub fn release(&self) {
        self.released.store(true, Ordering::Release);
        // Fails if the other side has closed it already.
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
    }

    fn gone(&self) -> ServedError {
        ServedError::Gone(self.socket.clone())
    }

    /// Waits until `other` is readable or closed, or the handler is gone.
    ///
    /// It is there while it keeps its connection, whichever of its processes does; but some for Firecracker do not keep it, so it is
    /// also there while the process that listened is.
    fn wait(&self, other: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<Waited> {
        let connection = (self.connection.as_fd(), PollFlags::POLLHUP);
        if !self.hung_up.load(Ordering::Relaxed) {
            let waited = wait_for(other, connection, limit)?;
            if waited != Waited::Gone {
                return Ok(waited);
            }
        }
        let Some(process) = &self.process else {
            return Ok(Waited::Gone);
        };
        let process = (process.as_fd(), PollFlags::POLLIN);
        if !self.hung_up.swap(true, Ordering::Relaxed) && !self.released.load(Ordering::Acquire) {
            let waited = wait_for(other, process, Some(LAST_BREATH))?;
            if waited != Waited::TimedOut {
                return Ok(waited);
            }
            warn!(
                "the process that serves the guest's memory at '{}' has closed its connection: if it has ceased to serve, the guest \
                 stands still",
                self.socket.display()
            );
        }
        wait_for(other, process, limit)
    }
}

/// Waits for `other` to be readable or closed, or for the `lifeline`'s event.
fn wait_for(
    other: BorrowedFd<'_>,
    lifeline: (BorrowedFd<'_>, PollFlags),
    limit: Option<Duration>,
) -> io::Result<Waited> {
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
    });
    loop {
        let mut fds = [
            PollFd::new(other, PollFlags::POLLIN),
            PollFd::new(lifeline.0, lifeline.1),
        ];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(Waited::TimedOut),
            Ok(_) if fds[0].any().unwrap_or(true) => return Ok(Waited::Readable),
            Ok(_) => return Ok(Waited::Gone),
        }
    }
}

/// What can be seen of memory that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    /// Threads that wait for a page (`total` in the descriptor's fdinfo; Linux, fs/userfaultfd.c).
    waiting: u64,
    /// Pages that this process has (proc_pid_statm(5)): more and more while they are served.
    resident: u64,
}

impl Look {
    fn now(uffd: &Uffd) -> io::Result<Self> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", uffd.as_fd().as_raw_fd()))?;
        let waiting = info.lines().find_map(|line| line.strip_prefix("total:"));
        let pages = fs::read_to_string("/proc/self/statm")?;
        let resident = pages.split_whitespace().nth(1);
        let number = |word: Option<&str>| word.and_then(|word| word.trim().parse().ok());
        Ok(Self {
            waiting: number(waiting).unwrap_or(0),
            resident: number(resident).unwrap_or(0),
        })
    }
}

/// Whether somebody waits for pages and none come.
#[derive(Debug, Default)]
struct Stall {
    last: Option<Look>,
    lasts: bool,
}

impl Stall {
    /// Takes one more look, and says whether that is when it is noticed.
    fn begins(&mut self, look: Look) -> bool {
        let before = std::mem::replace(
            &mut self.lasts,
            look.waiting > 0
                && self
                    .last
                    .is_some_and(|last| last.waiting > 0 && last.resident == look.resident),
        );
        self.last = Some(look);
        self.lasts && !before
    }
}

/// Has all of `memory` served: what is missing afterwards has been dropped by the guest since.
///
/// # Errors
/// The kernel is older than Linux 5.14, or memory is short.
pub fn fetch_all(memory: &GuestMemory) -> io::Result<()> {
    image::populate(memory, &PageRanges::all(super::write::total(memory)))
}

#[cfg(test)]
mod tests;

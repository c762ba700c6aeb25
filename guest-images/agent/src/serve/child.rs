//! A command of a guest's: its process, and the streams or the terminal that it runs on.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, killpg, signal};
use nix::unistd::Pid;

use crate::request::{Command, Failed, Size};
use crate::terminal;

/// What a shell's exit status is for a command that is there and cannot be run, and for one that is not there (POSIX.1-2017, Shell
/// Command Language, §2.8.2).
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Added to a signal's number that has ended a command (ibid., as shells have it).
const SIGNALLED: i32 = 128;
/// What a command may have left in its pipes when it ends, or when nobody is there for it: the largest pipe's worth (pipe(7),
/// pipe-max-size). Others may have them still, and go on writing.
pub const MAX_LEFT: usize = 1 << 20;
/// The tiny guest has its programs in this one, without links to it.
const BUSYBOX: &str = "/bin/busybox";
/// For an agent that was started without any.
const DEFAULTS: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
];

/// A command that runs, in a process group of its own.
pub struct Child {
    process: process::Child,
    /// Readable when it has ended.
    pub ended: OwnedFd,
    /// Its standard input, as long as there is more for it.
    pub input: Option<File>,
    /// Its standard output, until it ends.
    pub output: Option<File>,
    /// Its standard error, likewise. On a terminal there is none apart.
    pub error: Option<File>,
    /// Whether it runs on a terminal.
    pub has_terminal: bool,
}

/// Has every signal do what it does by default: what the agent ignores, because who started it did, its commands would ignore, too.
fn heed_signals() -> io::Result<()> {
    for heeded in Signal::iterator() {
        // SAFETY: no handler is installed. What the kernel keeps for itself, SIGKILL and SIGSTOP, it refuses.
        let _ = unsafe { signal(heeded, SigHandler::SigDfl) };
    }
    Ok(())
}

impl Child {
    /// Starts the command.
    pub fn start(command: &Command) -> Result<Self, Failed> {
        let Some(program) = command.argv.first() else {
            return Err(failed(NOT_EXECUTABLE, "there is no command".to_owned()));
        };
        let cannot = |error: io::Error| {
            let status = match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            };
            failed(status, format!("cannot run '{program}': {error}"))
        };
        if let Some(cwd) = &command.cwd
            && let Err(error) = fs::read_dir(cwd)
        {
            return Err(failed(
                NOT_EXECUTABLE,
                format!("cannot run a command in '{cwd}': {error}"),
            ));
        }
        match Self::spawn(command, Path::new(program)) {
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && !program.contains('/')
                    && Path::new(BUSYBOX).exists() =>
            {
                Self::spawn(command, Path::new(BUSYBOX)).map_err(cannot)
            }
            spawned => spawned.map_err(cannot),
        }
    }

    fn spawn(command: &Command, program: &Path) -> io::Result<Self> {
        let mut process = process::Command::new(program);
        let (name, arguments) = command.argv.split_first().ok_or(ErrorKind::InvalidInput)?;
        process.arg0(name).args(arguments);
        let lacking = DEFAULTS
            .iter()
            .filter(|(name, _)| std::env::var_os(name).is_none());
        process.envs(lacking.copied());
        process.envs(command.env.iter().map(|(name, value)| (name, value)));
        if let Some(cwd) = &command.cwd {
            process.current_dir(cwd);
        }
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe { process.pre_exec(heed_signals) };
        match command.tty {
            Some(size) => Self::on_terminal(process, size),
            None => Self::on_pipes(process),
        }
    }

    fn on_pipes(mut command: process::Command) -> io::Result<Self> {
        command.process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn()?;
        let ended = open_pidfd(&process)?;
        let input = process
            .stdin
            .take()
            .map(OwnedFd::from)
            .map(unhurried)
            .transpose()?;
        let output = process
            .stdout
            .take()
            .map(OwnedFd::from)
            .map(unhurried)
            .transpose()?;
        let error = process
            .stderr
            .take()
            .map(OwnedFd::from)
            .map(unhurried)
            .transpose()?;
        Ok(Self {
            process,
            ended,
            input,
            output,
            error,
            has_terminal: false,
        })
    }

    fn on_terminal(mut command: process::Command, size: Size) -> io::Result<Self> {
        let (master, slave) = terminal::open()?;
        let master = unhurried(master)?;
        terminal::resize(&master, size)?;
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        terminal::control(&mut command);
        let process = command.spawn()?;
        Ok(Self {
            ended: open_pidfd(&process)?,
            process,
            input: Some(master.try_clone()?),
            output: Some(master),
            error: None,
            has_terminal: true,
        })
    }

    /// The terminal has another size.
    pub fn resize(&self, size: Size) {
        if let (true, Some(master)) = (self.has_terminal, &self.output) {
            // A terminal that is being hung up needs no size.
            let _ = terminal::resize(master, size);
        }
    }

    /// Sends its process group a signal. It must not have been waited for.
    pub fn signal(&self, signal: Signal) {
        // Fails when all of the group has ended.
        let _ = killpg(Pid::from_raw(self.process.id().cast_signed()), signal);
    }

    /// Its exit status as a shell tells it, once it has ended.
    pub fn status(&mut self) -> io::Result<Option<u8>> {
        let status = self.process.try_wait()?;
        Ok(status.map(|status| shell_status(status).try_into().unwrap_or(u8::MAX)))
    }

    /// Nobody is there for it any more: takes its input away, and its terminal, and tells it. It must not have been waited for.
    pub fn hang_up(&mut self) {
        self.input = None;
        self.signal(Signal::SIGHUP);
        // One that is stopped would not hear it.
        self.signal(Signal::SIGCONT);
        // A terminal is hung up by closing it: who writes to one is told, and not ended.
        if self.has_terminal {
            self.output = None;
        }
    }

    /// Leaves it to put things in order, on a thread of its own: it may take its time, or never end.
    pub fn leave(self) {
        // Where there is no room for a thread, its output is closed at once, and its end is not waited for.
        let _ = thread::Builder::new().spawn(move || self.see_out());
    }

    /// Waits for its end. What it still prints is read and dropped, because a write to a closed pipe would end it before it has put
    /// things in order; one that prints more than [`MAX_LEFT`] bytes does something else.
    fn see_out(mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut left = MAX_LEFT;
        while self.waits_for_end()? {
            for stream in [&mut self.output, &mut self.error] {
                match stream.as_mut().map(|file| file.read(&mut buffer)) {
                    Some(Ok(count @ 1..)) if count < left => left -= count,
                    Some(Ok(_)) => *stream = None,
                    Some(Err(_)) | None => {}
                }
            }
        }
        self.process.wait().map(drop)
    }

    /// Waits until it has ended, which is then false, or there is something to be read.
    fn waits_for_end(&self) -> io::Result<bool> {
        let streams = [&self.output, &self.error].into_iter().flatten();
        let mut files = vec![PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        files.extend(streams.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
        match poll(&mut files, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(files[0].any() != Some(true)),
            Err(error) => Err(error.into()),
        }
    }
}

fn shell_status(status: ExitStatus) -> i32 {
    let signalled = || status.signal().map(|signal| SIGNALLED + signal);
    status.code().or_else(signalled).unwrap_or(i32::MAX)
}

fn failed(status: u8, message: String) -> Failed {
    Failed { status, message }
}

/// A file that nobody waits at.
fn unhurried(fd: OwnedFd) -> io::Result<File> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd.into())
}

fn open_pidfd(process: &process::Child) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

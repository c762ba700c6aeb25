//! A posada process that runs: what it prints is collected, what it shall read is sent, and every wait is for
//! an event and has a deadline.
//!
//! There is no thread here. Whoever waits moves all input and output on meanwhile; a process that nobody waits
//! for fills its pipes and stops, as one does under a pager.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmm_sys_util::tempdir::TempDir;

use crate::cores::Cores;
use crate::ended::{Ended, transcript};
use crate::terminal::Terminal;

/// How long any one wait may take: several times what the slowest guest needs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(900);

/// A posada process. Dropping it kills the process.
pub struct Running {
    what: String,
    child: Child,
    /// Readable when the process has ended.
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    stdin: Option<File>,
    unsent: Vec<u8>,
    ends_when_sent: bool,
    stdout: Output,
    stderr: Output,
    /// How much of the standard output [`wait_for`](Self::wait_for) has gone past.
    seen: usize,
    terminal: Option<Terminal>,
    cores: Option<Cores>,
    _files: Option<Arc<TempDir>>,
}

/// One stream that the process prints to.
struct Output {
    from: Option<File>,
    text: Vec<u8>,
}

impl Running {
    /// Starts a command that [`crate::Guest::command`] made, whether or not there is KVM.
    pub fn of(command: Command) -> Self {
        Self::on_pipes(command, None)
    }

    /// Starts `command`, whose output goes to pipes; its input comes from one too unless the command says else.
    pub(crate) fn on_pipes(command: Command, files: Option<Arc<TempDir>>) -> Self {
        Self::start(command, None, files)
    }

    pub(crate) fn on_terminal(command: Command, terminal: Terminal, files: Option<Arc<TempDir>>) -> Self {
        Self::start(command, Some(terminal), files)
    }

    fn start(mut command: Command, mut terminal: Option<Terminal>, files: Option<Arc<TempDir>>) -> Self {
        let mut child = command.spawn().expect("posada starts");
        let pidfd = open_pidfd(&child);
        let what = format!("{command:?}");
        // It holds copies of the streams that the process has.
        drop(command);
        if let Some(terminal) = &mut terminal {
            terminal.hand_over();
        }
        let (stdin, stdout, stderr) = match &terminal {
            Some(terminal) => (Some(terminal.person()), Some(terminal.person()), None),
            None => (
                child.stdin.take().map(|pipe| File::from(OwnedFd::from(pipe))),
                child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe))),
                child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            ),
        };
        for end in [&stdin, &stdout, &stderr].into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe can be made non-blocking");
        }
        Self {
            what,
            child,
            pidfd,
            status: None,
            stdin,
            unsent: Vec::new(),
            ends_when_sent: false,
            stdout: Output {
                from: stdout,
                text: Vec::new(),
            },
            stderr: Output {
                from: stderr,
                text: Vec::new(),
            },
            seen: 0,
            terminal,
            cores: None,
            _files: files,
        }
    }

    /// Has what of the host's CPUs the process needs go with it.
    pub(crate) fn keep(&mut self, cores: Option<Cores>) {
        self.cores = cores;
    }

    /// Has `input` sent to the process as fast as it reads, while somebody waits for something.
    pub fn send(&mut self, input: impl AsRef<[u8]>) {
        self.unsent.extend_from_slice(input.as_ref());
    }

    /// Ends the process's standard input once all that was [sent](Self::send) has gone out.
    pub fn end_input(&mut self) {
        self.ends_when_sent = true;
        self.move_input();
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child can be sent a signal");
    }

    /// Its process id, which stays its own until [`wait`](Self::wait).
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// What it has printed on standard output so far, as far as waits have read it.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.stdout.text).into_owned()
    }

    /// What it has printed on standard error so far, as far as waits have read it.
    pub fn messages(&self) -> String {
        String::from_utf8_lossy(&self.stderr.text).into_owned()
    }

    /// The bytes of its memory, the guest's included, that the host holds now.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = fs::read_to_string(path).expect("a child is in /proc");
        let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = rss.and_then(|rss| rss.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("its resident memory, in KiB") << 10
    }

    /// The CPU time that it has used, the guest's included.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a child is in /proc");
        // utime and stime, in hundredths of a second on x86: proc_pid_stat(5), fields 14 and 15. The name before them
        // may have spaces; it ends with the last parenthesis.
        let (_, numbers) = stat.rsplit_once(')').expect("the second field is in parentheses");
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        let ticks: u64 = numbers[11..13]
            .iter()
            .map(|number| number.parse::<u64>().expect("a number"))
            .sum();
        Duration::from_millis(10 * ticks)
    }

    /// Closes the reading end of its standard output, as `head` does when it has seen enough.
    pub fn close_stdout(&mut self) {
        self.stdout.from = None;
    }

    /// The terminal that it runs on.
    ///
    /// # Panics
    /// If it does not run on one.
    pub fn terminal(&self) -> &Terminal {
        self.terminal.as_ref().expect("it was started on a terminal")
    }

    /// Closes the person's side of the terminal.
    pub fn hang_up(&mut self) {
        self.stdin = None;
        self.stdout.from = None;
        self.terminal = None;
    }

    /// Waits until the guest's console shows `text`, after what earlier calls have waited for. Returns what
    /// was shown since then, `text` included.
    ///
    /// # Panics
    /// If the process ends without it, or the deadline passes; shows the whole console then.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let new = &self.stdout.text[self.seen..];
            if let Some(at) = find(new, text.as_bytes()) {
                let found = &new[..at + text.len()];
                self.seen += found.len();
                return String::from_utf8_lossy(found).into_owned();
            }
            assert!(
                self.status.is_none(),
                "posada ended before '{}' came",
                text.escape_debug()
            );
            assert!(
                Instant::now() < deadline,
                "'{}' did not come in time",
                text.escape_debug()
            );
            self.step(deadline);
        }
    }

    /// Waits until posada has said `text` on standard error.
    #[track_caller]
    pub fn wait_for_message(&mut self, text: &str) {
        self.wait_until(&format!("'{text}' among its messages"), |running| {
            find(&running.stderr.text, text.as_bytes()).is_some()
        });
    }

    /// Waits until `condition` holds, which is asked whenever anything has happened and 50 times a second.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        const POLL_INTERVAL: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(self.status.is_none(), "posada ended and still {what} was not so");
            assert!(Instant::now() < deadline, "{what} was not so in time");
            self.step(Instant::now() + POLL_INTERVAL);
        }
    }

    /// Waits for the process's end.
    ///
    /// # Panics
    /// If the deadline passes; shows the whole console then.
    #[track_caller]
    pub fn wait(self) -> Ended {
        self.wait_within(DEADLINE)
    }

    /// Waits for the process's end, at most this long.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.status {
                break status;
            }
            assert!(Instant::now() < deadline, "posada did not end within {limit:?}");
            self.step(deadline);
        };
        Ended {
            what: self.what.clone(),
            status,
            terminal: self.terminal.as_ref().map(Terminal::settings),
            stdout: std::mem::take(&mut self.stdout.text),
            stderr: std::mem::take(&mut self.stderr.text),
        }
    }

    /// Waits until something can be moved or the process has ended or `until` has come, and moves it.
    fn step(&mut self, until: Instant) {
        let ended = self.poll(until);
        self.move_input();
        self.stdout.read();
        self.stderr.read();
        if ended {
            self.status = Some(self.child.wait().expect("a child can be waited for"));
            self.read_the_rest();
        }
    }

    /// Reads what an ended process has left; its end closed the streams, so each of them has an end too.
    fn read_the_rest(&mut self) {
        self.unsent.clear();
        let deadline = Instant::now() + DEADLINE;
        while self.stdout.from.is_some() || self.stderr.from.is_some() {
            assert!(Instant::now() < deadline, "posada ended, but its output did not");
            self.stdout.wait(deadline);
            self.stderr.wait(deadline);
        }
    }

    fn poll(&self, until: Instant) -> bool {
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        for from in [&self.stdout, &self.stderr]
            .into_iter()
            .filter_map(|output| output.from.as_ref())
        {
            fds.push(PollFd::new(from.as_fd(), PollFlags::POLLIN));
        }
        if let (Some(stdin), false) = (&self.stdin, self.unsent.is_empty()) {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        wait_for_events(&mut fds, until);
        fds[0].any().unwrap_or(false)
    }

    fn move_input(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            match stdin.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Nobody reads it any more.
                Err(_) => self.stdin = None,
            }
        }
        if self.ends_when_sent && self.unsent.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        }
    }
}

impl Output {
    fn wait(&mut self, until: Instant) {
        if let Some(from) = &self.from {
            wait_for_events(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], until);
            self.read();
        }
    }

    /// Takes what is there; forgets a stream that has ended.
    fn read(&mut self) {
        let Some(from) = &mut self.from else { return };
        match from.read_to_end(&mut self.text) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The end; of a terminal that nobody is on any more, EIO.
            Ok(_) | Err(_) => self.from = None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", transcript(&self.what, &self.stdout.text, &self.stderr.text));
        }
        if self.status.is_none() {
            // Neither fails for a child that has not been waited for.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn wait_for_events(fds: &mut [PollFd<'_>], until: Instant) {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => panic!("poll: {error}"),
    }
}

/// Waits until `condition` holds of something that tells nobody when it changes.
///
/// # Panics
/// If the deadline passes.
#[track_caller]
pub fn until(what: &str, condition: impl Fn() -> bool) {
    const POLL_INTERVAL: Duration = Duration::from_millis(10);
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(POLL_INTERVAL);
    }
}

fn open_pidfd(child: &Child) -> OwnedFd {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

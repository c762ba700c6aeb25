//! A pseudo-terminal to run posada on: what a person would type on and look at.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::setsid;

/// A pseudo-terminal, seen from the person's side.
pub struct Terminal {
    master: File,
    /// The side that programs run on, until one does.
    slave: Option<File>,
}

/// What can be set on a terminal, comparable.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings(String);

impl Terminal {
    pub(crate) fn open() -> Self {
        // Not openpty: what it opens is inherited, and a terminal hangs up only when nobody has its master any more.
        let master =
            posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).expect("a pseudo-terminal");
        grantpt(&master).expect("a pseudo-terminal of one's own");
        unlockpt(&master).expect("a pseudo-terminal of one's own");
        let path = ptsname_r(&master).expect("a pseudo-terminal has a name");
        let slave = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(path)
            .expect("a pseudo-terminal can be opened");
        Self {
            master: OwnedFd::from(master).into(),
            slave: Some(slave),
        }
    }

    /// The side that a program runs on.
    pub(crate) fn stdio(&self) -> Stdio {
        let slave = self.slave.as_ref().expect("nothing runs on this terminal yet");
        slave.try_clone().expect("a file descriptor").into()
    }

    /// Gives up this process's hold of the program's side: with the program's end the terminal's output ends.
    pub(crate) fn hand_over(&mut self) {
        self.slave = None;
    }

    /// The side of the person at it.
    pub(crate) fn person(&self) -> File {
        self.master.try_clone().expect("a file descriptor")
    }

    /// Makes this the controlling terminal of what `command` starts: its standard input must be this terminal.
    pub(crate) fn control(&self, command: &mut Command) {
        // SAFETY: between fork and exec only two system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                match libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
    }

    /// Sets it as a shell has it while a program of its own runs: by lines, with echo and with keys for signals.
    pub fn cook(&self) {
        let mut settings = tcgetattr(&self.master).expect("a terminal has settings");
        settings
            .local_flags
            .insert(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(&self.master, SetArg::TCSANOW, &settings).expect("a terminal can be set");
    }

    /// Makes it this large, in characters. It begins without a size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the call only reads `size`.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(set, 0, "a terminal can be resized");
    }

    /// How the terminal is set now.
    pub fn settings(&self) -> Settings {
        let Termios {
            input_flags,
            output_flags,
            control_flags,
            local_flags,
            control_chars,
            ..
        } = tcgetattr(&self.master).expect("a terminal has settings");
        Settings(format!(
            "{input_flags:?} {output_flags:?} {control_flags:?} {local_flags:?} {control_chars:?}"
        ))
    }
}

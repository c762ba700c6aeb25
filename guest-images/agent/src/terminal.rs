//! Pseudo-terminals for commands: made, given to one, and sized.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::setsid;

use crate::request::Size;

/// A new pseudo-terminal: the side of who types and looks, and the side that a command runs on.
///
/// # Errors
/// There are as many as there can be.
pub fn open() -> io::Result<(OwnedFd, File)> {
    // Not openpty: what it opens is inherited, and a terminal hangs up only when nobody has its master any more.
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let mut options = File::options();
    let options = options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let slave = options.open(ptsname_r(&master)?)?;
    Ok((master.into(), slave))
}

/// Has what `command` starts lead a session whose terminal its standard input is.
pub fn control(command: &mut Command) {
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

/// Tells a terminal, and who runs on it, how large it is.
///
/// # Errors
/// It is none.
pub fn resize(terminal: impl AsFd, size: Size) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call reads a winsize, which lives across it.
    match unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

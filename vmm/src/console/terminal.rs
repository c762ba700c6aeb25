//! The user's terminal in raw mode, and back again on every way out.
//!
//! Besides the guard's drop these are a panic (a hook) and the signals by which a process dies of its own
//! fault (handlers). Those that others send are read from a signalfd and end in the guard's drop. A shell's job control
//! may take the terminal away and give it back meanwhile.

use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// What the terminal was before, for code that may not take a lock or allocate.
static BEFORE: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

const FATAL: [Signal; 7] = [
    Signal::SIGXFSZ,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGSYS,
];

/// What becomes of what is printed on a raw terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Printed {
    /// A plain newline starts a line.
    Processed,
    /// It is printed as it is: another terminal has processed it.
    AsItIs,
}

/// The terminal is raw while this exists.
pub struct RawTerminal(Printed);

impl RawTerminal {
    /// Makes the terminal on standard input raw: each key goes through at once, unseen and unchanged. `None` where standard input is
    /// no terminal.
    ///
    /// # Errors
    /// The terminal cannot be set.
    pub fn enter(printed: Printed) -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = attributes(stdin.as_raw_fd())?;
        let before = BEFORE.get_or_init(|| before);
        restore_on_death();
        make_raw(before, printed)?;
        RAW.store(true, Ordering::SeqCst);
        Ok(Some(Self(printed)))
    }

    /// Makes the terminal raw again after posada was stopped: the shell has had it in its own mode meanwhile. One that
    /// goes on in the background leaves it alone.
    ///
    /// # Errors
    /// The terminal cannot be set.
    pub fn resume(&self) -> io::Result<()> {
        match BEFORE.get() {
            Some(before) if !in_background() => make_raw(before, self.0),
            _ => Ok(()),
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn make_raw(before: &libc::termios, printed: Printed) -> io::Result<()> {
    let mut raw = *before;
    // SAFETY: the pointer is to a termios of ours.
    unsafe { libc::cfmakeraw(&mut raw) };
    if printed == Printed::Processed {
        raw.c_oflag = before.c_oflag;
    }
    set_attributes(libc::STDIN_FILENO, &raw)
}

/// Whether the terminal is another job's. Setting it would then stop this process (POSIX.1-2017 §11.1.4), and
/// disturb the one that has it.
fn in_background() -> bool {
    // SAFETY: both take and return numbers, and are async-signal-safe.
    let (foreground, ours) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    // A terminal that is not this session's has no foreground job for it.
    foreground > 0 && foreground != ours
}

/// Gives the terminal back as it was. Safe to call from a signal handler, and more than once.
fn restore() {
    if !RAW.swap(false, Ordering::SeqCst) || in_background() {
        return;
    }
    if let Some(before) = BEFORE.get() {
        // A terminal that has gone needs no restoring.
        let _ = set_attributes(libc::STDIN_FILENO, before);
    }
}

extern "C" fn on_death(signal: libc::c_int) {
    restore();
    // A fault would come again by itself, but not a signal that somebody sent. By now it has its default action, and it
    // is blocked until this handler returns: then it kills.
    // SAFETY: raise takes a number and is async-signal-safe.
    unsafe { libc::raise(signal) };
}

fn restore_on_death() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        restore();
        report(info);
    }));
    // SA_RESETHAND: the second time the signal kills as it would have. SA_ONSTACK: the fault may be that the stack is full.
    let action = SigAction::new(
        SigHandler::Handler(on_death),
        SaFlags::SA_RESETHAND | SaFlags::SA_ONSTACK,
        SigSet::empty(),
    );
    for signal in FATAL {
        // SAFETY: the handler calls only tcgetpgrp, getpgrp, tcsetattr and raise, which are async-signal-safe, and touches only atomics.
        if let Err(error) = unsafe { sigaction(signal, &action) } {
            tracing::debug!("no handler for {signal}: {error}");
        }
    }
}

/// The size of the terminal on standard output or, if that is none, on standard input: lines, and letters in a line.
pub fn size() -> Option<(u16, u16)> {
    [libc::STDOUT_FILENO, libc::STDIN_FILENO]
        .into_iter()
        .find_map(|fd| {
            // SAFETY: winsize is a plain C struct for which all zeroes is a value.
            let mut size: libc::winsize = unsafe { std::mem::zeroed() };
            // SAFETY: the pointer is to a live winsize of ours, which the call fills.
            let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
            // A terminal that knows no size of its own says zero.
            (done == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
        })
}

fn attributes(fd: i32) -> io::Result<libc::termios> {
    // SAFETY: termios is a plain C struct for which all zeroes is a value.
    let mut termios = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live termios of ours, which the call fills.
    match unsafe { libc::tcgetattr(fd, &mut termios) } {
        0 => Ok(termios),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_attributes(fd: i32, termios: &libc::termios) -> io::Result<()> {
    // SAFETY: the pointer is to a termios that lives across the call.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, termios) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

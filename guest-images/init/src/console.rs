//! Opens the console as a real terminal device, with flow control.

use core::ffi::CStr;

use guest_init::parse;

use crate::syscall::{self, Access, CRTSCTS, Fd};
use crate::{STDIN, complain};

/// The terminal device behind `/dev/console`, which itself cannot be a controlling terminal. If it cannot be opened, the console
/// itself has to do.
///
/// Init keeps writing to the console: its descriptors survive the hang-up of the terminal when the console program's session ends.
pub fn open() -> Fd {
    let mut buffer = [0; 64];
    let active = syscall::read_file(c"/sys/class/tty/console/active", &mut buffer).unwrap_or_default();
    let Some(name) = parse::console(active) else {
        return STDIN;
    };
    let mut path = *b"/dev/\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (to, from) in path.iter_mut().skip(5).take(19).zip(name) {
        *to = *from;
    }
    let Ok(path) = CStr::from_bytes_until_nul(&path) else {
        return STDIN;
    };
    match syscall::open(path, Access::Terminal) {
        Ok(fd) => {
            if name.starts_with(b"ttyS") {
                set_flow_control(fd, name);
            }
            fd
        }
        Err(error) => {
            complain(b"open the console", name, error);
            STDIN
        }
    }
}

/// With CRTSCTS the serial driver drops RTS while the terminal's buffer is full; posada then holds input back and no byte is lost.
fn set_flow_control(fd: Fd, name: &[u8]) {
    let outcome = syscall::terminal(fd).and_then(|mut terminal| {
        terminal.control |= CRTSCTS;
        syscall::set_terminal(fd, &terminal)
    });
    if let Err(error) = outcome {
        complain(b"set flow control on", name, error);
    }
}

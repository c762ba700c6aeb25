//! Opens the console as a real terminal device, with flow control.

use core::ffi::CStr;

use guest_init::parse;

use crate::syscall::{self, Access, CRTSCTS, Fd};
use crate::{STDERR, STDIN, STDOUT, complain};

/// Replaces `/dev/console`, which the kernel opened for us and which cannot be a controlling terminal, by the device behind it.
pub fn open() {
    let mut buffer = [0; 64];
    let active = syscall::read_file(c"/sys/class/tty/console/active", &mut buffer).unwrap_or_default();
    let name = parse::console(active).unwrap_or(b"console");
    let mut path = *b"/dev/\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (to, from) in path.iter_mut().skip(5).take(19).zip(name) {
        *to = *from;
    }
    let opened = CStr::from_bytes_until_nul(&path).map(|path| syscall::open(path, Access::Terminal));
    let fd = match opened {
        Ok(Ok(fd)) => fd,
        Ok(Err(error)) => return complain(b"open the console", name, error),
        Err(_) => return,
    };
    if name.starts_with(b"ttyS") {
        set_flow_control(fd, name);
    }
    for standard in [STDIN, STDOUT, STDERR] {
        if let Err(error) = syscall::duplicate(fd, standard) {
            complain(b"use the console", name, error);
        }
    }
    if fd.0 > STDERR.0 {
        syscall::close(fd);
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

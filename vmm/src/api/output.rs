//! Files that a user names for what posada prints, counts and logs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens such a file, to add to it, or makes it. A named pipe need not have a reader, which may come later; writing to one that is full
/// fails at once ([`io::ErrorKind::WouldBlock`]), and nothing waits for who does not read.
///
/// # Errors
/// It cannot be written.
pub fn open_output(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        // Only so does a pipe open that nobody reads (fifo(7)).
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

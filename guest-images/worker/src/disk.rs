//! Files on the guest's disk, which are written piece by piece.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::ptr;
use std::sync::atomic::Ordering;

use guest_worker::{FILE_PIECES, Piece, Place, file_of};

use crate::Work;

const DISK: &CStr = c"/dev/vda";
const DIRECTORY: &CStr = c"/disk";

/// Mounts the disk.
pub fn mount() -> io::Result<()> {
    fs::create_dir(path()?)?;
    // SAFETY: mount reads three strings that end in NUL; there is no data.
    let done = unsafe {
        libc::mount(
            DISK.as_ptr(),
            DIRECTORY.as_ptr(),
            c"ext4".as_ptr(),
            0,
            ptr::null(),
        )
    };
    succeeded(done)
}

/// Unmounts the disk, after which everything is on it.
pub fn unmount() -> io::Result<()> {
    // SAFETY: umount reads a string that ends in NUL.
    succeeded(unsafe { libc::umount(DIRECTORY.as_ptr()) })
}

/// Writes pieces, each brought to the disk before the next, until it is enough. Returns how many there are.
pub fn write(work: &Work) -> io::Result<u64> {
    let directory = path()?;
    let mut file = None;
    let mut number = 0;
    while !work.is_enough() {
        let into = match &mut file {
            Some(file) if number % FILE_PIECES != 0 => file,
            file => file.insert(File::create_new(directory.join(file_of(number)))?),
        };
        into.write_all(&Piece { number, word: 0 }.at(Place::Disk))?;
        into.sync_all()?;
        number += 1;
        work.synced.store(number, Ordering::Relaxed);
    }
    Ok(number)
}

fn path() -> io::Result<&'static Path> {
    DIRECTORY.to_str().map(Path::new).map_err(io::Error::other)
}

fn succeeded(done: libc::c_int) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

//! Files that come, and files that go.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::archive::{CopyError, cannot, pack};
use crate::data::{self, Reader};
use crate::frame::{Frame, Incoming};
use crate::landing::Landing;

/// Sends what is at `path`.
pub fn get(stream: &File, path: &Path, plain: bool) -> Result<(), CopyError> {
    let mut to = data::writer(stream, |bytes| Frame::Output(bytes));
    if plain {
        let mut file = open(path)?;
        io::copy(&mut file, &mut to).map_err(cannot("read", path))?;
        return Ok(to.flush()?);
    }
    let left_out = pack(path, to)?;
    if left_out.is_any() {
        Frame::Error(left_out.to_string().as_bytes()).send(&mut { stream })?;
    }
    Ok(())
}

/// Opens what has bytes and an end of them. A directory's first read tells that it has none.
fn open(path: &Path) -> Result<File, CopyError> {
    let found = fs::metadata(path).map_err(cannot("read", path))?.file_type();
    if !found.is_file() && !found.is_block_device() && !found.is_dir() {
        let what =
            "a socket, a pipe or a device that may have no end: read it by a command, with posada exec";
        let path = path.to_owned();
        return Err(CopyError::Place { path, what });
    }
    // It may have become a pipe meanwhile, which would be waited for, or a terminal, which would become the agent's.
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(cannot("read", path))
}

/// Takes what comes, and puts it at `path`.
pub fn put(
    stream: &File,
    incoming: &mut Incoming,
    path: &Path,
    name: Option<&OsStr>,
    plain: bool,
) -> Result<(), CopyError> {
    let landing = Landing::prepare(path, name)?;
    let mut from = Reader::new(stream, incoming, data::for_agent);
    if plain {
        landing.fill(&mut from)?;
    } else {
        landing.unpack(&mut from)?;
    }
    // Not before all has come: until then the other side may be gone.
    from.finish()?;
    landing.finish()
}

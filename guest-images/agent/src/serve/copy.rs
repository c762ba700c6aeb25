//! Files that come, and files that go.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::archive::{CopyError, cannot, pack};
use crate::data::{self, Reader};
use crate::frame::{Frame, Incoming};
use crate::landing::Landing;

/// Sends what is at `path`.
pub fn get(stream: &File, path: &Path, plain: bool) -> Result<(), CopyError> {
    let mut to = data::writer(stream, |bytes| Frame::Output(bytes));
    if plain {
        let mut file = File::open(path).map_err(cannot("read", path))?;
        // What is no file is told by its first read. Who reads from a terminal or a pipe waits, as with cat(1).
        io::copy(&mut file, &mut to).map_err(cannot("read", path))?;
        return Ok(to.flush()?);
    }
    let left_out = pack(path, to)?;
    if left_out.is_any() {
        Frame::Error(left_out.to_string().as_bytes()).send(&mut { stream })?;
    }
    Ok(())
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

//! The pages that a guest uses right after it was restored: recorded once, in the file `working-set` beside the snapshot's memory, and
//! read at once by whoever restores it later.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use tracing::{debug, info};

use super::format::{self, FormatError};
use super::image;
use super::pages;
use super::ranges::PageRanges;
use crate::memory::GuestMemory;

const FILE: &str = "working-set";
/// How long a guest runs until what it has used by then is its working set. Longer than it takes to be useful, and less than it
/// takes to use all that it ever will.
const RECORDED_AFTER: Duration = Duration::from_secs(1);

/// Reads the working set of the snapshot in `directory` into memory; where none has been recorded, it will be, from this guest.
/// It is a help, and what goes wrong with it is only told to the log.
pub fn prefault_or_record(memory: &GuestMemory, directory: &Path) {
    match read(directory) {
        Ok(Some(pages)) => match image::prefault(memory, &pages) {
            Ok(()) => info!("read {} pages of the guest's memory, as recorded", pages.pages()),
            Err(error) => info!("the working set cannot be read: {error}"),
        },
        Ok(None) => record(memory.clone(), directory),
        Err(error) => info!("the working set cannot be used: {error}"),
    }
}

fn read(directory: &Path) -> Result<Option<PageRanges>, FormatError> {
    match format::read(&directory.join(FILE)) {
        Err(FormatError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn record(memory: GuestMemory, directory: &Path) {
    let directory = directory.to_owned();
    let thread = thread::Builder::new().name("working-set".to_owned());
    let spawned = thread.spawn(move || {
        thread::sleep(RECORDED_AFTER);
        match pages::present(&memory).and_then(|pages| write(&directory, &pages).map(|()| pages)) {
            Ok(pages) => info!("recorded a working set of {} pages", pages.pages()),
            Err(error) => info!("the working set cannot be recorded: {error}"),
        }
    });
    if let Err(error) = spawned {
        debug!("no thread to record the working set: {error}");
    }
}

/// One that is there is whole; of two guests that record at the same time, one's stays.
fn write(directory: &Path, pages: &PageRanges) -> io::Result<()> {
    let partial = directory.join(format!(".{FILE}.partial-{}", std::process::id()));
    let written = format::write(&partial, pages).and_then(|()| fs::rename(&partial, directory.join(FILE)));
    written.inspect_err(|_| drop(fs::remove_file(&partial)))
}

//! Taking a snapshot: the guest rests while its state is read and its memory is frozen, and goes on while that is written.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::debug_span;

use super::directory::Partial;
use super::frozen::Frozen;
use super::history::History;
use super::manifest::{DiffRecord, DiskRecord, MEMORY, Manifest, MemoryRecord, STATE, now};
use super::memory_file::Checksums;
use super::ranges::PageRanges;
use super::{SnapshotError, disk_copies, format, memory_file};
use crate::config::{ByteSize, DiskConfig, VmConfig};
use crate::events::What;
use crate::lifecycle::Stop;
use crate::state::VmState;
use crate::vcpu::features::CpuFeatures;
use crate::vm::RunningVm;

/// How a snapshot is to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotOptions {
    /// Where it is to be: an absolute path at which there is nothing yet.
    pub directory: PathBuf,
    /// Only what has changed since the last one.
    pub diff: bool,
    /// The guest ends with it.
    pub stop: bool,
    /// With copies of what the guest's disks hold.
    #[serde(default)]
    pub disks: bool,
}

impl SnapshotOptions {
    /// All of a guest that goes on, without its disks.
    pub fn to(directory: PathBuf) -> Self {
        Self {
            directory,
            diff: false,
            stop: false,
            disks: false,
        }
    }
}

/// What a snapshot took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Taken {
    /// Bytes of memory that were written: pages that are zero are not.
    pub written: ByteSize,
    /// How long the guest rested, in microseconds.
    pub paused_us: u64,
    /// How much of that the state of CPUs and devices took.
    pub state_us: u64,
    /// From the request until everything was on the disk.
    pub took_us: u64,
}

/// What of a guest's memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    /// What a snapshot lacks that names the one before.
    Diff,
    /// What has changed since the one before, wherever that is, for who puts the two together.
    Changes,
}

/// What is kept of a guest at rest.
struct Frost {
    vm: VmState,
    disks: Vec<DiskRecord>,
    diff: Option<DiffRecord>,
    pages: PageRanges,
    /// The state goes with this memory, and not with what is made of it.
    is_whole: bool,
    memory: Frozen,
    state_took: Duration,
}

/// Takes a snapshot of `vm`. When it returns, the snapshot is on the disk as a whole; after an error there is none.
///
/// # Errors
/// The guest does not come to rest, or the disk does not take it. The guest goes on.
pub fn take(vm: &RunningVm, options: &SnapshotOptions) -> Result<Taken, SnapshotError> {
    let part = if options.diff { Part::Diff } else { Part::All };
    take_part(vm, options, part).map(|(taken, _)| taken)
}

/// Takes what has changed since the last snapshot, wherever that is; returns the pages. What is in `directory` is nothing by itself: its
/// state is that of the memory that the changes make of what they follow.
///
/// # Errors
/// As for [`take`].
pub fn take_changes(vm: &RunningVm, directory: PathBuf) -> Result<PageRanges, SnapshotError> {
    take_part(vm, &SnapshotOptions::to(directory), Part::Changes).map(|(_, pages)| pages)
}

fn take_part(
    vm: &RunningVm,
    options: &SnapshotOptions,
    part: Part,
) -> Result<(Taken, PageRanges), SnapshotError> {
    let _span = debug_span!("snapshot").entered();
    let begun = Instant::now();
    let partial = Partial::begin(&options.directory)?;
    let config = absolute(&vm.config())?;
    let file = memory_file::create(&partial.file(MEMORY), config.memory().0).map_err(failed("memory"))?;
    let mut history = vm.history();
    if part != Part::Diff {
        history.fetch(vm)?;
    }
    history.record(vm)?;
    let holes = history.holes();
    // Most of what has to reach the disk does so while the guest still runs.
    vm.settle_disks().map_err(failed("disks"))?;
    if options.disks {
        // A file that shares its data has it on the disk.
        flush_disks(&config)?;
    }

    let paused = Instant::now();
    vm.pause()?;
    let frost = freeze(
        vm,
        &mut history,
        (options, part),
        &config,
        (&file, &holes),
        &partial,
    );
    let rests = options.stop && frost.is_ok();
    if !rests {
        vm.resume();
    }
    let paused = paused.elapsed();
    let mut frost = frost?;

    let pages = mem::take(&mut frost.pages);
    let state_took = frost.state_took;
    let done = store(frost, vm, config, &file, partial);
    if rests {
        match done {
            Ok(_) => vm.stop(Stop::Ended),
            // A guest whose snapshot has failed is all that there is of it.
            Err(_) => vm.resume(),
        }
    }
    let (written, id) = done?;
    history.taken(options.directory.clone(), id, options.diff);
    vm.tell(What::Snapshot {
        directory: options.directory.to_string_lossy().into_owned(),
    });
    let taken = Taken {
        written,
        paused_us: micros(paused),
        state_us: micros(state_took),
        took_us: micros(begun.elapsed()),
    };
    Ok((taken, pages))
}

/// The configuration as it is anywhere.
pub(super) fn absolute(config: &VmConfig) -> Result<VmConfig, SnapshotError> {
    config
        .clone()
        .with_absolute_paths()
        .map_err(failed("configuration"))
}

/// What has to happen while the guest rests.
fn freeze(
    vm: &RunningVm,
    history: &mut History,
    (options, part): (&SnapshotOptions, Part),
    config: &VmConfig,
    (file, holes): (&File, &PageRanges),
    partial: &Partial,
) -> Result<Frost, SnapshotError> {
    // Later would be a change to an overlay since the snapshot.
    vm.settle_disks().map_err(failed("disks"))?;
    let start = Instant::now();
    let state = vm.save()?;
    let mut disks = DiskRecord::of_all(config)?;
    let state_took = start.elapsed();
    if options.disks {
        disk_copies::make(&mut disks, |name| partial.file(name), !options.stop)?;
    }
    history.note(vm)?;
    let bytes = config.memory().0;
    let (diff, pages) = match part {
        Part::All => (None, PageRanges::all(bytes)),
        Part::Changes => (None, history.since_last(bytes)),
        Part::Diff => {
            let diff = history.diff()?;
            let pages = diff.pages.clone();
            (Some(diff), pages)
        }
    };
    Ok(Frost {
        vm: state,
        disks,
        memory: Frozen::begin(vm.memory(), &pages, holes, file)?,
        diff,
        pages,
        is_whole: part != Part::Changes,
        state_took,
    })
}

/// Waits until the memory is on the disk, then writes the state and puts the snapshot into its place. Returns how much memory
/// there was to write, and the snapshot's number.
fn store(
    frost: Frost,
    vm: &RunningVm,
    config: VmConfig,
    file: &File,
    partial: Partial,
) -> Result<(ByteSize, u64), SnapshotError> {
    let written = frost.memory.wait()?;
    let checksums = if frost.is_whole {
        written
    } else {
        Checksums::unknown()
    };
    memory_file::seal(file).map_err(failed("memory"))?;
    let metadata = file.metadata().map_err(failed("memory"))?;
    flush_disks(&config)?;
    disk_copies::seal(&frost.disks, |name| partial.file(name)).map_err(failed("disks"))?;
    let id = getrandom::u64()
        .map_err(io::Error::from)
        .map_err(failed("number"))?;
    let manifest = Manifest {
        id,
        posada: env!("CARGO_PKG_VERSION").to_owned(),
        taken: now(),
        cpu: CpuFeatures::shown(frost.vm.cpuid(), vm.host_kind()),
        config,
        disks: frost.disks,
        memory: MemoryRecord {
            bytes: metadata.len(),
            checksums,
            diff: frost.diff,
        },
        vm: frost.vm,
    };
    format::write(&partial.file(STATE), &manifest).map_err(failed("state"))?;
    partial.publish()?;
    // In blocks of 512 bytes, whatever the file system's are (stat(2)): holes are not among them.
    Ok((ByteSize(metadata.blocks() * 512), id))
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> SnapshotError {
    move |source| SnapshotError::Write { what, source }
}

/// What the guest takes for written is on its disks before there is a snapshot that relies on it.
fn flush_disks(config: &VmConfig) -> Result<(), SnapshotError> {
    for file in config.disks.iter().filter_map(DiskConfig::written) {
        let flushed = File::open(file).and_then(|image| image.sync_data());
        flushed.map_err(failed("disks"))?;
    }
    Ok(())
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

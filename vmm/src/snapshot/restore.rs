//! Using a snapshot: a new machine made from it, or its own machine taken back to it.

use std::io::Write;
use std::path::{self, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::debug_span;

use super::disk_copies::Return;
use super::image::{self, MAX_DIFFS, MemoryImage};
use super::manifest::{DiffRecord, DiskRecord, MEMORY, Manifest, MemoryRecord, STATE};
use super::memory_file::MemoryFile;
use super::ranges::PageRanges;
use super::served::Handler;
use super::take::absolute;
use super::{SnapshotError, format, working_set};
use crate::config::{ByteSize, DiskConfig, VmConfig};
use crate::error::{Doing, Error as VmError};
use crate::events::What;
use crate::lifecycle::Stop;
use crate::memory::{self, GuestMemory};
use crate::vm::{RunningVm, Vm};

/// What of a guest's memory to read before the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Prefault {
    /// Nothing: pages come when the guest touches them.
    #[default]
    None,
    /// What the guest used in its first second when it was restored like this for the first time.
    WorkingSet,
    /// Everything.
    All,
}

/// Where a restored guest's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryFrom {
    /// The snapshot's own files.
    Snapshot(Prefault),
    /// The process that listens at this socket.
    Handler(PathBuf),
}

/// What going back took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rewound {
    /// How long the guest rested, in microseconds.
    pub took_us: u64,
}

/// A snapshot that has been read, but for its memory.
pub struct Snapshot {
    directory: PathBuf,
    manifest: Manifest,
}

impl Snapshot {
    /// Reads what the snapshot in `directory` says.
    ///
    /// # Errors
    /// It is damaged, or of a newer posada.
    pub fn open(directory: &Path) -> Result<Self, SnapshotError> {
        let manifest: Manifest = format::read(&directory.join(STATE))?;
        Ok(Self {
            directory: path::absolute(directory).doing("tell where the snapshot is")?,
            manifest,
        })
    }

    /// What its machine was built from.
    pub fn config(&self) -> &VmConfig {
        &self.manifest.config
    }

    /// Checks every byte of its memory.
    ///
    /// # Errors
    /// It is not what was written.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        for (file, record) in self.chain()? {
            file.verify(&record.pages(), &record.checksums)?;
        }
        Ok(())
    }

    /// The memory's files: the full one, then the diffs, oldest first, each with what is in it.
    fn chain(&self) -> Result<Vec<(MemoryFile, MemoryRecord)>, SnapshotError> {
        let mut chain = Vec::new();
        let (mut directory, mut record) = (self.directory.clone(), self.manifest.memory.clone());
        loop {
            let file = MemoryFile::open(&directory.join(MEMORY), record.bytes)?;
            let parent = record.diff.clone();
            chain.push((file, record));
            let Some(DiffRecord {
                parent, parent_id, ..
            }) = parent
            else {
                chain.reverse();
                return Ok(chain);
            };
            let manifest: Manifest = format::read(&parent.join(STATE))?;
            if manifest.id != parent_id || chain.len() > MAX_DIFFS {
                return Err(SnapshotError::Parent(parent));
            }
            (directory, record) = (parent, manifest.memory);
        }
    }

    /// What is known of the disk's file at `path`, if it was one.
    pub(super) fn records_of(&self, path: &Path) -> impl Iterator<Item = &DiskRecord> {
        self.manifest
            .disks
            .iter()
            .filter(move |record| record.path == path)
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts back those of the disks of `config` that were written since the snapshot, of which it has copies. What was written is
    /// lost.
    ///
    /// # Errors
    /// There is no copy, a guest uses a disk, or the host does not do it.
    pub fn put_disks_back(&self, config: &VmConfig) -> Result<(), SnapshotError> {
        let config = absolute(config)?;
        let written = config.disks.iter().filter_map(DiskConfig::written);
        let records = written.flat_map(|path| self.records_of(path));
        let changed = records.filter_map(|record| Return::of(record, &self.directory, false).transpose());
        // None is written before all could be.
        let changed: Vec<_> = changed.collect::<Result<_, _>>()?;
        changed.into_iter().try_for_each(Return::put_back)
    }

    fn memory(&self) -> Result<MemoryImage, SnapshotError> {
        let mut chain = self.chain()?.into_iter();
        let (full, _) = chain
            .next()
            .ok_or_else(|| SnapshotError::Parent(self.directory.clone()))?;
        let diffs = chain.map(|(file, record)| (file, record.pages())).collect();
        Ok(MemoryImage::new(full, diffs)?)
    }

    /// A machine like the snapshot's, with what `config` has instead. It rests, to be
    /// [resumed](RunningVm::resume).
    ///
    /// # Errors
    /// The machine cannot be built, or something is not what the guest remembers.
    pub fn restore(
        self,
        config: VmConfig,
        memory: MemoryFrom,
        console: Box<dyn Write + Send>,
    ) -> Result<RunningVm, SnapshotError> {
        let _span = debug_span!("restore").entered();
        match memory {
            MemoryFrom::Snapshot(prefault) => self.restore_mapped(&config, prefault, console),
            MemoryFrom::Handler(socket) => self.restore_served(config, &socket, console),
        }
    }

    fn restore_mapped(
        self,
        config: &VmConfig,
        prefault: Prefault,
        console: Box<dyn Write + Send>,
    ) -> Result<RunningVm, SnapshotError> {
        let image = self.memory()?;
        let memory = image.map().map_err(VmError::from)?;
        match prefault {
            Prefault::None => {}
            Prefault::WorkingSet => working_set::prefault_or_record(&memory, &self.directory),
            Prefault::All => {
                let everything = PageRanges::all(image.bytes());
                image::prefault(&memory, &everything).doing("read the snapshot's memory")?;
            }
        }
        let (directory, id) = (self.directory.clone(), self.manifest.id);
        let vm = self.build(config, memory, console)?;
        vm.history().goes_on_from(directory, id, image);
        Ok(vm)
    }

    fn restore_served(
        self,
        config: VmConfig,
        socket: &Path,
        console: Box<dyn Write + Send>,
    ) -> Result<RunningVm, SnapshotError> {
        let memory = memory::map_by_pages(ByteSize(self.manifest.memory.bytes)).map_err(VmError::from)?;
        let handler = Arc::new(Handler::connect(socket, &memory)?);
        let vm = handler.serves(move || self.build(&config, memory, console))??;
        handler.watch(&vm)?;
        vm.history().is_served(handler);
        Ok(vm)
    }

    /// Builds the machine around `memory`, as it was.
    fn build(
        self,
        config: &VmConfig,
        memory: GuestMemory,
        console: Box<dyn Write + Send>,
    ) -> Result<RunningVm, SnapshotError> {
        let vm = Vm::rebuild(config, memory, console)?.start();
        if let Some(why) = self.manifest.cpu.lacking(&vm.cpu_features()?) {
            return Err(SnapshotError::Cpu(why));
        }
        // The images are locked by now: nobody else writes them any more.
        for disk in &config.disks {
            let files = std::iter::once(&disk.path).chain(&disk.overlay);
            files
                .flat_map(|file| self.records_of(file))
                .try_for_each(DiskRecord::check)?;
        }
        vm.load(self.manifest.vm)?;
        Ok(vm)
    }
}

/// Takes `vm` back to the snapshot in `directory`, which is one of this machine; its `disks` too, if they have been written since.
///
/// # Errors
/// The snapshot cannot be used, and the guest goes on; or it does not fit, and the guest is lost.
pub fn rewind(vm: &RunningVm, directory: &Path, disks: bool) -> Result<Rewound, SnapshotError> {
    let _span = debug_span!("rewind").entered();
    let snapshot = Snapshot::open(directory)?;
    let image = snapshot.memory()?;
    let start = Instant::now();
    vm.pause()?;
    let gone_back = match check(vm, &snapshot, disks) {
        Ok(disks) => go_back(vm, &snapshot, image, disks).inspect_err(|error| {
            vm.stop(Stop::Crash(format!("it is neither here nor there: {error}")));
        }),
        Err(error) => {
            vm.resume();
            return Err(error);
        }
    };
    gone_back?;
    vm.resume();
    vm.tell(What::Rewound {
        directory: snapshot.directory.to_string_lossy().into_owned(),
    });
    Ok(Rewound {
        took_us: start.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
    })
}

/// Whether nothing stands against going back: the guest can still go on if something does. Returns the disks to be put back.
fn check<'a>(vm: &RunningVm, snapshot: &'a Snapshot, disks: bool) -> Result<Vec<Return<'a>>, SnapshotError> {
    vm.check(&snapshot.manifest.vm)?;
    let mut changed = Vec::new();
    for disk in &absolute(&vm.config())?.disks {
        let Some(file) = disk.written() else { continue };
        let record = snapshot.records_of(file).next();
        let record = record.ok_or_else(|| SnapshotError::OtherDisk(file.to_owned()))?;
        match record.check() {
            Ok(()) => {}
            Err(error) if !disks => return Err(error),
            // The running guest's device knows by itself what is in it.
            Err(_) if disk.overlay.is_some() => return Err(SnapshotError::OverlayRuns(file.to_owned())),
            Err(_) => changed.extend(Return::of(record, &snapshot.directory, true)?),
        }
    }
    Ok(changed)
}

fn go_back(
    vm: &RunningVm,
    snapshot: &Snapshot,
    image: MemoryImage,
    disks: Vec<Return<'_>>,
) -> Result<(), SnapshotError> {
    disks.into_iter().try_for_each(Return::put_back)?;
    let mut history = vm.history();
    image
        .rewind(vm.memory(), history.mapped())
        .doing("put the guest's memory back")?;
    vm.load(snapshot.manifest.vm.clone())?;
    history.goes_on_from(snapshot.directory.clone(), snapshot.manifest.id, image);
    Ok(())
}

//! What a machine has to do with snapshots: the one that its memory is mapped from, the last one, and what has changed since.

use std::path::PathBuf;
use std::sync::Arc;

use super::SnapshotError;
use super::image::{MAX_DIFFS, MAX_RUNS, MemoryImage};
use super::manifest::DiffRecord;
use super::pages;
use super::ranges::PageRanges;
use super::served::{self, Handler};
use crate::dirty_log;
use crate::error::{Doing, Error};
use crate::lifecycle::Stop;
use crate::vm::RunningVm;

/// A machine's past.
#[derive(Default)]
pub struct History {
    /// What the guest's memory is mapped from.
    mapped: Option<MemoryImage>,
    /// The last snapshot that was taken of the machine, or that it was made from or taken back to.
    last: Option<Last>,
    /// Who serves the guest's memory, as long as some of it is only there.
    served: Option<Served>,
    /// Whether KVM and the devices record what is written.
    recording: bool,
}

/// Memory that another process serves.
struct Served {
    by: Arc<Handler>,
    /// All of it has been: what is missing has been dropped since.
    whole: bool,
}

/// What the next diff goes by.
struct Last {
    /// Where it is, and its number; `None` if it has been put together with others or elsewhere.
    place: Option<(PathBuf, u64)>,
    /// How many diffs lead from a full snapshot to it.
    depth: usize,
    changed: Changed,
}

/// How to know what has changed since the last snapshot.
enum Changed {
    /// The pages that are not the mapped file's any more: the guest has run on that snapshot's memory.
    Unmapped,
    /// These, and what has been recorded since.
    Recorded(PageRanges),
}

impl History {
    /// The machine's memory is that of the snapshot in `directory`, mapped from `image`.
    pub fn goes_on_from(&mut self, directory: PathBuf, id: u64, image: MemoryImage) {
        self.last = Some(Last {
            place: Some((directory, id)),
            depth: image.diffs(),
            changed: Changed::Unmapped,
        });
        self.mapped = Some(image);
        if let Some(served) = self.served.take() {
            served.by.release();
        }
    }

    /// The last snapshot is not where it was taken or read: no diff can name it as what it follows.
    pub fn forget_place(&mut self) {
        if let Some(last) = &mut self.last {
            last.place = None;
        }
    }

    /// The last snapshot is nowhere: it is as if none had been taken.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// The machine's memory is not mapped from anything: `handler` serves it.
    pub fn is_served(&mut self, by: Arc<Handler>) {
        self.served = Some(Served { by, whole: false });
    }

    /// Has `end` end this process if another one serves the machine's memory, that is lost, and nobody else ends this one.
    pub fn if_memory_is_lost(&self, end: impl Fn(Stop) + Send + Sync + 'static) {
        if let Some(served) = &self.served {
            served.by.ends_by(end);
        }
    }

    /// Has all of the machine's memory in this process, if another serves it. While the guest runs: a child that writes the memory
    /// down finds zeros where something is missing.
    ///
    /// # Errors
    /// The kernel does not fetch it.
    pub fn fetch(&mut self, vm: &RunningVm) -> Result<(), Error> {
        if let Some(served) = self.served.as_mut().filter(|served| !served.whole) {
            served::fetch_all(vm.memory()).doing("fetch the guest's memory")?;
            served.whole = true;
        }
        Ok(())
    }

    /// What the machine's memory is mapped from.
    pub fn mapped(&self) -> Option<&MemoryImage> {
        self.mapped.as_ref()
    }

    /// The pages of the machine's memory that come from holes in the files that it is mapped from, if it is.
    pub fn holes(&self) -> PageRanges {
        self.mapped.as_ref().map(MemoryImage::holes).unwrap_or_default()
    }

    /// Has what is written recorded from now on. While the guest runs: KVM may take milliseconds.
    ///
    /// # Errors
    /// KVM cannot.
    pub fn record(&mut self, vm: &RunningVm) -> Result<(), Error> {
        if !self.recording {
            dirty_log::record(&vm.machine().fd, vm.memory(), true)?;
            self.recording = true;
        }
        Ok(())
    }

    /// Notes what was written until now, while the guest rests.
    ///
    /// # Errors
    /// KVM does not tell, or the kernel does not say what is mapped from the file.
    pub fn note(&mut self, vm: &RunningVm) -> Result<(), Error> {
        let recorded = dirty_log::take(&vm.machine().fd, vm.memory())?;
        let Some(last) = &mut self.last else { return Ok(()) };
        let changed = match &last.changed {
            Changed::Unmapped => pages::changed(vm.memory()).doing("find out what the guest has written")?,
            Changed::Recorded(before) => before.union(&recorded),
        };
        last.changed = Changed::Recorded(changed);
        Ok(())
    }

    /// What a diff has that is taken now, [noted](Self::note) before.
    ///
    /// # Errors
    /// There is nothing to take it against, or too long a way from there to a full snapshot.
    pub fn diff(&self) -> Result<DiffRecord, SnapshotError> {
        match &self.last {
            Some(Last {
                depth,
                place: Some(_),
                ..
            }) if *depth == MAX_DIFFS => Err(SnapshotError::TooManyDiffs),
            Some(Last {
                place: Some((directory, id)),
                changed: Changed::Recorded(changed),
                ..
            }) => Ok(DiffRecord {
                parent: directory.clone(),
                parent_id: *id,
                pages: changed.clone().in_at_most(MAX_RUNS),
            }),
            _ => Err(SnapshotError::NothingBefore),
        }
    }

    /// The pages that have changed since the last snapshot, wherever that is now, as [noted](Self::note) before; all that there are
    /// if there was none.
    pub fn since_last(&self, bytes: u64) -> PageRanges {
        match &self.last {
            Some(Last {
                changed: Changed::Recorded(changed),
                ..
            }) => changed.clone(),
            _ => PageRanges::all(bytes),
        }
    }

    /// The snapshot that was begun with the last [`note`](Self::note) is there: the next diff is against it.
    pub fn taken(&mut self, directory: PathBuf, id: u64, is_diff: bool) {
        let depth = match &self.last {
            Some(last) if is_diff => last.depth + 1,
            _ => 0,
        };
        self.last = Some(Last {
            place: Some((directory, id)),
            depth,
            changed: Changed::Recorded(PageRanges::default()),
        });
    }
}

//! `/snapshot/create` and `/snapshot/load`: posada's snapshots, whose two files are where Firecracker's clients name them.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf, absolute};

use serde::Deserialize;

use super::object;
use crate::config::VmConfig;
use crate::runtime;
use crate::snapshot::{
    self, MEMORY, MemoryFrom, Partial, Prefault, STATE, Snapshot, SnapshotError, SnapshotOptions,
};
use crate::vm::RunningVm;

/// What the snapshot is called until its files are moved to where they are to be.
const WHOLE: &str = "snapshot";

/// A snapshot that is to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    #[serde(default)]
    snapshot_type: SnapshotType,
    snapshot_path: PathBuf,
    mem_file_path: PathBuf,
}

/// What of a guest's memory is in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum SnapshotType {
    #[default]
    Full,
    Diff,
}

/// A snapshot that a guest is to be made from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    snapshot_path: PathBuf,
    mem_file_path: Option<PathBuf>,
    #[serde(default, deserialize_with = "object::optional")]
    mem_backend: Option<MemBackend>,
    #[serde(default)]
    enable_diff_snapshots: bool,
    /// What is written is known without it.
    #[serde(default, rename = "track_dirty_pages")]
    _track_dirty_pages: bool,
    /// Whether the guest is to go on at once.
    #[serde(default)]
    pub resume_vm: bool,
    #[serde(default, deserialize_with = "object::list")]
    network_overrides: Vec<NetworkOverride>,
    #[serde(default, deserialize_with = "object::optional")]
    vsock_override: Option<VsockOverride>,
    #[serde(default)]
    clock_realtime: bool,
    #[serde(default)]
    huge_pages: LoadHugePages,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemBackend {
    backend_path: PathBuf,
    backend_type: BackendType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum BackendType {
    File,
    Uffd,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct NetworkOverride {
    iface_id: String,
    host_dev_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct VsockOverride {
    uds_path: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
enum LoadHugePages {
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs,
}

impl Create {
    /// Takes a snapshot of a paused guest, which stays so.
    ///
    /// # Errors
    /// It cannot be taken.
    pub fn execute(&self, vm: &RunningVm) -> Result<(), String> {
        let told = |error: SnapshotError| error.to_string();
        let place = absolute_path(&self.mem_file_path)?;
        let memory = Partial::beside(&place).map_err(told)?;
        let state = Partial::beside(&absolute_path(&self.snapshot_path)?).map_err(told)?;
        let directory = memory.file(WHOLE);
        let taken = match self.snapshot_type {
            SnapshotType::Full => snapshot::take(vm, &SnapshotOptions::to(directory.clone())).map(|_| None),
            SnapshotType::Diff => snapshot::take_changes(vm, directory.clone()).map(Some),
        };
        let changes = taken.map_err(told)?;
        // What is moved away is nothing that a diff of posada's could name.
        vm.history().forget_place();
        // What can fail for lack of room does so before anything is replaced.
        let moved = match changes {
            None => Ok(format!("{WHOLE}/{MEMORY}")),
            Some(pages) => {
                let merged = memory.file(MEMORY);
                snapshot::merge(&place, &directory.join(MEMORY), &pages, &merged).map(|()| MEMORY.to_owned())
            }
        };
        let moved = moved.and_then(|name| {
            move_file(&directory.join(STATE), &state.file(STATE))?;
            memory.put(&name)?;
            state.put(STATE)
        });
        moved.map_err(|error| {
            vm.history().forget();
            let (memory, state) = (self.mem_file_path.display(), self.snapshot_path.display());
            format!("cannot put the snapshot to '{state}' and '{memory}': {error}")
        })
    }
}

/// Moves a file, to another file system if that is where it is to be.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            fs::copy(from, to)?;
            File::open(to)?.sync_all()
        }
        result => result,
    }
}

impl Load {
    /// Whether what is deprecated is used.
    pub fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots
    }

    /// Checks that it says once where the memory is.
    ///
    /// # Errors
    /// It does not, in Firecracker's words.
    pub fn check(&self) -> Result<(), &'static str> {
        self.memory().map(drop)
    }

    /// Makes a guest of the snapshot, one at rest. Its name and what else only one can have is `base`'s.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn execute(&self, base: &VmConfig, console: Box<dyn io::Write + Send>) -> Result<RunningVm, String> {
        if self.clock_realtime {
            return Err(
                "posada's guests see their clock go on from where it stood: leave out clock_realtime"
                    .to_owned(),
            );
        }
        if self.huge_pages == LoadHugePages::Hugetlbfs {
            return Err("posada takes transparent huge pages and no others: leave out huge_pages".to_owned());
        }
        let (memory, from) = match self.memory()? {
            (path, BackendType::File) => (Some(absolute_path(path)?), MemoryFrom::Snapshot(Prefault::None)),
            (path, BackendType::Uffd) => (None, MemoryFrom::Handler(path.to_owned())),
        };
        let place = Place::find(
            &absolute_path(&self.snapshot_path)?,
            memory.as_deref(),
            base.name(),
        )
        .map_err(|error| {
            format!(
                "cannot look at the snapshot '{}': {error}",
                self.snapshot_path.display()
            )
        })?;
        let restored = Snapshot::open(place.path())
            .map_err(|error| error.to_string())
            .and_then(|snapshot| {
                let config = self.config(snapshot.config(), base)?;
                snapshot
                    .restore(config, from, console)
                    .map_err(|error| error.to_string())
            });
        let vm = restored?;
        if matches!(place, Place::Links(_)) {
            vm.history().forget_place();
        }
        Ok(vm)
    }

    /// Where the memory is, and what that is.
    fn memory(&self) -> Result<(&Path, BackendType), &'static str> {
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(backend), None) => Ok((&backend.backend_path, backend.backend_type)),
            (None, Some(path)) => Ok((path, BackendType::File)),
            (None, None) => Err("missing field: either `mem_backend` or `mem_file_path` is required"),
            (Some(_), Some(_)) => {
                Err("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")
            }
        }
    }

    fn config(&self, snapshot: &VmConfig, base: &VmConfig) -> Result<VmConfig, String> {
        let mut config = VmConfig {
            name: base.name.clone(),
            ..snapshot.clone()
        };
        // They are what the guest knows, whatever its name is now.
        for (index, net) in config.nets.iter_mut().enumerate() {
            net.mac = Some(snapshot.mac(index));
        }
        for NetworkOverride {
            iface_id,
            host_dev_name,
        } in &self.network_overrides
        {
            let mut nets = config.nets.iter_mut();
            let net = nets.find(|net| net.tap.is_some() && net.id.as_deref() == Some(iface_id));
            let net = net.ok_or_else(|| {
                format!("the snapshot's guest has no network interface '{iface_id}' on a tap")
            })?;
            net.tap = Some(host_dev_name.clone());
        }
        match (&self.vsock_override, &mut config.vsock) {
            (None, _) => {}
            (Some(changed), Some(vsock)) => vsock.path = Some(changed.uds_path.clone()),
            (Some(_), None) => return Err("the snapshot's guest has no vsock".to_owned()),
        }
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

/// Where a snapshot's files are found under the names that posada gives them.
enum Place {
    /// Where they are.
    Directory(PathBuf),
    /// In a directory of links to where they are, for as long as they are read.
    Links(PathBuf),
}

impl Place {
    /// Links, if there have to be, are in the directory of the guest `name`, if it has one.
    fn find(state: &Path, memory: Option<&Path>, name: &str) -> io::Result<Self> {
        if let Some(directory) = state.parent()
            && state == directory.join(STATE)
            && memory.is_none_or(|memory| memory == directory.join(MEMORY))
        {
            return Ok(Self::Directory(directory.to_owned()));
        }
        let home = runtime::directory_of(name).unwrap_or_else(|_| env::temp_dir());
        // A name that nobody else can have had the idea to take.
        let path = home.join(format!("posada-load-{:016x}", getrandom::u64()?));
        DirBuilder::new().mode(0o700).create(&path)?;
        let place = Self::Links(path);
        symlink(state, place.path().join(STATE))?;
        if let Some(memory) = memory {
            symlink(memory, place.path().join(MEMORY))?;
        }
        Ok(place)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Links(path) => path,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Links(path) = self
            && let Err(error) = fs::remove_dir_all(&*path)
        {
            tracing::debug!("cannot remove '{}': {error}", path.display());
        }
    }
}

fn absolute_path(path: &Path) -> Result<PathBuf, String> {
    absolute(path).map_err(|error| format!("there is no telling where '{}' is: {error}", path.display()))
}

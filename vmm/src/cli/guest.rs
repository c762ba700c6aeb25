//! A guest that this process runs: its place among the running ones, its console, its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use arch_x86_64::layout::VIRTIO_IRQS;
use devices::virtio::vsock::MAX_PATH;
use nix::unistd::write;
use tracing::{info, warn};
use vmm::api::{Api, Instance, MAX_BODY};
use vmm::config::{Overrides, VmConfig};
use vmm::console::{self, End, LogWriter};
use vmm::control::GuestInfo;
use vmm::error::Error;
use vmm::lifecycle::Stop;
use vmm::runtime::remains::{CONSOLE, MESSAGES};
use vmm::runtime::{self, GuestDirectory, RuntimeError};
use vmm::snapshot::Snapshot;
use vmm::vm::RunningVm;

use super::background::RUNS;
use super::{Failure, finish, messages, report};

/// Where a guest runs, and what it leaves in its directory when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this terminal; nothing.
    Foreground,
    /// In the background.
    Background(Leaves),
}

/// What a guest in the background leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Nothing.
    Nothing,
    /// What it printed, and how it ended.
    Logs,
    /// The same, but only of a crash.
    LogsOfCrash,
}

/// A guest's place among the running ones, if this host has one for it.
pub struct Hosted {
    /// Or why it has none.
    directory: Result<GuestDirectory, RuntimeError>,
    /// There before the guest runs: whoever hears from the guest can ask for it.
    listener: Option<UnixListener>,
}

impl Hosted {
    /// Takes the place of the guest that `config` names; one without a name of its own is given one.
    ///
    /// # Errors
    /// Its name is another running guest's.
    pub fn begin(config: &mut VmConfig) -> Result<Self, Failure> {
        config.check()?;
        let directory = match GuestDirectory::claim(config.name(), config.name.is_some()) {
            Ok(directory) => {
                config.name = Some(directory.name().to_owned());
                Ok(directory)
            }
            Err(error @ (RuntimeError::Nowhere | RuntimeError::Refused { .. })) => {
                info!("the guest cannot be reached by name: {error}");
                Err(error)
            }
            Err(error) => return Err(Error::from(error).into()),
        };
        let bind = |directory: &GuestDirectory| UnixListener::bind(directory.socket());
        let listener = directory
            .as_ref()
            .ok()
            .and_then(|directory| bind(directory).inspect_err(unreachable).ok());
        Ok(Self { directory, listener })
    }

    /// Where the guest's files are.
    ///
    /// # Errors
    /// This host has no place for them.
    fn directory(&self) -> Result<&GuestDirectory, Failure> {
        self.directory
            .as_ref()
            .map_err(|why| Failure::Other(why.to_string()))
    }

    /// Gives one of several guests from a snapshot what each must have for itself, as far as the user has not.
    ///
    /// # Errors
    /// This host has no place for it, or a disk cannot be made its own.
    pub fn make_own(
        &self,
        config: &mut VmConfig,
        given: &Overrides,
        snapshot: &Snapshot,
    ) -> Result<(), Failure> {
        let directory = self.directory()?;
        if let Some(vsock) = &mut config.vsock
            && given.vsock.is_none()
        {
            vsock.path = None;
        }
        snapshot.make_disks_own(config, given, directory.path())?;
        Ok(())
    }

    /// Gives the tiny guest a socket device, by which its agent is reached, if its user has said nothing else and it has room for one.
    pub fn add_way_to_agent(&self, config: &mut VmConfig) {
        let fits = |path: PathBuf| path.as_os_str().len() <= MAX_PATH;
        let has_place = self.directory.is_ok() && runtime::vsock_of(config.name()).is_ok_and(fits);
        if has_place && config.kernel.is_none() && config.virtio_devices() < VIRTIO_IRQS.len() {
            config.vsock.get_or_insert_default();
        }
    }

    /// Where the guest's console prints: to standard output, or in the background to a new file in its directory.
    ///
    /// # Errors
    /// There is no file for it, or no standard output.
    pub fn console(&self, place: Place) -> Result<Box<dyn Write + Send>, Failure> {
        if place == Place::Foreground {
            return Ok(Box::new(console::output()?));
        }
        let path = self.directory()?.path().join(CONSOLE);
        match File::create(&path) {
            Ok(file) => Ok(Box::new(LogWriter::new(file))),
            Err(error) => Err(Failure::Other(format!(
                "cannot make '{}': {error}",
                path.display()
            ))),
        }
    }

    /// Connects the guest with this terminal, and with who asks for it by name, until it ends; then the process does.
    /// In the background, says that the guest runs, and leaves standard output and error.
    pub fn attend(mut self, vm: RunningVm, place: Place) -> Result<(), Failure> {
        let vm = Arc::new(vm);
        let instance = Arc::new(Instance::of(vm.clone())?);
        let serve = |listener| {
            Api::serve(instance, vec![listener], MAX_BODY)
                .inspect_err(unreachable)
                .ok()
        };
        let api = self.take_listener().and_then(serve);
        if let Place::Background(leaves) = place {
            self.announce(&vm, leaves)?;
        }
        let end = self.see_through(&vm, api)?;
        self.leave(&vm, place, &end);
        // Taking the machine apart takes KVM milliseconds; the kernel does it as the process goes.
        std::mem::forget(vm);
        finish(&end)
    }

    /// The socket at which the guest is asked by name, to be served.
    pub fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Connects the guest with this terminal until it ends; what was begun by the API is done then, and its files are in order.
    pub fn see_through(&self, vm: &RunningVm, api: Option<Api>) -> Result<End, Failure> {
        let end = console::attend(vm)?;
        // A thread that waits for memory that nobody serves does not end what it has begun.
        let stuck = matches!(end, End::Stopped(Stop::MemoryLost(_)));
        if let Some(api) = api.filter(|_| !stuck) {
            api.finish(&end);
        }
        report(vm.config().name(), &end);
        vm.close_files();
        Ok(end)
    }

    /// Gives up the guest's place, with what is to stay there.
    fn leave(self, vm: &RunningVm, place: Place, end: &End) {
        let stays = match place {
            Place::Background(Leaves::Logs) => true,
            Place::Background(Leaves::LogsOfCrash) => end.is_crash(),
            Place::Background(Leaves::Nothing) | Place::Foreground => false,
        };
        let (true, Ok(directory)) = (stays, self.directory) else {
            return;
        };
        let left = GuestInfo::of(vm).map(|guest| directory.stay(&guest.ended(end)));
        if let Ok(Err(error)) = left {
            warn!("what the guest leaves is not complete: {error}");
        }
    }

    fn announce(&self, vm: &RunningVm, leaves: Leaves) -> Result<(), Failure> {
        let name = vm.config().name().to_owned();
        let guest = GuestInfo::of(vm)?;
        let path = self.directory()?.path().join(MESSAGES);
        let leave = || {
            if leaves == Leaves::Logs {
                self.directory
                    .iter()
                    .try_for_each(|directory| directory.will_stay(&guest))?;
            }
            let file = File::create(&path)?;
            // Who started it may have ended since he let it go: it runs, and is found by its name. Nothing may wait for room here:
            // it would get into the file.
            let _ = write(io::stdout(), format!("{RUNS} {name}\n").as_bytes());
            messages::keep_in(file)
        };
        leave()
            .map_err(|error: io::Error| Failure::Other(format!("cannot make '{}': {error}", path.display())))
    }
}

fn unreachable(error: &io::Error) {
    info!("the guest cannot be reached by name: {error}");
}

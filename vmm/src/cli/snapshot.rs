//! `posada snapshot`, `restore` and `rewind`.

use std::path::{self, Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};
use vmm::config::Overrides;
use vmm::console::{self, End};
use vmm::control::{self, Answer, Request};
use vmm::snapshot::{MemoryFrom, Prefault, Snapshot, SnapshotOptions};

use super::guest::{Hosted, Leaves, Place};
use super::output::print_json;
use super::{Failure, background, completions, finish, report, say, start_log};

pub const TAKE_EXAMPLES: &str = "\
Examples:
  posada snapshot web /srv/web.1            the guest goes on
  posada snapshot web /srv/web.2 --diff     only what has changed since web.1
  posada snapshot web /srv/web.3 --stop     the guest ends
  posada snapshot web /srv/web.4 --disks    with what its disks hold, on btrfs or XFS";

pub const RESTORE_EXAMPLES: &str = "\
Examples:
  posada restore /srv/web.1
  posada restore /srv/web.1 --name web-b --disk root=b.img --net tap0=tap1
  posada restore /srv/web.4 --disks                     its disks are again what they were
  posada restore /srv/web.1 --memory-from pages.sock    another process has its memory
";

pub const REWIND_EXAMPLES: &str = "\
Examples:
  posada rewind web /srv/web.1
  posada rewind web /srv/web.4 --disks      its disks, too";

/// Asks a running guest for a snapshot.
#[derive(Args)]
pub struct Take {
    /// The running guest
    #[arg(add = completions::guests())]
    name: String,
    /// Where the snapshot is to be: a directory that is not there yet
    directory: PathBuf,
    /// Write only what has changed since the last snapshot of this guest, which must be kept
    #[arg(long)]
    diff: bool,
    /// End the guest once the snapshot is taken
    #[arg(long)]
    stop: bool,
    /// Keep copies of the disks that the guest writes to with the snapshot: they share their data where the file system can; else
    /// they can only be made with --stop
    #[arg(long)]
    disks: bool,
    /// Print figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs a snapshot's guest.
#[derive(Args)]
pub struct Restore {
    /// The snapshot
    directory: PathBuf,
    /// Name of the guest [default: the snapshot's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Put the snapshot's copies of disks in place of those that have been written since: what was written is lost
    #[arg(long = "disks", id = "disks-back")]
    disks_back: bool,
    /// What of the guest's memory to read before it runs
    #[arg(long, value_name = "WHAT", default_value = "none")]
    prefault: Prefault,
    /// Unix socket of a process that serves the guest's memory by userfaultfd, as Firecracker's handlers do: the snapshot's own file of
    /// it is not read
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["prefault", "verify"])]
    memory_from: Option<PathBuf>,
    /// Check every byte of the snapshot before anything runs
    #[arg(long)]
    verify: bool,
    /// The guest is one of several from this snapshot: what only one can have is made its own
    #[arg(long, hide = true)]
    clone: bool,
    /// Say on standard output how far the guest is, and wait to be let go; its console goes to a file in its directory
    #[arg(long, hide = true)]
    background: bool,
    /// Say on standard error what is being done; twice for more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

/// Asks a running guest to go back.
#[derive(Args)]
pub struct Rewind {
    /// The running guest
    #[arg(add = completions::guests())]
    name: String,
    /// The snapshot, of this guest
    directory: PathBuf,
    /// Take what its disks hold back, too, of which the snapshot must have copies: what was written since is lost
    #[arg(long)]
    disks: bool,
    /// Print figures as JSON
    #[arg(long)]
    json: bool,
}

impl Take {
    /// Takes the snapshot and says what it took.
    pub fn execute(self) -> Result<(), Failure> {
        let options = SnapshotOptions {
            directory: absolute(&self.directory)?,
            diff: self.diff,
            stop: self.stop,
            disks: self.disks,
        };
        let Answer::Taken(taken) = control::ask(&self.name, &Request::Snapshot(options))? else {
            return Err(unexpected());
        };
        if self.json {
            return print_json(&taken);
        }
        say(format_args!(
            "posada: {} is in '{}': {} written, the guest was paused for {:.1?}",
            self.name,
            self.directory.display(),
            taken.written,
            Duration::from_micros(taken.paused_us)
        ));
        Ok(())
    }
}

impl Restore {
    /// Runs the guest until it ends, and the process with it.
    pub fn execute(self) -> Result<(), Failure> {
        start_log(self.verbose);
        let snapshot = Snapshot::open(&self.directory)?;
        if self.verify {
            snapshot.verify()?;
        }
        let mut config = self.overrides.apply(snapshot.config().clone())?;
        config.name = self.name.or(config.name);
        console::block_signals()?;
        let hosted = Hosted::begin(&mut config)?;
        if self.clone {
            hosted.make_own(&mut config, &self.overrides, &snapshot)?;
        }
        if self.disks_back {
            snapshot.put_disks_back(&config)?;
        }
        let place = match self.background {
            true => Place::Background(Leaves::LogsOfCrash),
            false => Place::Foreground,
        };
        let console = hosted.console(place)?;
        let memory = match self.memory_from {
            Some(socket) => MemoryFrom::Handler(socket),
            None => MemoryFrom::Snapshot(self.prefault),
        };
        let vm = snapshot.restore(config, memory, console)?;
        if self.background {
            background::wait_to_go()?;
        }
        let name = vm.config().name().to_owned();
        vm.history().if_memory_is_lost(move |why| {
            let end = End::Stopped(why);
            report(&name, &end);
            finish(&end)
        });
        vm.resume();
        hosted.attend(vm, place)
    }
}

impl Rewind {
    /// Takes the guest back and says how long that was.
    pub fn execute(self) -> Result<(), Failure> {
        let request = Request::Rewind {
            directory: absolute(&self.directory)?,
            disks: self.disks,
        };
        let Answer::Rewound(rewound) = control::ask(&self.name, &request)? else {
            return Err(unexpected());
        };
        if self.json {
            return print_json(&rewound);
        }
        say(format_args!(
            "posada: {} is where it was at '{}', after {:.1?}",
            self.name,
            self.directory.display(),
            Duration::from_micros(rewound.took_us)
        ));
        Ok(())
    }
}

/// What a running guest is told is relative to its own directory, not to this one.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path::absolute(path).map_err(|error| {
        Failure::Other(format!(
            "there is no telling where '{}' is: {error}",
            path.display()
        ))
    })
}

pub fn unexpected() -> Failure {
    Failure::Other("the guest answers something else: it runs another version of posada".to_owned())
}

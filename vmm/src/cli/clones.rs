//! `posada clone`: guests from a snapshot, in the background.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use vmm::config::{Overrides, Replacement, VmConfig};
use vmm::control::{self, Request};
use vmm::runtime;
use vmm::snapshot::{Snapshot, SnapshotOptions};

use super::background::Starting;
use super::guests::inspect;
use super::messages::Failures;
use super::output::{print, print_json};
use super::{Failure, say};

pub const EXAMPLES: &str = "\
Examples:
  posada clone /srv/web.1 --count 10        web-1 to web-10, each a process in the background
  posada clone web --count 2                from the running guest web, which goes on
  posada clone /srv/web.1 --count 3 --name w --net tap0=tap{}     w-1 on tap1, w-2 on tap2, w-3 on tap3";

/// Starts guests from a snapshot.
#[derive(Args)]
pub struct Clones {
    /// A snapshot's directory, or the name of a running guest, of which a snapshot is taken first
    #[arg(value_name = "DIR|NAME")]
    what: PathBuf,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// What their names begin with; a number follows [default: the snapshot's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
    /// Unix socket of a process that serves the clones' memory by userfaultfd, to which each connects; only for a snapshot's directory
    #[arg(long, value_name = "SOCKET")]
    memory_from: Option<PathBuf>,
    /// Print the clones as JSON
    #[arg(long)]
    json: bool,
}

/// A snapshot that is there for as long as clones are made from it.
enum Template {
    Given(PathBuf),
    /// Taken for the purpose. The clones keep what they have of it when it goes.
    Taken(PathBuf),
}

impl Clones {
    /// Starts them all beside each other, and waits until they run.
    pub fn execute(self) -> Result<(), Failure> {
        let template = self.template()?;
        let snapshot = Snapshot::open(template.path())?;
        let prefix = self.name.as_deref().unwrap_or(snapshot.config().name());
        let names: Vec<_> = (1..=self.count)
            .map(|number| format!("{prefix}-{number}"))
            .collect();
        let starting: Vec<_> = (1..)
            .zip(&names)
            .map(|(number, name)| self.start(&template, number, name))
            .collect();
        // Those that fail do not hold up the others.
        let mut ready: Vec<_> = starting
            .into_iter()
            .map(|starting| starting.and_then(Starting::wait_until_ready))
            .collect();
        ready.iter_mut().flatten().for_each(Starting::go);
        let mut failures = Failures::default();
        let mut started = Vec::new();
        for (name, ready) in names.into_iter().zip(ready) {
            match ready.and_then(Starting::wait_until_it_runs) {
                Ok(clone) => started.push(clone),
                Err(failure) => failures.take(Err(Failure::Other(format!("{name}: {failure}")))),
            }
        }
        // By now nobody waits for it.
        runtime::sweep();
        failures.take(match self.json {
            true => print_json(&started),
            false => {
                let lines = started.iter().map(|clone| format!("{}\n", clone.name));
                print(&lines.collect::<String>())
            }
        });
        failures.result()
    }

    fn template(&self) -> Result<Template, Failure> {
        if self.what.is_dir() {
            return Ok(Template::Given(self.what.clone()));
        }
        if self.memory_from.is_some() {
            return Err(Failure::Other(format!(
                "--memory-from serves the memory of a snapshot that is there, and '{}' is no directory: take the snapshot first",
                self.what.display()
            )));
        }
        let name = self.what.to_string_lossy();
        let place = self.place_beside_disks(&inspect(&name)?.config);
        let directory = format!(".posada-{name}-{}", std::process::id());
        let directory = place.clone().unwrap_or_else(env::temp_dir).join(directory);
        let options = SnapshotOptions {
            disks: place.is_some(),
            ..SnapshotOptions::to(directory.clone())
        };
        control::ask(&name, &Request::Snapshot(options))?;
        Ok(Template::Taken(directory))
    }

    /// Where copies can share their data with the disks that the running guest goes on writing to, if the clones need any.
    fn place_beside_disks(&self, config: &VmConfig) -> Option<PathBuf> {
        let disks = config.disks.iter().enumerate();
        let shared = disks.filter(|(index, _)| !self.overrides.replaces_disk(config, *index));
        let written = shared.filter_map(|(_, disk)| disk.written()).next()?;
        written.parent().map(Path::to_owned)
    }

    fn start(&self, template: &Template, number: u32, name: &str) -> Result<Starting, Failure> {
        let mut arguments: Vec<OsString> = vec!["restore".into(), template.path().into()];
        let mut flag = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        flag("--name", name.into());
        let numbered = |replacement: &Replacement| replacement.numbered(number).to_string().into();
        self.overrides
            .disks
            .iter()
            .for_each(|disk| flag("--disk", numbered(disk)));
        self.overrides
            .nets
            .iter()
            .for_each(|net| flag("--net", numbered(net)));
        if let Some(vsock) = &self.overrides.vsock {
            flag("--vsock", for_number(vsock, number));
        }
        if let Some(socket) = &self.memory_from {
            flag("--memory-from", for_number(socket, number));
        }
        arguments.extend(["--clone".into(), "--background".into()]);
        Starting::begin(arguments)
    }
}

/// The path with a clone's number in place of each `{}`.
fn for_number(path: &Path, number: u32) -> OsString {
    path.to_string_lossy().replace("{}", &number.to_string()).into()
}

impl Template {
    fn path(&self) -> &Path {
        match self {
            Self::Given(path) | Self::Taken(path) => path,
        }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        if let Self::Taken(path) = self
            && let Err(error) = fs::remove_dir_all(&*path)
        {
            say(format_args!(
                "posada: cannot remove '{}': {error}",
                path.display()
            ));
        }
    }
}

//! The commands for guests that run: listing them, and what is asked of one by its name.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;
use vmm::config::ByteSize;
use vmm::console::LogReader;
use vmm::control::{self, Answer, ControlError, GuestInfo, Request};
use vmm::runtime::remains::{self, CONSOLE, Ending};
use vmm::runtime::{self, RuntimeError};

use super::messages::Failures;
use super::output::{print, print_json};
use super::snapshot::unexpected;
use super::table::{cell, table, time};
use super::{Failure, completions, say};

pub const LIST_EXAMPLES: &str = "\
Examples:
  posada ps
  posada ps -a                             those, too, that have ended and left their logs
  posada ps --json | jq -r '.[].name'";

pub const LOGS_EXAMPLES: &str = "\
Examples:
  posada logs web-1
  posada logs -f web-1      until the guest ends";

/// Lists guests.
#[derive(Args)]
pub struct List {
    /// Those, too, that have ended and left something
    #[arg(short, long)]
    all: bool,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Tells about one.
#[derive(Args)]
pub struct Inspect {
    /// The guest, one that runs or has left something
    #[arg(add = completions::guests())]
    name: String,
}

/// Guests that are all asked for the same.
#[derive(Args)]
pub struct Names {
    /// The running guests
    #[arg(required = true, value_name = "NAME", add = completions::guests())]
    names: Vec<String>,
}

/// Removes what guests have left.
#[derive(Args)]
pub struct Remove {
    /// The guests
    #[arg(required = true, value_name = "NAME", add = completions::guests())]
    names: Vec<String>,
    /// End those that run first
    #[arg(short, long)]
    force: bool,
}

/// Prints a guest's console.
#[derive(Args)]
pub struct Logs {
    /// The guest, one that runs in the background or has done so
    #[arg(add = completions::guests())]
    name: String,
    /// Go on with what it prints, until it ends
    #[arg(short, long)]
    follow: bool,
}

/// A guest in the list. Of one that does not answer, or not as it should, there is only the name.
#[derive(Serialize)]
struct Row {
    name: String,
    pid: Option<u32>,
    state: Option<String>,
    cpus: Option<u32>,
    memory: Option<ByteSize>,
    uptime: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Ending>,
}

impl List {
    /// Prints a table, or JSON.
    pub fn execute(self) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for name in runtime::names().map_err(ControlError::from)? {
            match inspect(&name) {
                Ok(guest) => rows.push(Row::of(*guest)),
                // It has ended, and its directory is what it left.
                Err(Failure::Control(ControlError::Runtime(RuntimeError::Unknown(_)))) => {
                    rows.extend(self.all.then(|| Row::of_remains(name)).flatten());
                }
                Err(failure) => {
                    say(format_args!("posada: {failure}"));
                    rows.push(Row::silent(name));
                }
            }
        }
        runtime::sweep();
        if self.json {
            return print_json(&rows);
        }
        let text = match self.all {
            false => table(HEAD, rows.iter().map(cells)),
            true => table(
                with(HEAD, "END"),
                rows.iter().map(|row| with(cells(row), cell(row.end()))),
            ),
        };
        print(&text)
    }
}

impl Row {
    fn of(guest: GuestInfo) -> Self {
        let state = match &guest.end {
            None => guest.state.to_string(),
            Some(end) if end.crashed => "crashed".to_owned(),
            Some(_) => "ended".to_owned(),
        };
        Self {
            name: guest.name,
            pid: guest.end.is_none().then_some(guest.pid),
            state: Some(state),
            cpus: Some(guest.cpus),
            memory: Some(guest.memory),
            uptime: Some(guest.uptime),
            end: guest.end,
        }
    }

    /// Of a guest that has ended, if it has left something.
    fn of_remains(name: String) -> Option<Self> {
        match remains::of(&name) {
            Ok(guest) => Some(Self::of(guest)),
            Err(failure @ RuntimeError::Foreign { .. }) => {
                say(format_args!("posada: {failure}"));
                Some(Self {
                    state: Some("unknown".to_owned()),
                    ..Self::silent(name)
                })
            }
            Err(_) => None,
        }
    }

    fn silent(name: String) -> Self {
        Self {
            name,
            pid: None,
            state: None,
            cpus: None,
            memory: None,
            uptime: None,
            end: None,
        }
    }

    /// How and how long ago it has ended.
    fn end(&self) -> Option<String> {
        let Ending { why, at, .. } = self.end.as_ref()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let ago = at.zip(now.ok()).map(|(at, now)| now.as_secs().saturating_sub(at));
        Some(match ago {
            Some(ago) => format!("{why}, {} ago", time(ago)),
            None => why.clone(),
        })
    }
}

const HEAD: [&str; 6] = ["NAME", "PID", "STATE", "CPUS", "MEMORY", "UPTIME"];

fn with<T>([name, pid, state, cpus, memory, uptime]: [T; 6], end: T) -> [T; 7] {
    [name, pid, state, cpus, memory, uptime, end]
}

fn cells(row: &Row) -> [String; 6] {
    [
        row.name.clone(),
        cell(row.pid),
        cell(row.state.as_ref()),
        cell(row.cpus),
        cell(row.memory),
        cell(row.uptime.map(time)),
    ]
}

impl Inspect {
    /// Prints everything, as JSON.
    pub fn execute(self) -> Result<(), Failure> {
        let guest = match inspect(&self.name) {
            Err(Failure::Control(ControlError::Runtime(RuntimeError::Unknown(_)))) => {
                remains::of(&self.name).map_err(ControlError::from)?
            }
            running => *running?,
        };
        let text = serde_json::to_string_pretty(&guest).map_err(|error| Failure::Other(error.to_string()))?;
        print(&format!("{text}\n"))
    }
}

impl Names {
    /// Asks each of them.
    pub fn tell(&self, request: &Request) -> Result<(), Failure> {
        each(&self.names, |name| tell(name, request))
    }

    /// Ends each of them, and returns when its process is gone.
    pub fn kill(&self) -> Result<(), Failure> {
        each(&self.names, kill)
    }
}

/// Does something with each of these guests, whatever becomes of the others.
fn each(names: &[String], mut action: impl FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut failures = Failures::default();
    for name in names {
        failures.take(action(name));
    }
    failures.result()
}

/// Ends a guest, and returns when its process is gone.
fn kill(name: &str) -> Result<(), Failure> {
    let directory = runtime::directory_of(name).map_err(ControlError::from)?;
    tell(name, &Request::Kill)?;
    runtime::wait_until_gone(&directory);
    Ok(())
}

impl Remove {
    /// Removes what each of them has left.
    pub fn execute(self) -> Result<(), Failure> {
        each(&self.names, |name| match remains::discard(name) {
            Err(RuntimeError::Runs(_)) if self.force => {
                kill(name)?;
                match remains::discard(name) {
                    // One in the foreground leaves nothing.
                    Err(RuntimeError::Unknown(_)) => Ok(()),
                    removed => Ok(removed.map_err(ControlError::from)?),
                }
            }
            removed => Ok(removed.map_err(ControlError::from)?),
        })
    }
}

impl Logs {
    /// Prints what there is, and with `--follow` what comes.
    pub fn execute(self) -> Result<(), Failure> {
        let directory = remains::directory_of(&self.name).map_err(ControlError::from)?;
        let path = directory.join(CONSOLE);
        let Err(error) = self.print(&path) else {
            return Ok(());
        };
        match error.kind() {
            io::ErrorKind::NotFound => Err(Failure::Other(format!(
                "the console of '{0}' is where it was started, and nothing of it is kept: see it by 'posada attach {0}', or start it in the background",
                self.name
            ))),
            // Who reads has seen enough.
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Failure::Other(format!(
                "cannot print '{}': {error}",
                path.display()
            ))),
        }
    }

    fn print(&self, path: &Path) -> io::Result<()> {
        let mut console = LogReader::new(File::open(path)?);
        let changes = Inotify::init(InitFlags::IN_CLOEXEC)?;
        changes.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)?;
        let mut stdout = io::stdout();
        // Looked at when the file is watched: an end that comes later is told.
        let mut ended = !self.follow || remains::are_there(&self.name);
        loop {
            let new = console.read()?;
            if !new.is_empty() {
                stdout.write_all(&new)?;
                continue;
            }
            stdout.flush()?;
            if ended {
                return Ok(());
            }
            // Only the guest's process writes to it: it has ended when it closes it.
            let events = changes.read_events()?;
            ended = events
                .iter()
                .any(|event| event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE));
        }
    }
}

/// What the running guest of this name tells of itself.
pub fn inspect(name: &str) -> Result<Box<GuestInfo>, Failure> {
    match control::ask(name, &Request::Inspect)? {
        Answer::Guest(guest) => Ok(guest),
        _ => Err(unexpected()),
    }
}

/// Has the running guest of this name do what there is nothing to tell of.
pub fn tell(name: &str, request: &Request) -> Result<(), Failure> {
    match control::ask(name, request)? {
        Answer::Done => Ok(()),
        _ => Err(unexpected()),
    }
}

//! The commands for guests that run: listing them, and what is asked of one by its name.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;
use vmm::config::ByteSize;
use vmm::control::{self, Answer, ControlError, GuestInfo, Request};
use vmm::lifecycle::Phase;
use vmm::runtime::{self, RuntimeError};

use super::guest::CONSOLE;
use super::snapshot::unexpected;
use super::table::{cell, table, time};
use super::{Failure, completions, print_json, say};

pub const LIST_EXAMPLES: &str = "\
Examples:
  posada ps
  posada ps --json | jq -r '.[].name'";

pub const LOGS_EXAMPLES: &str = "\
Examples:
  posada logs web-1
  posada logs -f web-1      until the guest ends";

/// Lists the running guests.
#[derive(Args)]
pub struct List {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Tells about one.
#[derive(Args)]
pub struct Inspect {
    /// The running guest
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

/// Prints a guest's console.
#[derive(Args)]
pub struct Logs {
    /// The guest, one in the background
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
    state: Option<Phase>,
    cpus: Option<u32>,
    memory: Option<ByteSize>,
    uptime: Option<u64>,
}

impl List {
    /// Prints a table, or JSON.
    pub fn execute(self) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for name in runtime::names().map_err(ControlError::from)? {
            match inspect(&name) {
                Ok(guest) => rows.push(Row::of(*guest)),
                // It has ended, and its directory is what it left.
                Err(Failure::Control(ControlError::Runtime(RuntimeError::Unknown(_)))) => {}
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
        let head = ["NAME", "PID", "STATE", "CPUS", "MEMORY", "UPTIME"];
        print!("{}", table(head, rows.iter().map(cells)));
        Ok(())
    }
}

impl Row {
    fn of(guest: GuestInfo) -> Self {
        Self {
            name: guest.name,
            pid: Some(guest.pid),
            state: Some(guest.state),
            cpus: Some(guest.cpus),
            memory: Some(guest.memory),
            uptime: Some(guest.uptime),
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
        }
    }
}

fn cells(row: &Row) -> [String; 6] {
    [
        row.name.clone(),
        cell(row.pid),
        cell(row.state),
        cell(row.cpus),
        cell(row.memory),
        cell(row.uptime.map(time)),
    ]
}

impl Inspect {
    /// Prints everything, as JSON.
    pub fn execute(self) -> Result<(), Failure> {
        let guest = inspect(&self.name)?;
        let text = serde_json::to_string_pretty(&guest).map_err(|error| Failure::Other(error.to_string()))?;
        println!("{text}");
        Ok(())
    }
}

impl Names {
    /// Asks each of them.
    pub fn tell(&self, request: &Request) -> Result<(), Failure> {
        self.names.iter().try_for_each(|name| tell(name, request))
    }

    /// Ends each of them, and returns when its process is gone.
    pub fn kill(&self) -> Result<(), Failure> {
        self.names.iter().try_for_each(|name| {
            let directory = runtime::directory_of(name).map_err(ControlError::from)?;
            tell(name, &Request::Kill)?;
            runtime::wait_until_gone(&directory);
            Ok(())
        })
    }
}

impl Logs {
    /// Prints what there is, and with `--follow` what comes.
    pub fn execute(self) -> Result<(), Failure> {
        let directory = runtime::directory_of(&self.name).map_err(ControlError::from)?;
        let path = directory.join(CONSOLE);
        let Err(error) = self.print(&path) else {
            return Ok(());
        };
        match error.kind() {
            io::ErrorKind::NotFound => Err(Failure::Other(format!(
                "the console of '{}' is where it was started, and nothing of it is kept: start it in the background to have it kept",
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
        let mut console = File::open(path)?;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC)?;
        changes.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)?;
        let mut stdout = io::stdout();
        let mut ended = !self.follow;
        loop {
            io::copy(&mut console, &mut stdout)?;
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

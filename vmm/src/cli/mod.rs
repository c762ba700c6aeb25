//! The command line: what it takes, what it prints, and what its exit status means.

mod agent;
mod api_socket;
mod attach;
mod background;
mod clones;
mod completions;
mod cp;
mod events;
mod exec;
mod guest;
mod guests;
mod log;
mod manual;
mod messages;
mod output;
mod progress;
mod run;
mod serve;
mod snapshot;
mod stats;
mod stop;
mod systemd;
mod table;
mod top;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{self, ExitCode};

use clap::{Parser, Subcommand};
use thiserror::Error;
use vmm::config::ConfigError;
use vmm::console::{self, End, SIGNALLED};
use vmm::control::{ControlError, Request};
use vmm::error::Error;
use vmm::lifecycle::Stop;
use vmm::snapshot::SnapshotError;

use clones::Clones;
use completions::Completions;
use cp::Copy;
use exec::Exec;
use guests::{Inspect, List, Logs, Names, Remove};
use manual::Manual;
use messages::{say, start_log};
use run::Run;
use serve::Serve;
use snapshot::{Restore, Rewind, Take};
use stats::ShowStats;
use systemd::Unit;
use top::Top;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

const EXIT_STATUS_HELP: &str = "\
Exit status:
  0    the guest powered off or reset, or was ended by Ctrl-A x
  1    posada failed: no KVM, a missing or broken file, ...
  2    the command line or the config file is wrong
  3    the guest crashed: a kernel panic, a triple fault, ...
  143  posada was told to end by SIGTERM (128 + the signal's number)";

/// A virtual machine monitor for Linux guests on KVM
#[derive(Parser)]
#[command(name = "posada", version, after_help = EXIT_STATUS_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a guest in the foreground, its console on this terminal
    #[command(after_help = format!("{}\n{EXIT_STATUS_HELP}", run::EXAMPLES))]
    Run(Box<Run>),
    /// Serve an HTTP API by which a guest is described, started and looked after: Firecracker's
    #[command(after_help = format!("{}\n{EXIT_STATUS_HELP}", serve::EXAMPLES))]
    Serve(Serve),
    /// List the guests
    #[command(after_help = guests::LIST_EXAMPLES)]
    Ps(List),
    /// Tell all about a guest
    Inspect(Inspect),
    /// Tell what running guests have used and done
    #[command(after_help = stats::EXAMPLES)]
    Stats(ShowStats),
    /// Show what running guests do, live
    #[command(after_help = top::EXAMPLES)]
    Top(Top),
    /// Have a running guest rest until it is resumed
    Pause(Names),
    /// Let a paused guest go on
    Resume(Names),
    /// Show a running guest's console on this terminal, and type there
    #[command(after_help = attach::EXAMPLES)]
    Attach(attach::Attach),
    /// Have running guests shut down, as if their power buttons were pressed
    #[command(after_help = stop::EXAMPLES)]
    Stop(stop::Stop),
    /// End a running guest at once, as if its power was cut
    Kill(Names),
    /// Print what the console of a guest in the background has printed
    #[command(after_help = guests::LOGS_EXAMPLES)]
    Logs(Logs),
    /// Run a command in a running guest
    #[command(after_help = exec::EXAMPLES)]
    Exec(Exec),
    /// Copy files into a running guest, or out of it
    #[command(after_help = cp::EXAMPLES)]
    Cp(Copy),
    /// Tell what happens to guests, as it happens
    #[command(after_help = events::EXAMPLES)]
    Events(events::Events),
    /// Remove what guests in the background have left: what their consoles printed, and how they ended
    Rm(Remove),
    /// Freeze a running guest into a directory; it goes on
    #[command(after_help = snapshot::TAKE_EXAMPLES)]
    Snapshot(Take),
    /// Run the guest of a snapshot in the foreground, from where it was
    #[command(after_help = format!("{}\n{EXIT_STATUS_HELP}", snapshot::RESTORE_EXAMPLES))]
    Restore(Restore),
    /// Take a running guest back to a snapshot
    #[command(after_help = snapshot::REWIND_EXAMPLES)]
    Rewind(Rewind),
    /// Start guests from a snapshot, in the background
    #[command(after_help = clones::EXAMPLES)]
    Clone(Clones),
    /// Write a unit by which systemd starts a guest
    #[command(after_help = systemd::EXAMPLES)]
    Systemd(Unit),
    /// Print what a shell needs to complete posada's commands and the names of guests
    #[command(after_help = completions::EXAMPLES)]
    Completions(Completions),
    /// Print posada's manual, or write it to a directory
    #[command(after_help = manual::EXAMPLES)]
    Man(Manual),
}

/// Why a command did not do what it should.
#[derive(Debug, Error)]
enum Failure {
    /// A guest could not be built or started.
    #[error(transparent)]
    Vm(#[from] Error),
    /// A snapshot could not be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A running guest did not do what it was asked for.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest's own process could not, and said why.
    #[error("{message}")]
    Elsewhere {
        /// Its sentence.
        message: String,
        /// Its exit status.
        status: u8,
    },
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// Something else, in a sentence.
    #[error("{0}")]
    Other(String),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Vm(error.into())
    }
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Vm(Error::Config(_)) | Self::Usage(_) => USAGE,
            Self::Elsewhere { status, .. } => *status,
            _ => FAILURE,
        }
    }
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    if completions::is_asked() {
        completions::answer();
    }
    let done = match Cli::parse_from(arguments()).command {
        Command::Run(run) => run.execute(),
        Command::Serve(serve) => serve.execute(),
        Command::Ps(list) => list.execute(),
        Command::Inspect(inspect) => inspect.execute(),
        Command::Stats(stats) => stats.execute(),
        Command::Top(top) => top.execute(),
        Command::Pause(guests) => guests.tell(&Request::Pause),
        Command::Resume(guests) => guests.tell(&Request::Resume),
        Command::Attach(attach) => attach.execute(),
        Command::Stop(stop) => stop.execute(),
        Command::Kill(guests) => guests.kill(),
        Command::Logs(logs) => logs.execute(),
        Command::Exec(exec) => exec.execute(),
        Command::Cp(copy) => copy.execute(),
        Command::Events(events) => events.execute(),
        Command::Rm(remove) => remove.execute(),
        Command::Snapshot(take) => take.execute(),
        Command::Restore(restore) => restore.execute(),
        Command::Rewind(rewind) => rewind.execute(),
        Command::Clone(clones) => clones.execute(),
        Command::Systemd(unit) => unit.execute(),
        Command::Completions(completions) => completions.execute(),
        Command::Man(manual) => manual.execute(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(format_args!("posada: {failure}"));
            ExitCode::from(failure.status())
        }
    }
}

/// The command line. By Firecracker's name, under which its clients and its jailer start it, posada is `posada serve`.
fn arguments() -> Vec<OsString> {
    let mut arguments = Vec::from_iter(env::args_os());
    let name = arguments.first().and_then(|path| Path::new(path).file_name());
    if name.is_some_and(|name| name.as_encoded_bytes().starts_with(b"firecracker")) {
        arguments.insert(1, "serve".into());
    }
    arguments
}

/// A crash is always told; how else a guest ended only to a person, who sees no exit status.
fn report(name: &str, end: &End) {
    let why = end.why();
    if end.is_crash() {
        say(format_args!("posada: {name} crashed: {why}"));
    } else if console::is_interactive() {
        // Behind what the guest has left on its line.
        let line = match end {
            End::Stopped(Stop::Ended) | End::Signal(_) => "\n",
            End::Stopped(_) => "",
        };
        say(format_args!("{line}posada: {name} {why}"));
    }
}

fn finish(end: &End) -> ! {
    process::exit(end.status().into())
}

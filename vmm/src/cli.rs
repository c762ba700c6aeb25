//! The command line: what it takes, what it prints, and what its exit status means.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};

use clap::{ArgAction, Args, Parser, Subcommand};
use tracing::Level;
use vmm::config::VmConfig;
use vmm::console::{self, End};
use vmm::error::Error;
use vmm::lifecycle::Stop;
use vmm::vm::Vm;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;
const GUEST_CRASHED: u8 = 3;
/// A process that a signal ended has this plus the signal's number, as shells have it.
const SIGNALLED: u8 = 128;

const EXIT_STATUS_HELP: &str = "\
Exit status:
  0    the guest powered off or reset, or was ended by Ctrl-A x
  1    posada failed: no KVM, a missing or broken file, ...
  2    the command line or the config file is wrong
  3    the guest crashed: a kernel panic, a triple fault, ...
  143  posada was told to end by SIGTERM (128 + the signal's number)";

const RUN_EXAMPLES: &str = "\
Examples:
  posada run
  posada run --cpus 2 --memory 1G --append quiet
  posada run --kernel vmlinuz --initrd initrd.img --append root=/dev/ram0
  posada run --disk disk.img --net user,forward=tcp:8080:80
  posada run --config guest.toml --memory 2G
  echo 'uname -a; poweroff' | posada run

On the console: Ctrl-A x ends the guest, Ctrl-A h shows the keys.
";

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
    #[command(after_help = format!("{RUN_EXAMPLES}\n{EXIT_STATUS_HELP}"))]
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Read settings from a TOML file; flags win over it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,

    #[command(flatten)]
    vm: VmConfig,

    /// Say on standard error what is being done; twice for more
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let Command::Run(run) = Cli::parse().command;
    start_log(run.verbose);
    match run_guest(run) {
        Ok(end) => finish(&end),
        Err(error) => {
            say(format_args!("posada: {error}"));
            ExitCode::from(if matches!(error, Error::Config(_)) {
                USAGE
            } else {
                FAILURE
            })
        }
    }
}

/// Tells the user. Who has closed standard error, or filled its disk, is told by the exit status alone.
fn say(message: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => Level::WARN,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        // A log that cannot be written is not worth a panic, which is what telling of it would end in.
        .log_internal_errors(false)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

fn run_guest(run: Run) -> Result<End, Error> {
    let config = match &run.config {
        Some(path) => run.vm.or(VmConfig::from_file(path)?),
        None => run.vm,
    };
    console::block_signals()?;
    let mut vm = Vm::build(&config, Box::new(console::output()?))?.start();
    let end = console::attend(&vm)?;
    report(config.name(), &end);
    vm.remove_files();
    // Taking the machine apart takes KVM milliseconds; the kernel does it as the process goes.
    std::mem::forget(vm);
    Ok(end)
}

/// A crash is always told; how else a guest ended only to a person, who sees no exit status.
fn report(name: &str, end: &End) {
    match end {
        End::Stopped(Stop::Crash(what)) => say(format_args!("posada: {name} crashed: {what}")),
        End::Stopped(Stop::Panic) => say(format_args!("posada: {name} crashed: its kernel panicked")),
        End::Stopped(_) | End::Signal(_) if !console::is_interactive() => {}
        End::Stopped(Stop::PowerOff) => say(format_args!("posada: {name} powered off")),
        End::Stopped(Stop::Reset) => say(format_args!("posada: {name} reset its machine")),
        End::Stopped(Stop::Ended) => say(format_args!("\nposada: {name} was ended")),
        End::Signal(signal) => say(format_args!("\nposada: {name} was ended by {signal}")),
    }
}

fn finish(end: &End) -> ! {
    let status = match end {
        End::Stopped(Stop::PowerOff | Stop::Reset | Stop::Ended) => 0,
        End::Stopped(Stop::Panic | Stop::Crash(_)) => GUEST_CRASHED,
        End::Signal(signal) => SIGNALLED + *signal as u8,
    };
    process::exit(status.into())
}

//! `posada exec`: a command in a running guest, with this process's standard streams, its terminal and its signals.

mod session;
mod sink;

use std::env;
use std::io::{self, IsTerminal};
use std::process;

use clap::Args;
use guest_agent::request::{Command, Request, Size};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm::console::{self, Printed, RawTerminal};

use super::agent::{Agent, Waiting};
use super::{Failure, completions};
use session::Session;

pub const EXAMPLES: &str = "\
Examples:
  posada exec web -- uname -a
  posada exec -t web -- sh                                a shell on this terminal
  posada exec web -- tar c /etc | tar t                   output and input are bytes
  posada exec -e LANG=C --cwd /srv web -- make < input
  posada exec --wait 60 web -- uptime                     as soon as the guest has started

Exit status: that of the command; 128 + n if signal n has ended it, 127 if there is no such command, 126 if it cannot be run. \
1 if posada cannot reach the guest's agent, 2 for wrong usage.
";

/// The signals that go to the command.
const PASSED: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
/// The size of a terminal where there is none.
const USUAL: Size = Size { rows: 24, cols: 80 };

/// Runs a command in a guest.
#[derive(Args)]
pub struct Exec {
    /// Give the command a terminal: this one, with its size and its keys, if standard input is one
    #[arg(short, long)]
    tty: bool,
    /// Standard input goes to the command in any case; accepted because other tools want it said
    #[arg(short, long)]
    interactive: bool,
    /// A variable for the command; as often as needed
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Directory in the guest that the command runs in
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    /// The running guest
    #[arg(add = completions::guests())]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

impl Exec {
    /// Runs the command, and ends this process with its exit status.
    pub fn execute(self) -> Result<(), Failure> {
        let (tty, waiting) = (self.tty, self.waiting);
        let name = self.name.clone();
        let agent = Agent::ask(&name, &Request::Exec(self.request()), waiting)?;
        let here =
            |error: io::Error| Failure::Other(format!("cannot use this terminal or its signals: {error}"));
        let signals = watch_signals(tty).map_err(here)?;
        // What the command's own terminal prints is ready for this one.
        let raw = (tty && io::stdout().is_terminal()).then(|| RawTerminal::enter(Printed::AsItIs));
        let raw = raw.transpose().map_err(here)?.flatten();
        let status = Session::new(agent, signals, raw)?.carry_on()?;
        process::exit(status.into())
    }

    fn request(self) -> Command {
        let mut env = self.env;
        let term = env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
        if self.tty && env.iter().all(|(name, _)| name != "TERM") {
            env.push(("TERM".to_owned(), term));
        }
        Command {
            argv: self.command,
            env,
            cwd: self.cwd,
            tty: self.tty.then(|| terminal_size().unwrap_or(USUAL)),
        }
    }
}

fn terminal_size() -> Option<Size> {
    console::size().map(|(rows, cols)| Size { rows, cols })
}

/// From now on signals are read, and end nothing by themselves.
fn watch_signals(tty: bool) -> io::Result<SignalFd> {
    let mut watched: SigSet = PASSED.into_iter().collect();
    if tty {
        watched.add(Signal::SIGWINCH);
        watched.add(Signal::SIGCONT);
    }
    watched.thread_block()?;
    Ok(SignalFd::with_flags(
        &watched,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

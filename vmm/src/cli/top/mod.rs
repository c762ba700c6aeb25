//! `posada top`: what guests do, live, on the whole screen.

mod rates;
mod screen;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use super::stats::{self, GuestStats};
use super::{Failure, SIGNALLED};
use rates::History;
use screen::{Order, View};

pub const EXAMPLES: &str = "\
Examples:
  posada top
  posada top --interval 5

Keys: q or Ctrl-C quits, the arrows choose a guest, s sorts by the next column.
For scripts there is 'posada stats --json'.";

/// How soon a signal is heard, in milliseconds.
const HEARING: u8 = 100;

/// Shows what guests do until it is told to quit.
#[derive(Args)]
pub struct Top {
    /// Seconds between two looks, 1 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

/// What one look found, and what went wrong meanwhile.
struct Look {
    at: Instant,
    found: Result<Vec<GuestStats>, Failure>,
    trouble: String,
}

/// How it ends.
enum End {
    Quit,
    Signal(Signal),
    HungUp,
}

impl Top {
    /// Shows it.
    pub fn execute(self) -> Result<(), Failure> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let why = "top needs a terminal; for scripts there is 'posada stats --json'";
            return Err(Failure::Other(why.to_owned()));
        }
        let lost = |error: io::Error| Failure::Other(format!("the terminal is lost: {error}"));
        let signals = signals().map_err(|error| lost(error.into()))?;
        let (tell, looks) = mpsc::channel();
        let interval = Duration::from_secs(self.interval);
        thread::spawn(move || look_on(interval, &tell));
        let mut terminal = ratatui::try_init().map_err(lost)?;
        let ended = Screen::default().show(&mut terminal, &signals, &looks);
        ratatui::restore();
        match ended? {
            End::Quit => Ok(()),
            End::HungUp => Err(Failure::Other("the terminal is gone".to_owned())),
            End::Signal(signal) => process::exit((SIGNALLED + signal as u8).into()),
        }
    }
}

/// Those that end it and leave the terminal to be put in order, to be read; in every thread that there will be. After SIGHUP there is
/// none: it ends the process at once.
fn signals() -> nix::Result<SignalFd> {
    let ending: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    ending.thread_block()?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Waits for a key, a signal or a while; returns whether nobody is at the terminal any more. crossterm would try to read it for ever.
fn waits_in_vain() -> Result<bool, Failure> {
    let stdin = io::stdin();
    let mut terminal = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut terminal, PollTimeout::from(HEARING)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(Failure::Other(format!("the terminal is lost: {error}"))),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(terminal[0]
        .revents()
        .is_some_and(|events| events.intersects(gone)))
}

/// Looks at all guests again and again, until nobody wants to know. A guest that does not answer does not hold the keyboard up.
fn look_on(interval: Duration, tell: &Sender<Look>) {
    loop {
        let at = Instant::now();
        let mut trouble = String::new();
        let found = stats::all(|failure| trouble = failure.to_string());
        if tell.send(Look { at, found, trouble }).is_err() {
            return;
        }
        thread::sleep(interval.saturating_sub(at.elapsed()));
    }
}

/// What is known, and what of it the user wants to see.
struct Screen {
    guests: BTreeMap<String, History>,
    /// By its name, wherever it goes; the first if there is no such guest.
    chosen: String,
    order: Order,
    trouble: String,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            guests: BTreeMap::new(),
            chosen: String::new(),
            order: Order::Cpu,
            trouble: String::new(),
        }
    }
}

impl Screen {
    fn show(
        mut self,
        terminal: &mut DefaultTerminal,
        signals: &SignalFd,
        looks: &Receiver<Look>,
    ) -> Result<End, Failure> {
        let lost = |error: io::Error| Failure::Other(format!("the terminal is lost: {error}"));
        let colours = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let mut has_changed = true;
        loop {
            for Look { at, found, trouble } in looks.try_iter() {
                rates::look(&mut self.guests, found?, at);
                self.trouble = trouble;
                has_changed = true;
            }
            let mut guests: Vec<_> = self.guests.iter().collect();
            self.order.sort(&mut guests);
            let names: Vec<_> = guests.iter().map(|(name, _)| (*name).clone()).collect();
            let chosen = names.iter().position(|name| *name == self.chosen).unwrap_or(0);
            let view = View {
                guests,
                chosen,
                order: self.order,
                trouble: &self.trouble,
                colours,
            };
            if std::mem::take(&mut has_changed) {
                terminal.draw(|frame| view.draw(frame)).map_err(lost)?;
            }
            if let Ok(Some(info)) = signals.read_signal() {
                let signal = Signal::try_from(info.ssi_signo as i32);
                return Ok(End::Signal(signal.unwrap_or(Signal::SIGTERM)));
            }
            if waits_in_vain()? {
                return Ok(End::HungUp);
            }
            if !event::poll(Duration::ZERO).map_err(lost)? {
                continue;
            }
            has_changed = true;
            if let Event::Key(key) = event::read().map_err(lost)? {
                match (key.code, key.modifiers) {
                    (KeyCode::Char('q') | KeyCode::Esc, _) => return Ok(End::Quit),
                    (KeyCode::Char('c'), KeyModifiers::CONTROL) => return Ok(End::Quit),
                    (KeyCode::Up | KeyCode::Char('k'), _) => self.choose(names.get(chosen.saturating_sub(1))),
                    (KeyCode::Down | KeyCode::Char('j'), _) => self.choose(names.get(chosen + 1)),
                    (KeyCode::Char('s'), _) => self.order = self.order.next(),
                    _ => {}
                }
            }
        }
    }

    fn choose(&mut self, name: Option<&String>) {
        if let Some(name) = name {
            self.chosen.clone_from(name);
        }
    }
}

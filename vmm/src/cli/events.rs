//! `posada events`: what happens to guests, as it happens.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use clap::Args;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use vmm::control::{ControlError, EventStream};
use vmm::events::{self, Event, What};
use vmm::runtime::{self, RuntimeError};

use super::{Failure, completions};

pub const EXAMPLES: &str = "\
Examples:
  posada events
  posada events web                        also when it is started again
  posada events --json | jq -r 'select(.event == \"crashed\") | .guest'";

/// Until it is looked again whether somebody listens at a new socket, or whether a process is gone.
const RETRY: Duration = Duration::from_millis(5);
/// How often it is looked whether a process is gone whose connections are closed: it goes at once.
const LOOKS: u32 = 200;

/// Tells what happens to guests.
#[derive(Args)]
pub struct Events {
    /// Only these guests, whether they run or not [default: all]
    #[arg(value_name = "NAME", add = completions::guests())]
    names: Vec<String>,
    /// Print each event as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Events {
    /// Until nobody reads them any more.
    pub fn execute(self) -> Result<(), Failure> {
        let (told, events) = mpsc::channel();
        let guests = Guests::new(self.names, told)?;
        // Its end is this process's.
        thread::spawn(move || guests.listen());
        match print(&events, self.json) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::Other(format!("cannot print events: {error}")))
            }
            _ => Ok(()),
        }
    }
}

fn print(events: &Receiver<Result<Event, Failure>>, json: bool) -> io::Result<()> {
    let mut stdout = io::stdout();
    for event in events {
        match event {
            Ok(event) if json => writeln!(stdout, "{}", serde_json::to_string(&event)?)?,
            Ok(event) => writeln!(stdout, "{}", line(&event))?,
            Err(failure) => super::say(format_args!("posada: {failure}")),
        }
    }
    Ok(())
}

/// The guests that are listened to, each on a thread of its own.
struct Guests {
    /// In milliseconds since 1970: what was before is no news.
    since: u64,
    /// Those that are wanted; all if there are none.
    wanted: Vec<String>,
    told: Sender<Result<Event, Failure>>,
    place: PathBuf,
    changes: Inotify,
    /// Guests' directories, of which changes are told.
    watched: HashMap<WatchDescriptor, String>,
    listening: HashMap<String, JoinHandle<Option<SystemTime>>>,
}

impl Guests {
    /// Begins with those that run.
    fn new(wanted: Vec<String>, told: Sender<Result<Event, Failure>>) -> Result<Self, Failure> {
        let since = events::now_ms();
        let place = runtime::place().map_err(ControlError::from)?;
        let failed = |error| Failure::Other(format!("cannot watch '{}': {error}", place.display()));
        let changes = Inotify::init(InitFlags::IN_CLOEXEC).map_err(failed)?;
        changes
            .add_watch(&place, AddWatchFlags::IN_CREATE)
            .map_err(failed)?;
        let mut guests = Self {
            since,
            wanted,
            told,
            place,
            changes,
            watched: HashMap::new(),
            listening: HashMap::new(),
        };
        for name in runtime::names().map_err(ControlError::from)? {
            guests.watch(name);
        }
        Ok(guests)
    }

    /// Listens to those that are started, for ever.
    fn listen(mut self) {
        while let Ok(events) = self.changes.read_events() {
            for event in events {
                match self.watched.get(&event.wd).cloned() {
                    // A directory is used again when another guest of its name is started.
                    Some(name) if is_socket(event.name.as_deref()) => self.follow(name),
                    Some(_) if event.mask.contains(AddWatchFlags::IN_IGNORED) => {
                        self.watched.remove(&event.wd);
                    }
                    Some(_) => {}
                    None => {
                        let name = event.name.and_then(|name| name.into_string().ok());
                        name.into_iter().for_each(|name| self.watch(name));
                    }
                }
            }
        }
    }

    /// Watches the directory of a guest, and listens to the guest if it is there.
    fn watch(&mut self, name: String) {
        if !self.wanted.is_empty() && !self.wanted.contains(&name) {
            return;
        }
        // One that is gone again is of no interest.
        let directory = self.place.join(&name);
        if let Ok(watch) = self.changes.add_watch(&directory, AddWatchFlags::IN_CREATE) {
            self.watched.insert(watch, name.clone());
            if runtime::directory_of(&name).is_ok() {
                self.follow(name);
            }
        }
    }

    /// Listens to the guest of this name when all is told of the one before it, which may not be gone yet.
    fn follow(&mut self, name: String) {
        let before = self.listening.remove(&name);
        let (told, since) = (self.told.clone(), self.since);
        let thread = thread::Builder::new().spawn({
            let name = name.clone();
            move || {
                let before = before.and_then(|thread| thread.join().ok().flatten());
                let guest = Followed { name, since, told };
                guest.follow(before).or(before)
            }
        });
        match thread {
            Ok(thread) => drop(self.listening.insert(name, thread)),
            Err(error) => {
                let why = Failure::Other(format!("cannot listen to the guest '{name}': {error}"));
                let _ = self.told.send(Err(why));
            }
        }
    }
}

fn is_socket(name: Option<&OsStr>) -> bool {
    name.map(Path::new) == Some(Path::new(runtime::SOCKET))
}

/// A guest that is listened to.
struct Followed {
    name: String,
    /// That it was started before is no news.
    since: u64,
    told: Sender<Result<Event, Failure>>,
}

impl Followed {
    /// Passes the guest's events on until it has ended; returns when it began. One that began `before` has been followed already.
    fn follow(&self, before: Option<SystemTime>) -> Option<SystemTime> {
        let (mut stream, begun) = self.open(before)?;
        let mut is_over = false;
        let mut heard = false;
        loop {
            let event = match stream.wait() {
                Ok(Some(event)) => event,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.complain(format!(
                        "what the guest '{}' tells is no event: {error}",
                        self.name
                    ));
                    continue;
                }
                Ok(None) | Err(_) => break,
            };
            heard = true;
            is_over = matches!(event.what, What::Ended { .. } | What::Crashed { .. });
            // Fails when nobody reads any more.
            if (event.what != What::Started || event.at_ms >= self.since)
                && self.told.send(Ok(event)).is_err()
            {
                break;
            }
        }
        if heard && !is_over {
            self.tell_of_loss(begun);
        }
        Some(begun)
    }

    /// Listens, when the guest's process does.
    fn open(&self, before: Option<SystemTime>) -> Option<(EventStream, SystemTime)> {
        let begun = || runtime::begun(&self.name).filter(|begun| Some(*begun) != before);
        while let Some(begun_now) = begun() {
            match EventStream::open(&self.name) {
                Ok(stream) => return Some((stream, begun_now)),
                // A socket is there a moment before somebody listens at it.
                Err(ControlError::Runtime(RuntimeError::Unknown(_))) => thread::sleep(RETRY),
                // It has ended, or its process has before its guest ran.
                Err(_) if begun() != Some(begun_now) => {}
                Err(error) => {
                    let _ = self.told.send(Err(error.into()));
                    return None;
                }
            }
        }
        None
    }

    /// The connection is lost, and nothing was said of an end.
    fn tell_of_loss(&self, begun: SystemTime) {
        let is_gone = || {
            let is_there = runtime::begun(&self.name) == Some(begun);
            if is_there {
                thread::sleep(RETRY);
            }
            !is_there
        };
        if (0..LOOKS).any(|_| is_gone()) {
            let why = "its process was killed".to_owned();
            let _ = self.told.send(Ok(Event::now(&self.name, What::Crashed { why })));
        } else {
            self.complain(format!(
                "the guest '{}' runs, and tells no more events",
                self.name
            ));
        }
    }

    fn complain(&self, why: String) {
        // Fails when nobody reads any more.
        let _ = self.told.send(Err(Failure::Other(why)));
    }
}

/// An event for a person to read.
fn line(event: &Event) -> String {
    let what = match &event.what {
        What::Started => "started".to_owned(),
        What::Paused => "paused".to_owned(),
        What::Resumed => "resumed".to_owned(),
        What::Snapshot { directory } => format!("snapshot in '{directory}'"),
        What::Rewound { directory } => format!("went back to '{directory}'"),
        What::Stopping => "is to shut down".to_owned(),
        What::Ended { why } => why.clone(),
        What::Crashed { why } => format!("crashed: {why}"),
        What::Lost { count } => format!("{count} events are left out: they were printed too slowly"),
    };
    format!("{}  {}  {what}", time(event.at_ms), event.guest)
}

/// A time in milliseconds since 1970, as RFC 3339 has it, in UTC.
fn time(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = date(seconds / 86_400);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The Gregorian date of a day, counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Years that begin in March have their leap days at their ends; an era is 400 years, 146,097 days.
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153; // from March on
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year_of_era + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date_u() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000 + 7), expected);
        }
    }

    #[test]
    fn an_event_is_a_sentence() {
        let event = Event {
            guest: "web".to_owned(),
            at_ms: 0,
            what: What::Crashed {
                why: "its kernel panicked".to_owned(),
            },
        };
        assert_eq!(
            line(&event),
            "1970-01-01T00:00:00Z  web  crashed: its kernel panicked"
        );
    }
}

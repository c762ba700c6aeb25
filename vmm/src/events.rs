//! What happens to a guest, told to everybody who listens.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};

use crate::console::End;

/// Events that wait for who is slow. Of older ones he is told how many he has missed.
const QUEUE: usize = 64;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// To the guest of this name.
    pub guest: String,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

impl Event {
    /// It has happened now.
    pub fn now(guest: &str, what: What) -> Self {
        Self::ago(guest, Duration::ZERO, what)
    }

    fn ago(guest: &str, age: Duration, what: What) -> Self {
        let age = age.as_millis().try_into().unwrap_or(u64::MAX);
        Self {
            guest: guest.to_owned(),
            at_ms: now_ms().saturating_sub(age),
            what,
        }
    }
}

/// Milliseconds since 1970 (UTC).
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let since_1970 = since_1970.unwrap_or_default().as_millis();
    since_1970.try_into().unwrap_or(u64::MAX)
}

/// What can happen to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum What {
    /// It has begun to run, from its beginning or from a snapshot.
    Started,
    /// Its user has it rest.
    Paused,
    /// Its user has it go on.
    Resumed,
    /// A snapshot of it is there.
    Snapshot {
        /// Where.
        directory: String,
    },
    /// It is where it was at a snapshot.
    Rewound {
        /// Which one.
        directory: String,
    },
    /// Its power button has been pressed.
    Stopping,
    /// It has ended.
    Ended {
        /// How.
        why: String,
    },
    /// It cannot go on.
    Crashed {
        /// Why not.
        why: String,
    },
    /// Who listens has been too slow.
    Lost {
        /// For so many events.
        count: u64,
    },
}

impl From<&End> for What {
    fn from(end: &End) -> Self {
        let why = end.why();
        match end.is_crash() {
            true => Self::Crashed { why },
            false => Self::Ended { why },
        }
    }
}

/// What there is to tell of one guest.
pub struct Events {
    guest: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Made for the first who listens.
    sender: Option<Sender<Event>>,
    /// That it was started, for those who come later.
    started: Option<Event>,
    over: bool,
}

impl Events {
    /// Of a guest of this name.
    pub fn new(guest: String) -> Self {
        Self {
            guest,
            state: Mutex::default(),
        }
    }

    /// Tells that something has happened, without waiting for anybody.
    pub fn tell(&self, what: What) {
        self.tell_at(Duration::ZERO, what);
    }

    /// Tells that the guest was started so long ago.
    pub fn tell_of_start(&self, age: Duration) {
        self.tell_at(age, What::Started);
    }

    fn tell_at(&self, age: Duration, what: What) {
        let mut state = self.state();
        let is_start = what == What::Started;
        if state.sender.is_none() && !is_start {
            return;
        }
        let event = Event::ago(&self.guest, age, what);
        if is_start {
            state.started = Some(event.clone());
        }
        if let Some(sender) = &state.sender {
            // Fails when nobody listens any more.
            let _ = sender.send(event);
        }
    }

    /// Nothing will happen any more: who listens hears the rest, and that.
    pub fn close(&self) {
        let mut state = self.state();
        state.sender = None;
        state.over = true;
    }

    /// Listens. The first that is heard is that the guest was started, if it has been.
    pub fn listen(&self) -> Listener {
        let mut state = self.state();
        let receiver = match state.over {
            true => broadcast::channel(1).1,
            false => state.sender.get_or_insert_with(|| Sender::new(QUEUE)).subscribe(),
        };
        Listener {
            guest: self.guest.clone(),
            started: state.started.clone(),
            receiver,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who listens.
pub struct Listener {
    guest: String,
    started: Option<Event>,
    receiver: Receiver<Event>,
}

impl Listener {
    /// Waits for the next event, or `None` if there are no more.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(started) = self.started.take() {
            return Some(started);
        }
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(count)) => Some(Event::now(&self.guest, What::Lost { count })),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// What is heard by now.
    fn heard(listener: &mut Listener) -> Poll<Option<What>> {
        let next = pin!(listener.next()).poll(&mut Context::from_waker(Waker::noop()));
        next.map(|event| event.map(|event| event.what))
    }

    fn is(what: What) -> Poll<Option<What>> {
        Poll::Ready(Some(what))
    }

    #[test]
    fn who_comes_late_hears_of_the_start_and_of_all_that_follows_until_the_end() {
        let events = Events::new("web".to_owned());
        events.tell_of_start(Duration::from_secs(1));
        events.tell(What::Paused);
        let mut listener = events.listen();
        assert_eq!(heard(&mut listener), is(What::Started));
        assert_eq!(heard(&mut listener), Poll::Pending);
        events.tell(What::Resumed);
        events.close();
        assert_eq!(heard(&mut listener), is(What::Resumed));
        assert_eq!(heard(&mut listener), Poll::Ready(None));
        let mut too_late = events.listen();
        assert_eq!(heard(&mut too_late), is(What::Started));
        assert_eq!(heard(&mut too_late), Poll::Ready(None));
    }

    #[test]
    fn who_is_slow_is_told_how_many_are_lost() {
        let events = Events::new("web".to_owned());
        let mut listener = events.listen();
        for _ in 0..QUEUE + 3 {
            events.tell(What::Paused);
        }
        assert_eq!(heard(&mut listener), is(What::Lost { count: 3 }));
        for _ in 0..QUEUE {
            assert_eq!(heard(&mut listener), is(What::Paused));
        }
        assert_eq!(heard(&mut listener), Poll::Pending);
    }

    #[test]
    fn an_event_is_a_flat_object() {
        let event = Event {
            guest: "web".to_owned(),
            at_ms: 7,
            what: What::Snapshot {
                directory: "/s".to_owned(),
            },
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"guest":"web","at_ms":7,"event":"snapshot","directory":"/s"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}

//! The guest's console as all have it who watch: what it prints goes to its output and to any number of watchers; what any of them
//! types goes to the guest.
//!
//! The vCPU that prints waits for no watcher. It leaves what it prints in a ring, from which each watcher reads as fast as he can;
//! for one that is too slow, the oldest bytes are gone, and he is told how many. Who waits says so, and only then is he told of more:
//! without watchers, a byte that is printed costs a lock that nobody else wants.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use devices::serial::SerialPort;
use tokio::sync::Notify;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::vm::eventfd;

/// Bytes of output that are kept for watchers: a few hundred lines for who comes, and time for who is slow.
const SCROLLBACK: usize = 64 << 10;
/// Bytes that a watcher is given at once.
const PIECE: usize = 16 << 10;
/// Bytes of input that wait for the guest; more waits where it comes from.
const TYPED: usize = 4096;

/// What the guest has printed last.
struct Scrollback {
    bytes: VecDeque<u8>,
    /// How many bytes it has printed in all.
    printed: u64,
    /// It will print no more.
    over: bool,
    /// A watcher waits for more.
    awaited: bool,
}

impl Scrollback {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.bytes.len() == SCROLLBACK {
                self.bytes.pop_front();
            }
            self.bytes.push_back(*byte);
        }
        self.printed += bytes.len() as u64;
    }

    /// The position of the oldest byte.
    fn start(&self) -> u64 {
        self.printed - self.bytes.len() as u64
    }

    /// What follows `position`, as far as it fits into a piece.
    fn from(&self, position: u64) -> Vec<u8> {
        let skipped = (position - self.start()) as usize;
        let (older, newer) = self.bytes.as_slices();
        let newer = newer
            .get(skipped.saturating_sub(older.len())..)
            .unwrap_or_default();
        let older = older.get(skipped..).unwrap_or_default();
        let mut piece = Vec::with_capacity(PIECE.min(older.len() + newer.len()));
        piece.extend_from_slice(&older[..older.len().min(PIECE)]);
        piece.extend_from_slice(&newer[..newer.len().min(PIECE - piece.len())]);
        piece
    }
}

/// The middle between one guest's serial console and those who watch it.
pub struct Hub {
    output: Mutex<Scrollback>,
    /// Told when the guest has printed something that is awaited, or has ended.
    printed: Notify,
    typed: Mutex<VecDeque<u8>>,
    /// Readable when there is input that came since it was read.
    arrived: EventFd,
    /// Told when the guest has taken input.
    taken: Notify,
}

impl Hub {
    /// Of a guest that has printed nothing.
    ///
    /// # Errors
    /// The host refuses an eventfd.
    pub fn new() -> Result<Self, Error> {
        let nothing = Scrollback {
            bytes: VecDeque::with_capacity(SCROLLBACK),
            printed: 0,
            over: false,
            awaited: false,
        };
        Ok(Self {
            output: Mutex::new(nothing),
            printed: Notify::new(),
            typed: Mutex::default(),
            arrived: eventfd()?,
            taken: Notify::new(),
        })
    }

    /// What the serial port is to print to: watchers see it, and it goes to `output`.
    pub fn printer(self: &Arc<Self>, output: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Printer {
            hub: self.clone(),
            output,
        })
    }

    /// Somebody who watches, from the oldest byte on that is there.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher {
            hub: self.clone(),
            position: self.output().start(),
        }
    }

    /// The guest has ended: watchers see the rest, and the end.
    pub fn close(&self) {
        self.change(|output| output.over = true);
    }

    /// Changes what is to be seen, and tells those who wait for it.
    fn change(&self, change: impl FnOnce(&mut Scrollback)) {
        let mut output = self.output();
        change(&mut output);
        let awaited = std::mem::take(&mut output.awaited);
        drop(output);
        if awaited {
            self.printed.notify_waiters();
        }
    }

    /// Becomes readable when somebody has typed something.
    pub fn arrived(&self) -> &EventFd {
        &self.arrived
    }

    /// Hands the guest what has been typed, as far as it takes it.
    pub fn feed(&self, serial: &SerialPort) {
        let mut typed = self.typed();
        let taken = serial.feed(typed.make_contiguous());
        if taken > 0 {
            typed.drain(..taken);
            self.taken.notify_waiters();
        }
    }

    /// Takes input for the guest, as much as there is room for; returns how much.
    fn accept(&self, input: &[u8]) -> usize {
        let mut typed = self.typed();
        let taken = input.len().min(TYPED - typed.len());
        typed.extend(input.iter().take(taken));
        // Fails only when the counter is full, and then it is already readable.
        let _ = self.arrived.write(1);
        taken
    }

    fn output(&self) -> MutexGuard<'_, Scrollback> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn typed(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The serial port's way to the hub.
struct Printer {
    hub: Arc<Hub>,
    output: Box<dyn Write + Send>,
}

impl Write for Printer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Watchers first: the output may be stuck, and they see why.
        self.hub.change(|output| output.push(bytes));
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Somebody who sees what the guest prints, and types.
pub struct Watcher {
    hub: Arc<Hub>,
    position: u64,
}

/// What a watcher sees next.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// This.
    Output(Vec<u8>),
    /// Nothing of so many bytes: they are gone.
    Lost(u64),
}

impl Watcher {
    /// Waits for what comes next, or `None` when the guest has ended.
    pub async fn next(&mut self) -> Option<Seen> {
        let hub = self.hub.clone();
        loop {
            // Before it is looked: it hears of what is printed from now on.
            let printed = hub.printed.notified();
            if let Poll::Ready(seen) = self.look() {
                return seen;
            }
            printed.await;
        }
    }

    /// What there is to be seen, or `None` when the guest has ended. Of what is not there yet, the watcher is to be told.
    fn look(&mut self) -> Poll<Option<Seen>> {
        let mut output = self.hub.output();
        let lost = output.start().saturating_sub(self.position);
        if lost > 0 {
            self.position = output.start();
            return Poll::Ready(Some(Seen::Lost(lost)));
        }
        let bytes = output.from(self.position);
        if !bytes.is_empty() {
            self.position += bytes.len() as u64;
            return Poll::Ready(Some(Seen::Output(bytes)));
        }
        output.awaited = !output.over;
        match output.over {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    /// Who types here.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard(self.hub.clone())
    }
}

/// A watcher's way to the guest.
pub struct Keyboard(Arc<Hub>);

impl Keyboard {
    /// Types, and waits until all of it is on its way.
    pub async fn enter(&self, mut input: &[u8]) {
        while !input.is_empty() {
            // Before it is tried: it hears of room that there is from now on.
            let taken = self.0.taken.notified();
            let accepted = self.0.accept(input);
            input = input.get(accepted..).unwrap_or_default();
            if !input.is_empty() {
                taken.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn hub() -> (Arc<Hub>, Box<dyn Write + Send>) {
        let hub = Arc::new(Hub::new().unwrap());
        let printer = hub.printer(Box::new(io::sink()));
        (hub, printer)
    }

    /// What a future has come to by now.
    fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn output(bytes: &[u8]) -> Poll<Option<Seen>> {
        Poll::Ready(Some(Seen::Output(bytes.to_vec())))
    }

    #[test]
    fn each_watcher_sees_what_was_there_and_what_comes_and_the_end() {
        let (hub, mut printer) = hub();
        printer.write_all(b"before ").unwrap();
        let mut watchers = [hub.watch(), hub.watch()];
        printer.write_all(b"after").unwrap();
        for watcher in &mut watchers {
            assert_eq!(now(watcher.next()), output(b"before after"));
            assert_eq!(now(watcher.next()), Poll::Pending);
        }
        printer.write_all(b".").unwrap();
        hub.close();
        for mut watcher in watchers {
            assert_eq!(now(watcher.next()), output(b"."));
            assert_eq!(now(watcher.next()), Poll::Ready(None));
        }
    }

    #[test]
    fn who_is_too_slow_is_told_how_much_is_gone() {
        let (hub, mut printer) = hub();
        printer.write_all(b"seen").unwrap();
        let mut watcher = hub.watch();
        assert_eq!(now(watcher.next()), output(b"seen"));
        printer.write_all(b"gone").unwrap();
        printer.write_all(&[b'x'; SCROLLBACK]).unwrap();
        assert_eq!(now(watcher.next()), Poll::Ready(Some(Seen::Lost(4))));
        for _ in 0..SCROLLBACK / PIECE {
            assert_eq!(now(watcher.next()), output(&[b'x'; PIECE]));
        }
        assert_eq!(now(watcher.next()), Poll::Pending);
    }

    #[test]
    fn who_waits_is_woken_by_what_is_printed_and_by_nothing_else() {
        let (hub, mut printer) = hub();
        let [mut waits, mut later] = [hub.watch(), hub.watch()];
        {
            let mut waiting = [pin!(waits.next()), pin!(later.next())];
            let mut poll = || {
                let mut context = Context::from_waker(Waker::noop());
                waiting
                    .each_mut()
                    .map(|waiting| waiting.as_mut().poll(&mut context))
            };
            assert_eq!(poll(), [Poll::Pending, Poll::Pending]);
            assert!(hub.output().awaited);
            printer.write_all(b"x").unwrap();
            assert_eq!(poll(), [output(b"x"), output(b"x")]);
        }
        printer.write_all(b"y").unwrap();
        assert!(!hub.output().awaited, "nobody waits");
        assert_eq!(now(waits.next()), output(b"y"));
    }

    #[test]
    fn the_ring_does_not_grow() {
        let (hub, mut printer) = hub();
        let room = hub.output().bytes.capacity();
        for _ in 0..3 {
            printer.write_all(&[b'x'; SCROLLBACK]).unwrap();
        }
        assert_eq!(hub.output().bytes.capacity(), room);
    }

    #[test]
    fn who_types_more_than_the_guest_takes_waits() {
        let (hub, _) = hub();
        let keyboard = hub.watch().keyboard();
        assert_eq!(now(keyboard.enter(b"x")), Poll::Ready(()));
        assert_eq!(now(keyboard.enter(&[b'y'; TYPED])), Poll::Pending);
        assert_eq!(hub.typed().len(), TYPED);
        assert_eq!(hub.arrived().read().unwrap(), 2);
    }
}

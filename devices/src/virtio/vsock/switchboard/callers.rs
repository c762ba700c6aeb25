//! Host programs that call the guest: taken in, and heard until they have said which of the guest's ports they want.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet};

use super::super::super::{forget, watch};
use super::super::host::{Greeting, Handshake};
use super::super::token;
use super::HostSide;

/// Host programs that have connected and not said to which port. When another comes, the one that is silent for longest is
/// hung up on. A busy host may let a crowd connect before it lets one of it go on.
const MAX_HANDSHAKES: usize = 128;
/// Host programs taken in one turn.
const ACCEPTS_A_TURN: usize = 16;

pub(super) struct Callers {
    host: Arc<HostSide>,
    handshakes: [Option<Handshake>; MAX_HANDSHAKES],
    /// Which of them comes next; where one is there, it is the oldest.
    next: usize,
    listening: bool,
}

impl Callers {
    pub(super) fn new(host: Arc<HostSide>) -> Self {
        Self {
            host,
            handshakes: [const { None }; MAX_HANDSHAKES],
            next: 0,
            listening: false,
        }
    }

    /// Takes host programs in from now on.
    pub(super) fn listen(&mut self, ops: &mut EventOps) {
        if !self.listening {
            watch(ops, &self.host.listener, EventSet::IN, token::LISTENER);
            self.listening = true;
        }
    }

    /// The event loop waits for nothing any more.
    pub(super) fn forget_watched(&mut self) {
        self.listening = false;
    }

    /// Has the event loop wait for everybody, after it has waited for nothing.
    pub(super) fn watch_all(&mut self, ops: &mut EventOps) {
        self.listen(ops);
        for (number, handshake) in (0u32..).zip(&self.handshakes) {
            if let Some(handshake) = handshake {
                watch(ops, handshake.socket(), EventSet::IN, token::HANDSHAKES + number);
            }
        }
    }

    /// Host programs have connected. When they cannot be taken in, it is [listened](Self::listen) no longer.
    ///
    /// # Errors
    /// The host has no descriptor left, or no memory.
    pub(super) fn accept(&mut self, ops: &mut EventOps) -> io::Result<()> {
        for _ in 0..ACCEPTS_A_TURN {
            match self.host.listener.accept() {
                Ok((socket, _)) => self.greet(Handshake::new(socket), ops),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Until a connection ends there is no use in trying again.
                    self.refuse(ops);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.listening) {
            forget(ops, &self.host.listener);
        }
    }

    fn greet(&mut self, handshake: Handshake, ops: &mut EventOps) {
        let number = self.next;
        self.next = (number + 1) % MAX_HANDSHAKES;
        self.end(number, ops);
        watch(
            ops,
            handshake.socket(),
            EventSet::IN,
            token::HANDSHAKES + number as u32,
        );
        self.handshakes[number] = Some(handshake);
    }

    fn end(&mut self, number: usize, ops: &mut EventOps) -> Option<Handshake> {
        let handshake = self.handshakes.get_mut(number)?.take()?;
        forget(ops, handshake.socket());
        Some(handshake)
    }

    /// A host program has said something: returns its socket when it is clear which port it wants, and which. One that talks
    /// nonsense is hung up on.
    pub(super) fn hear(&mut self, number: usize, ops: &mut EventOps) -> Option<(UnixStream, u32)> {
        let port = match self.handshakes.get_mut(number)?.as_mut()?.read() {
            Greeting::Unfinished => return None,
            Greeting::Port(port) => Some(port),
            Greeting::Nonsense => None,
        };
        let handshake = self.end(number, ops)?;
        // One that is hung up on leaves its descriptor for another.
        self.listen(ops);
        Some((handshake.into_socket(), port?))
    }

    /// Hangs up on everybody.
    pub(super) fn close(&mut self, ops: &mut EventOps) {
        self.refuse(ops);
        for number in 0..MAX_HANDSHAKES {
            self.end(number, ops);
        }
    }
}

//! One stream between a port of the guest's and a Unix socket of the host's.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::super::Chain;
use super::backlog::{Backlog, would_block};
use super::credit::{BUFFER, FromGuest, ToGuest};
use super::packet::{HEADER_SIZE, Header, op, shutdown};
use super::socket;

/// Most bytes of data in one packet to the guest: what Linux takes for the largest (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
const MAX_DATA: u32 = 64 << 10;

/// By which ports a connection is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub guest_port: u32,
    pub host_port: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A host program waits for the guest to accept.
    Asked,
    Open,
    /// The guest has closed it and the connection is not known any more; the host program has not read everything.
    Draining,
}

/// Packets that the guest is to get.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    shutdown: bool,
    credit_update: bool,
    credit_request: bool,
}

/// What has become of a packet of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// The guest has closed its end for good.
    Closed,
    /// The guest breaks the rules, in this way: the connection is to be reset.
    Broken(&'static str),
}

pub struct Connection {
    pub key: Key,
    pub phase: Phase,
    /// Waits in the line for a buffer of the guest's.
    pub in_line: bool,
    /// What the event loop waits for.
    pub watched: Option<EventSet>,
    /// Gone with the host program.
    socket: Option<UnixStream>,
    /// The socket may have data, or its end.
    readable: bool,
    hung_up: bool,
    due: Due,
    to_guest: ToGuest,
    from_guest: FromGuest,
    backlog: Backlog,
    /// What the guest, and what the host program, will not do any more: flags of SHUTDOWN.
    guest_shutdown: u32,
    host_shutdown: u32,
}

impl Connection {
    /// A host program's, which the guest is to be asked to accept.
    pub fn asking(key: Key, socket: UnixStream) -> Self {
        Self::new(key, socket, Phase::Asked)
    }

    /// A guest's, which a host program has accepted.
    pub fn accepted(key: Key, socket: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(key, socket, Phase::Open);
        connection.to_guest.update(request);
        connection
    }

    fn new(key: Key, socket: UnixStream, phase: Phase) -> Self {
        Self {
            key,
            phase,
            in_line: false,
            watched: None,
            socket: Some(socket),
            readable: false,
            hung_up: false,
            due: Due {
                request: phase == Phase::Asked,
                response: phase == Phase::Open,
                ..Default::default()
            },
            to_guest: ToGuest::default(),
            from_guest: FromGuest::default(),
            backlog: Backlog::default(),
            guest_shutdown: 0,
            host_shutdown: 0,
        }
    }

    pub fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref()
    }

    /// Whether the guest has heard of it.
    pub fn is_known_to_guest(&self) -> bool {
        !self.due.request
    }

    /// Whether there is a packet for the guest, as far as one can tell without reading the socket.
    pub fn has_packet(&self) -> bool {
        let due = &self.due;
        due.request
            || due.response
            || due.shutdown
            || due.credit_update
            || due.credit_request
            || self.may_read()
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Open && self.readable && !self.reading_is_over() && self.to_guest.room() > 0
    }

    fn reading_is_over(&self) -> bool {
        self.host_shutdown & shutdown::SEND != 0 || self.guest_shutdown & shutdown::RECEIVE != 0
    }

    /// What the event loop is to wait for, given whether the guest has buffers; `None`: nothing, not even a hang-up, which
    /// epoll tells again and again.
    pub fn interest(&self, guest_has_buffers: bool) -> Option<EventSet> {
        if self.host_is_gone() {
            return None;
        }
        let writing = if self.backlog.is_empty() {
            EventSet::empty()
        } else {
            EventSet::OUT
        };
        let held_up = self.to_guest.room() == 0 || self.readable && !guest_has_buffers;
        match self.phase {
            Phase::Asked => Some(EventSet::empty()),
            Phase::Draining => Some(EventSet::OUT),
            Phase::Open if self.reading_is_over() => Some(writing),
            Phase::Open if held_up => Some(writing).filter(|set| !set.is_empty()),
            Phase::Open => Some(writing | EventSet::IN),
        }
    }

    /// Whether the host program neither reads nor writes any more.
    pub fn host_is_gone(&self) -> bool {
        self.host_shutdown == shutdown::BOTH
    }

    /// Gives the socket up; to be called when nobody waits for it.
    pub fn close_socket(&mut self) {
        self.socket = None;
        self.backlog.clear();
    }

    /// Something has happened to the socket.
    pub fn handle(&mut self, events: EventSet) {
        self.flush();
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= self.hung_up || events.contains(EventSet::IN);
        if self.reading_is_over() && self.hung_up {
            self.stop_host(shutdown::BOTH);
        }
    }

    /// Whether all that the guest has sent is with the host program, or there is none.
    pub fn is_drained(&self) -> bool {
        self.backlog.is_empty() || self.host_is_gone()
    }

    /// Sends what is left, and once that is done, the end of it.
    pub fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        if self.backlog.is_empty() {
            return;
        }
        match self.backlog.flush(socket) {
            Ok(sent) => self.forwarded(sent),
            // It does not read any more; it may have written something before.
            Err(_) => self.stop_reading_host(),
        }
        if self.backlog.is_empty() && self.guest_shutdown & shutdown::SEND != 0 {
            self.shut(Shutdown::Write);
        }
    }

    /// Takes a packet of the guest's for this connection, which `chain` holds.
    pub fn take(&mut self, header: &Header, chain: &Chain) -> Verdict {
        self.to_guest.update(header);
        if self.to_guest.room() > 0 && !self.reading_is_over() && self.watched_for(EventSet::IN).is_none() {
            // Reading was given up for want of room.
            self.readable = true;
        }
        match (header.op, self.phase) {
            (op::RESPONSE, Phase::Asked) if self.is_known_to_guest() => {
                self.open();
                Verdict::Fine
            }
            (op::RW, Phase::Open) => self.take_data(header.len, chain),
            (op::SHUTDOWN, Phase::Open) => self.take_shutdown(header.flags),
            (op::CREDIT_UPDATE, Phase::Open) => Verdict::Fine,
            (op::CREDIT_REQUEST, Phase::Open) => {
                self.due.credit_update = true;
                Verdict::Fine
            }
            (op::REQUEST, _) => Verdict::Broken("it asks for a connection that there is already"),
            (op::RW..=op::CREDIT_REQUEST | op::RESPONSE | op::SHUTDOWN, _) => {
                Verdict::Broken("a packet before or after its time")
            }
            _ => Verdict::Broken("a packet of an unknown operation"),
        }
    }

    fn watched_for(&self, set: EventSet) -> Option<EventSet> {
        self.watched.filter(|watched| watched.contains(set))
    }

    /// The guest has accepted: the host program hears so (as it does from Firecracker).
    fn open(&mut self) {
        self.phase = Phase::Open;
        self.readable = true;
        let answer = format!("OK {}\n", self.key.host_port);
        if let Some(socket) = &self.socket {
            self.backlog.add(answer.as_bytes());
            if self.backlog.flush(socket).is_err() {
                self.stop_reading_host();
            }
        }
    }

    /// §5.10.6.3: a guest that keeps to its credit never has more on its way than [`BUFFER`].
    fn take_data(&mut self, len: u32, chain: &Chain) -> Verdict {
        if self.guest_shutdown & shutdown::SEND != 0 {
            return Verdict::Broken("data behind their end");
        }
        if len > BUFFER.saturating_sub(self.backlog.len()) {
            return Verdict::Broken("data without credit");
        }
        let mut sent = 0;
        match &self.socket {
            Some(socket) if self.host_shutdown & shutdown::RECEIVE == 0 => {
                if self.backlog.is_empty() {
                    match socket::send(socket, chain, HEADER_SIZE, len) {
                        Ok(count) => sent = count,
                        Err(error) if would_block(&error) => {}
                        Err(_) => {
                            self.stop_reading_host();
                            sent = len;
                        }
                    }
                }
            }
            // Nobody reads it.
            _ => sent = len,
        }
        if sent < len {
            self.backlog.add_from(chain, HEADER_SIZE + sent, len - sent);
        }
        self.forwarded(sent);
        Verdict::Fine
    }

    fn take_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown == shutdown::BOTH {
            return Verdict::Closed;
        }
        if flags & shutdown::RECEIVE != 0 {
            self.shut(Shutdown::Read);
        }
        if flags & shutdown::SEND != 0 && self.backlog.is_empty() {
            self.shut(Shutdown::Write);
        }
        Verdict::Fine
    }

    /// Writes the next packet's data to `chain`, which has room behind a header; returns its header but for the CIDs
    /// and the type. An error is the socket's.
    pub fn fill(&mut self, chain: &Chain) -> io::Result<Option<Header>> {
        let mut len = 0;
        let mut op = self.next_control();
        if op.is_none() && self.may_read() {
            len = self.read(chain)?;
            op = if len > 0 {
                Some(op::RW)
            } else {
                self.next_control()
            };
        }
        let credit_update = std::mem::take(&mut self.due.credit_update).then_some(op::CREDIT_UPDATE);
        let Some(op) = op.or(credit_update) else {
            return Ok(None);
        };
        let mut header = Header {
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            op,
            flags: if op == op::SHUTDOWN { self.host_shutdown } else { 0 },
            ..Default::default()
        };
        self.from_guest.tell(&mut header);
        Ok(Some(header))
    }

    /// The packet without data that is due, other than a credit update, which every packet is.
    fn next_control(&mut self) -> Option<u16> {
        let due = &mut self.due;
        [
            (&mut due.request, op::REQUEST),
            (&mut due.response, op::RESPONSE),
            (&mut due.shutdown, op::SHUTDOWN),
            (&mut due.credit_request, op::CREDIT_REQUEST),
        ]
        .into_iter()
        .find_map(|(due, op)| std::mem::take(due).then_some(op))
    }

    /// Reads from the socket as much as there is and fits. At its end the guest is to be told of that.
    fn read(&mut self, chain: &Chain) -> io::Result<u32> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let room = (chain.writable_len() - HEADER_SIZE)
            .min(self.to_guest.room())
            .min(MAX_DATA);
        match socket::receive(socket, chain, HEADER_SIZE, room) {
            Ok(0) => {
                self.readable = false;
                self.stop_host(if self.hung_up {
                    shutdown::BOTH
                } else {
                    shutdown::SEND
                });
                Ok(0)
            }
            Ok(len) => {
                // Less than asked for: there is no more, and the event loop tells when there is.
                self.readable = len == room;
                self.to_guest.sent(len);
                self.due.credit_request |= self.to_guest.room() == 0 && self.to_guest.ask();
                Ok(len)
            }
            Err(error) if would_block(&error) => {
                self.readable = false;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn forwarded(&mut self, bytes: u32) {
        self.from_guest.forwarded(bytes);
        self.due.credit_update |= self.from_guest.is_news();
    }

    fn stop_reading_host(&mut self) {
        let lost = self.backlog.len();
        self.backlog.clear();
        self.forwarded(lost);
        self.stop_host(shutdown::RECEIVE);
    }

    /// The host program will not do this any more, and the guest is to know.
    fn stop_host(&mut self, flags: u32) {
        self.due.shutdown |= self.host_shutdown | flags != self.host_shutdown;
        self.host_shutdown |= flags;
    }

    fn shut(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            // Fails for a socket whose other end is gone, which the event loop tells.
            let _ = socket.shutdown(how);
        }
    }
}

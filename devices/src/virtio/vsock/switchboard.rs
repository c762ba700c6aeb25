//! Connects streams: takes the guest's packets, the host programs' calls and the sockets' events, and knows which packet
//! the guest is to get next.
//!
//! All that waits for a buffer of the guest's is bounded: a connection is in the line once, and when resets of connections
//! that do not exist pile up, no more packets of the guest's are taken (§5.10.6.1.2).

mod callers;
mod watching;

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use event_manager::{EventOps, EventSet};
use tracing::debug;

use super::super::{Chain, Interrupt, Trouble};
use super::connection::{Connection, Key, Phase, Verdict};
use super::counts::Counts;
use super::host::connect_to_port;
use super::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use super::table::Table;
use callers::Callers;
use watching::set_watched;

/// Resets that may wait before the guest's packets have to.
const MAX_RESETS: usize = 64;
/// What a device has of the host.
pub struct HostSide {
    pub listener: UnixListener,
    pub path: PathBuf,
}

/// By which CIDs the guest is known.
#[derive(Clone, Copy)]
pub struct Cids {
    pub guest: u64,
    /// Its CID before it was restored. Packets that it had on their way then are of streams that are gone.
    pub former: Option<u64>,
}

pub struct Switchboard {
    host: Arc<HostSide>,
    cids: Cids,
    interrupt: Arc<dyn Interrupt>,
    table: Table,
    /// The connections that have a packet for the guest, in the order in which they get a buffer.
    line: VecDeque<usize>,
    /// Resets for the guest that are no connection's.
    resets: VecDeque<Header>,
    callers: Callers,
    guest_has_buffers: bool,
    counts: Arc<Counts>,
}

impl Switchboard {
    pub fn new(host: Arc<HostSide>, cids: Cids, interrupt: Arc<dyn Interrupt>, counts: Arc<Counts>) -> Self {
        Self {
            callers: Callers::new(host.clone()),
            host,
            cids,
            interrupt,
            table: Table::default(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            guest_has_buffers: true,
            counts,
        }
    }

    /// Whether something waits for a buffer of the guest's.
    pub fn has_packets(&self) -> bool {
        !self.line.is_empty() || !self.resets.is_empty()
    }

    /// Whether another packet of the guest's can be taken, whatever has to be answered.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether the guest's receive queue has buffers: sockets are not waited for while it has none.
    pub fn set_guest_has_buffers(&mut self, has: bool) {
        self.guest_has_buffers = has;
    }

    /// Takes the guest's packet in `chain`.
    pub fn take_packet(&mut self, chain: &Chain, ops: &mut EventOps) {
        self.counts.tx_packets.add(1);
        let mut bytes = [0; HEADER_SIZE as usize];
        if !chain.read(0, &mut bytes) {
            return self.complain("a packet that is shorter than its header");
        }
        let header = Header::from_bytes(&bytes);
        if header.len > chain.readable_len() - HEADER_SIZE {
            return self.complain("a packet that is shorter than its header says");
        }
        // §5.10.6.4: it is nobody else's to send, and there is nobody else to send to.
        if header.src_cid != self.cids.guest || header.dst_cid != HOST_CID {
            if Some(header.src_cid) == self.cids.former {
                return;
            }
            return self.complain("a packet from or to a CID that is not the guest's or the host's");
        }
        if header.kind != TYPE_STREAM {
            self.complain("a packet for a socket that is no stream");
            return self.refuse(&header);
        }
        let key = Key {
            guest_port: header.src_port,
            host_port: header.dst_port,
        };
        match (self.table.find(key), header.op) {
            (None, op::REQUEST) => self.connect(key, &header, ops),
            (None, _) => self.refuse(&header),
            (Some(number), op::RST) => self.remove(number, ops),
            (Some(number), _) => self.pass_on(number, &header, chain, ops),
        }
    }

    fn complain(&self, what: &str) {
        let what = format_args!("the guest sends {what}");
        self.interrupt.report(Trouble::Guest, &what);
    }

    /// The answer to a packet of no connection's (§5.10.6.5), unless that is such an answer itself.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.counts.refusals.add(1);
            self.resets.push_back(Header {
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Default::default()
            });
        }
    }

    /// The guest calls a host program.
    fn connect(&mut self, key: Key, request: &Header, ops: &mut EventOps) {
        let connection = match connect_to_port(&self.host.path, key.host_port) {
            Ok(socket) => Connection::accepted(key, socket, request),
            Err(error) => {
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    self.report_host("cannot connect the guest to a host program", &error);
                }
                debug!("the guest asks for port {} of the host: {error}", key.host_port);
                return self.refuse(request);
            }
        };
        if self.insert(connection, ops).is_none() {
            self.refuse(request);
        }
    }

    fn report_host(&self, what: &str, error: &io::Error) {
        self.interrupt
            .report(Trouble::Host, &format_args!("{what}: {error}"));
    }

    fn insert(&mut self, connection: Connection, ops: &mut EventOps) -> Option<usize> {
        let Ok(number) = self.table.insert(connection) else {
            debug!("vsock: no more connections than there are");
            return None;
        };
        self.counts.connections.add(1);
        self.settle(number, ops);
        Some(number)
    }

    fn pass_on(&mut self, number: usize, header: &Header, chain: &Chain, ops: &mut EventOps) {
        let Some(connection) = self.table.get_mut(number) else {
            return;
        };
        match connection.take(header, chain) {
            Verdict::Fine => {
                if header.op == op::RW {
                    self.counts.tx_bytes.add(header.len.into());
                }
                self.settle(number, ops);
            }
            Verdict::Closed => {
                self.refuse(header);
                self.drain(number, ops);
            }
            Verdict::Broken(how) => {
                self.complain(how);
                self.refuse(header);
                self.remove(number, ops);
            }
        }
    }

    /// The guest has closed it, and its ports are free again; what it has sent still goes to the host program.
    fn drain(&mut self, number: usize, ops: &mut EventOps) {
        self.table.forget_key(number);
        self.leave_line(number);
        if let Some(connection) = self.table.get_mut(number) {
            connection.phase = Phase::Draining;
            if connection.is_drained() {
                return self.remove(number, ops);
            }
        }
        self.settle(number, ops);
    }

    /// Puts a connection where its state says: in the line if it has a packet, and among what the event loop waits for.
    fn settle(&mut self, number: usize, ops: &mut EventOps) {
        let Some(connection) = self.table.get_mut(number) else {
            return;
        };
        if !connection.in_line && connection.phase != Phase::Draining && connection.has_packet() {
            connection.in_line = true;
            self.line.push_back(number);
        }
        let interest = connection.interest(self.guest_has_buffers);
        set_watched(connection, number, interest, ops);
        if connection.host_is_gone() {
            connection.close_socket();
        }
    }

    fn remove(&mut self, number: usize, ops: &mut EventOps) {
        self.leave_line(number);
        if let Some(mut connection) = self.table.remove(number) {
            set_watched(&mut connection, number, None, ops);
        }
        // There is a descriptor for another one.
        self.callers.listen(ops);
    }

    fn leave_line(&mut self, number: usize) {
        if let Some(connection) = self.table.get_mut(number)
            && std::mem::take(&mut connection.in_line)
        {
            self.line.retain(|other| *other != number);
        }
    }

    /// Writes the packet to `chain`, which has room behind a header, that the guest is to get next; returns its length.
    /// `None`: there is none.
    pub fn give_packet(&mut self, chain: &Chain, ops: &mut EventOps) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(self.write_header(reset, chain));
        }
        while let Some(number) = self.line.pop_front() {
            let Some(connection) = self.table.get_mut(number) else {
                continue;
            };
            connection.in_line = false;
            match connection.fill(chain) {
                Ok(packet) => {
                    self.settle(number, ops);
                    if let Some(header) = packet {
                        let header = Header {
                            kind: TYPE_STREAM,
                            ..header
                        };
                        return Some(self.write_header(header, chain));
                    }
                }
                Err(error) => {
                    debug!("vsock: a host program's socket: {error}");
                    let reset = reset_of(connection.key);
                    self.remove(number, ops);
                    return Some(self.write_header(reset, chain));
                }
            }
        }
        None
    }

    fn write_header(&self, header: Header, chain: &Chain) -> u32 {
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: self.cids.guest,
            ..header
        };
        chain.write(0, &header.to_bytes());
        self.counts.rx_packets.add(1);
        self.counts.rx_bytes.add(header.len.into());
        HEADER_SIZE + header.len
    }

    /// Something has happened to a connection's socket.
    pub fn handle_connection(&mut self, number: usize, events: EventSet, ops: &mut EventOps) {
        let Some(connection) = self.table.get_mut(number) else {
            return;
        };
        if connection.phase == Phase::Asked {
            // The host program does not wait any longer.
            if connection.is_known_to_guest() {
                self.resets.push_back(reset_of(connection.key));
            }
            return self.remove(number, ops);
        }
        connection.handle(events);
        if connection.phase == Phase::Draining && connection.is_drained() {
            return self.remove(number, ops);
        }
        self.settle(number, ops);
    }

    /// Host programs have connected.
    pub fn accept(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.callers.accept(ops) {
            self.report_host("cannot take host programs in", &error);
        }
    }

    /// A host program has said something.
    pub fn handle_handshake(&mut self, number: usize, ops: &mut EventOps) {
        if let Some((socket, port)) = self.callers.hear(number, ops) {
            let key = self.table.new_key(port);
            self.insert(Connection::asking(key, socket), ops);
        }
    }

    /// Hangs up on everybody.
    pub fn close(&mut self, ops: &mut EventOps) {
        self.callers.close(ops);
        for mut connection in self.table.drain() {
            set_watched(&mut connection, 0, None, ops);
        }
        self.line.clear();
        self.resets.clear();
    }
}

fn reset_of(key: Key) -> Header {
    Header {
        src_port: key.host_port,
        dst_port: key.guest_port,
        kind: TYPE_STREAM,
        op: op::RST,
        ..Default::default()
    }
}

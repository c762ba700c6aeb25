//! The TCP/IP stack of a service: ARP and TCP for one address, by `smoltcp`.
//!
//! Nothing here waits or has a timer. A frame of the guest's is what makes something happen: the way to the guest loses none.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{EthernetAddress, Ipv4Cidr};

use super::Service;
use super::wire::Wire;

/// Bytes that a request may have.
pub const MAX_REQUEST: usize = 16 << 10;
/// Most connections at a time. With one more, the oldest is ended.
const CONNECTIONS: usize = 32;
/// Bytes of a connection that wait for the service, and for the guest.
const RECEIVE_BUFFER: usize = 4 << 10;
const SEND_BUFFER: usize = 16 << 10;
/// Bytes of the longest frame that is of use, be it of several segments: Ethernet's header, those of IPv4 and TCP at their longest
/// (RFC 791 §3.1, RFC 9293 §3.1), and a full buffer.
pub const LONGEST: usize = IP + 2 * 60 + RECEIVE_BUFFER;
/// Locally administered, as those of guests are.
const MAC: EthernetAddress = EthernetAddress([0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe]);

/// Where in a frame its EtherType is, and what it carries (IEEE 802.3 §3.1).
const ETHERTYPE: usize = 12;
const IP: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// Where in a frame of ARP's the address is that is asked for (RFC 826).
const ARP_TARGET: usize = IP + 24;
/// Where in an IPv4 header is what (RFC 791 §3.1).
const FRAGMENT: usize = IP + 6;
const PROTOCOL: usize = IP + 9;
const DESTINATION: usize = IP + 16;
const TCP: u8 = 6;
/// Of the field of a fragment: that more follow, and its offset.
const IS_FRAGMENT: u16 = 0x3fff;
/// Where in a TCP header its flags are, and two of them (RFC 9293 §3.1).
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Bytes of a frame that tell whom it is for.
pub const START: usize = ARP_TARGET + 4;

/// A stack, and its connections.
pub struct Stack {
    service: Service,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    /// How many have been opened.
    opened: u64,
    begun: Instant,
}

/// A connection to be, or that is: one request and its response.
struct Connection {
    handle: SocketHandle,
    /// How many had been opened before it, once it is.
    number: Option<u64>,
    request: Vec<u8>,
    response: Option<Vec<u8>>,
    /// How much of the response has been handed to the socket.
    handed: usize,
}

impl Stack {
    pub fn new(service: Service) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(MAC.into());
        config.random_seed = RandomState::new().hash_one(0);
        let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Whatever address the guest has, it is on this wire. There is room for one address.
            let _ = addresses.push(Ipv4Cidr::new(service.address, 0).into());
        });
        Self {
            service,
            wire,
            interface,
            sockets: SocketSet::new(vec![]),
            connections: Vec::new(),
            opened: 0,
            begun: Instant::now(),
        }
    }

    /// Whether a frame, of which this is the start, is the service's and nobody else's.
    pub fn is_addressed(&self, start: &[u8]) -> bool {
        let address = match field(start, ETHERTYPE).map(u16::from_be_bytes) {
            Some(ARP) => field(start, ARP_TARGET),
            Some(IPV4) if start.get(PROTOCOL) == Some(&TCP) => field(start, DESTINATION),
            _ => None,
        };
        address == Some(self.service.address.octets())
    }

    /// Takes a frame that is the service's, and does what follows from it.
    pub fn take(&mut self, frame: &mut Vec<u8>) {
        let is_arp = field(frame, ETHERTYPE).map(u16::from_be_bytes) == Some(ARP);
        let fragment = field(frame, FRAGMENT).map_or(0, u16::from_be_bytes);
        if !is_arp && fragment & IS_FRAGMENT != 0 {
            return;
        }
        if !is_arp && opens(frame) {
            self.listen();
        }
        // A guest that has no route to the address sends it to its router's.
        if let (false, Some(to)) = (is_arp, frame.first_chunk_mut()) {
            *to = MAC.0;
        }
        self.wire.coming = Some(std::mem::take(frame));
        self.interface.poll(self.now(), &mut self.wire, &mut self.sockets);
        self.serve();
    }

    /// The frame that is next for the guest.
    pub fn next(&self) -> Option<&[u8]> {
        self.wire.next()
    }

    /// The guest has it.
    pub fn forward(&mut self) {
        self.wire.forward();
        if self.wire.next().is_none() {
            self.transmit();
        }
    }

    fn now(&self) -> Moment {
        Moment::from_micros(i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn transmit(&mut self) {
        self.interface
            .poll_egress(self.now(), &mut self.wire, &mut self.sockets);
    }

    /// Has a connection be there for one that is being opened.
    fn listen(&mut self) {
        if self
            .connections
            .iter()
            .any(|connection| connection.number.is_none())
        {
            return;
        }
        if self.connections.len() < CONNECTIONS {
            let buffer = |len| SocketBuffer::new(vec![0; len]);
            let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
            socket.set_ack_delay(None);
            socket.set_nagle_enabled(false);
            let handle = self.sockets.add(socket);
            self.connections.push(Connection::new(handle));
        } else if let Some(oldest) = self.connections.iter().min_by_key(|connection| connection.number) {
            self.sockets.get_mut::<Socket>(oldest.handle).abort();
            self.transmit();
        }
        self.renew();
    }

    /// Serves every connection that is open.
    fn serve(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket>(connection.handle);
            if connection.number.is_none() && socket.state() != State::Listen {
                connection.number = Some(self.opened);
                self.opened += 1;
            }
            connection.serve(socket, &self.service);
        }
        self.transmit();
        self.renew();
    }

    /// Has those that are over be there for others. What the guest may still send on one was answered.
    fn renew(&mut self) {
        for connection in &mut self.connections {
            let socket = self.sockets.get_mut::<Socket>(connection.handle);
            if matches!(socket.state(), State::Closed | State::TimeWait) {
                socket.abort();
                *connection = Connection::new(connection.handle);
                // The port is not 0, and the socket not open: it cannot be refused.
                let _ = socket.listen((self.service.address, self.service.port));
            }
        }
    }
}

impl Connection {
    fn new(handle: SocketHandle) -> Self {
        Self {
            handle,
            number: None,
            request: Vec::new(),
            response: None,
            handed: 0,
        }
    }

    /// Takes what has come, and says what there is to say.
    fn serve(&mut self, socket: &mut Socket<'_>, service: &Service) {
        if self.receive(socket) && self.response.is_none() {
            self.response = service.responder.respond(&self.request);
        }
        if let Some(response) = &self.response {
            self.handed += socket.send_slice(&response[self.handed..]).unwrap_or(0);
            if self.handed == response.len() {
                socket.close();
            }
        } else if self.request.len() == MAX_REQUEST {
            socket.abort();
        } else if socket.state() == State::CloseWait {
            socket.close();
        }
    }

    /// Takes what has come; returns whether the request has grown. What comes behind one that is answered is not looked at.
    fn receive(&mut self, socket: &mut Socket<'_>) -> bool {
        let before = self.request.len();
        while socket.can_recv() {
            let taken = socket.recv(|data| {
                let room = MAX_REQUEST - self.request.len();
                if self.response.is_none() {
                    self.request.extend_from_slice(&data[..data.len().min(room)]);
                }
                (data.len(), ())
            });
            if taken.is_err() {
                break;
            }
        }
        self.request.len() > before
    }
}

/// Whether a frame of TCP's asks for a connection.
fn opens(frame: &[u8]) -> bool {
    // RFC 791 §3.1: the header's length is in its first byte, in words of 32 bits.
    let header = frame.get(IP).map_or(0, |first| usize::from(first & 0xf) * 4);
    let flags = frame.get(IP + header + FLAGS);
    flags.is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

fn field<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

//! Tests of a service, whose guest is another stack of `smoltcp`'s, or makes its frames by hand.

mod hostile;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, Ipv4Cidr, Ipv4Packet, TcpPacket};

use super::wire::Wire;
use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PORT: u16 = 80;

/// Answers a line with itself, as often as its first letter says, but no more than 256 KiB.
struct Lines;

impl Responder for Lines {
    fn respond(&self, request: &[u8]) -> Option<Vec<u8>> {
        let line = request.strip_suffix(b"\n")?;
        let times = line
            .first()
            .map_or(0, |letter| 1usize << (letter.wrapping_sub(b'a') % 26));
        Some(line.repeat(times.min((1 << 18) / line.len().max(1))))
    }
}

fn stack() -> Stack {
    Stack::new(Service {
        address: ADDRESS,
        port: PORT,
        responder: Arc::new(Lines),
    })
}

/// A guest.
struct Client {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Client {
    fn new() -> Self {
        let mut wire = Wire::default();
        let config = Config::new(EthernetAddress([2, 0, 0, 0, 0, 1]).into());
        let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(Ipv4Cidr::new(GUEST, 0).into()).unwrap());
        Self {
            wire,
            interface,
            sockets: SocketSet::new(vec![]),
        }
    }

    fn connect(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 64 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket
            .connect(self.interface.context(), (ADDRESS, PORT), port)
            .unwrap();
        self.sockets.add(socket)
    }

    /// Lets frames go both ways until there are none.
    fn talk(&mut self, stack: &mut Stack) {
        loop {
            self.interface
                .poll(Moment::ZERO, &mut self.wire, &mut self.sockets);
            if let Some(frame) = self.wire.next() {
                let mut frame = without_checksum(frame);
                self.wire.forward();
                assert!(stack.is_addressed(&frame[..START]));
                stack.take(&mut frame);
            } else if let Some(frame) = stack.next() {
                expect_checksums(frame);
                self.wire.coming = Some(frame.to_vec());
                stack.forward();
            } else {
                return;
            }
        }
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// All that comes for a request, until the service ends the connection.
    fn ask(&mut self, stack: &mut Stack, port: u16, request: &[u8]) -> Vec<u8> {
        let handle = self.connect(port);
        self.talk(stack);
        self.socket(handle).send_slice(request).unwrap();
        let mut response = Vec::new();
        loop {
            self.talk(stack);
            let socket = self.socket(handle);
            while socket.can_recv() {
                socket
                    .recv(|data| {
                        response.extend_from_slice(data);
                        (data.len(), ())
                    })
                    .unwrap();
            }
            if !socket.may_recv() {
                socket.close();
                self.talk(stack);
                return response;
            }
        }
    }
}

/// As a guest sends it that leaves checksums to the host.
fn without_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
    if ethernet.ethertype() == EthernetProtocol::Ipv4 {
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        TcpPacket::new_unchecked(ip.payload_mut()).set_checksum(0x1234);
    }
    frame
}

#[track_caller]
fn expect_checksums(frame: &[u8]) {
    let ethernet = EthernetFrame::new_checked(frame).unwrap();
    if ethernet.ethertype() == EthernetProtocol::Ipv4 {
        let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        assert!(ip.verify_checksum());
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    }
}

#[test]
fn a_request_is_answered_and_the_connection_ends() {
    let (mut stack, mut client) = (stack(), Client::new());
    assert_eq!(client.ask(&mut stack, 5000, b"b12\n"), b"b12b12");
}

#[test]
fn a_response_may_be_longer_than_any_buffer() {
    let (mut stack, mut client) = (stack(), Client::new());
    let response = client.ask(&mut stack, 5000, b"s\n");
    assert_eq!(response.len(), 1 << 18);
    assert!(response.iter().all(|byte| *byte == b's'));
}

#[test]
fn a_request_comes_in_pieces() {
    let (mut stack, mut client) = (stack(), Client::new());
    let handle = client.connect(5000);
    for piece in [&b"a"[..], b"bc", b"\n"] {
        client.talk(&mut stack);
        assert!(!client.socket(handle).can_recv());
        client.socket(handle).send_slice(piece).unwrap();
    }
    client.talk(&mut stack);
    let mut response = [0; 8];
    assert_eq!(client.socket(handle).recv_slice(&mut response), Ok(3));
    assert_eq!(&response[..3], b"abc");
}

#[test]
fn there_are_as_many_connections_as_one_likes_one_after_another() {
    let (mut stack, mut client) = (stack(), Client::new());
    for port in 5000..5100 {
        assert_eq!(client.ask(&mut stack, port, b"ax\n"), b"ax", "{port}");
    }
}

#[test]
fn the_oldest_of_too_many_connections_makes_way() {
    let (mut stack, mut client) = (stack(), Client::new());
    let handles: Vec<_> = (5000..5033)
        .map(|port| {
            let handle = client.connect(port);
            client.talk(&mut stack);
            handle
        })
        .collect();
    let states: Vec<_> = handles
        .into_iter()
        .map(|handle| client.socket(handle).state())
        .collect();
    assert_eq!(states[0], State::Closed);
    assert!(states[1..].iter().all(|state| *state == State::Established));
}

#[test]
fn a_request_without_an_end_is_cut_off() {
    let (mut stack, mut client) = (stack(), Client::new());
    assert_eq!(client.ask(&mut stack, 5000, &[b'x'; MAX_REQUEST + 1]), b"");
    assert_eq!(client.ask(&mut stack, 5001, b"ax\n"), b"ax");
}

#[test]
fn only_what_is_the_services_is_taken() {
    let stack = stack();
    let mut arp = vec![0; 60];
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    arp[38..42].copy_from_slice(&ADDRESS.octets());
    let mut tcp = vec![0; 60];
    tcp[12..14].copy_from_slice(&[0x08, 0x00]);
    tcp[23] = 6;
    tcp[30..34].copy_from_slice(&ADDRESS.octets());
    for frame in [&arp, &tcp] {
        assert!(stack.is_addressed(&frame[..START]));
        for (at, what) in [(12, "another protocol"), (41, "another address of ARP's")] {
            let mut other = frame.clone();
            other[at] ^= 1;
            other[33] ^= u8::from(at == 41);
            assert!(!stack.is_addressed(&other), "{what}");
        }
        for len in 0..30 {
            assert!(!stack.is_addressed(&frame[..len]), "{len}");
        }
    }
    tcp[23] = 17;
    assert!(!stack.is_addressed(&tcp), "UDP");
}

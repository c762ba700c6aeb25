//! `tcp`: a connection to the host that brings a stream and takes one, with checksums of both.

mod ethernet;

use alloc::format;
use alloc::vec;
use core::net::Ipv4Addr;

use bare_guest::arguments::Arguments;
use bare_guest::numbers::{CHECKSUM_START, Random, checksum};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::net::Card;
use crate::failure::{Failure, Outcome};
use crate::{clock, println};
use ethernet::Ethernet;

/// Entries of each queue.
const DEPTH: u16 = 256;
/// Bytes that wait in each direction: fewer frames than a tap holds for its reader (Linux's default is 500).
const WINDOW: usize = 256 << 10;
/// The host is in the same network of 256 addresses, unless a program says that all are.
const PREFIX: u8 = 24;
/// The guest's port (RFC 6335 §6: the first of the dynamic ones).
const LOCAL_PORT: u16 = 49152;
/// A host that has not answered for so long is gone.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Cycles of the time-stamp counter in a microsecond where nobody tells: near enough for retransmissions.
const PLAUSIBLE_MHZ: u64 = 2000;
/// Bytes that are made at a time: whole numbers of the generator.
const PIECE: usize = 64 << 10;

/// How much a stream has had, and its checksum.
struct Tally {
    bytes: u64,
    checksum: u64,
}

impl Tally {
    const fn new() -> Self {
        Self {
            bytes: 0,
            checksum: CHECKSUM_START,
        }
    }

    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.checksum = checksum(self.checksum, data);
    }

    fn print(&self, what: &str) {
        println!("{what}={} checksum={:016x}", self.bytes, self.checksum);
    }
}

/// Whom a connection is with.
pub struct Peer {
    pub address: Ipv4Addr,
    pub port: u16,
    /// Bits that this guest's address has in common with all that it reaches without a router.
    pub prefix: u8,
}

/// A connection, which is worked on only in [`poll`](Self::poll).
pub struct Connection {
    device: Ethernet,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    mhz: u64,
    /// How many there have been before it.
    number: u16,
}

/// Connects, receives until the host ends its half, sends, and waits until all has arrived.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let count = arguments.number("count")?.unwrap_or(1 << 20);
    let seed = arguments.number("seed")?.unwrap_or(1);
    let port = arguments.number("port")?.unwrap_or(8000);
    let peer = Peer {
        address: address(arguments, "host", Ipv4Addr::new(10, 9, 0, 1))?,
        port: u16::try_from(port).map_err(|_| Failure::new(format!("port={port}: give 1 to 65535")))?,
        prefix: PREFIX,
    };
    let mut connection = Connection::open(arguments, &peer)?;
    connection.receive()?.print("received");
    connection.send(count, seed)?.print("sent");
    connection.close()
}

/// The address that an argument is.
pub fn address(arguments: &Arguments<'_>, key: &'static str, default: Ipv4Addr) -> Outcome<Ipv4Addr> {
    match arguments.text(key) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|_| Failure::new(format!("{key}={text}: give an IPv4 address, such as {default}"))),
    }
}

fn mtu(arguments: &Arguments<'_>) -> Outcome<usize> {
    let mtu = arguments.number("mtu")?.unwrap_or(1500);
    // RFC 791 §3.2: what every module must be able to forward. Above, what a frame of virtio-net has room for.
    if (68..=65521).contains(&mtu) {
        Ok(mtu as usize)
    } else {
        Err(Failure::new(format!("mtu={mtu}: give 68 to 65521")))
    }
}

/// A socket that connects.
fn connecting(interface: &mut Interface, peer: &Peer, local: u16) -> Outcome<Socket<'static>> {
    let Peer { address, port, .. } = *peer;
    let buffer = || SocketBuffer::new(vec![0; WINDOW]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_timeout(Some(TIMEOUT));
    socket
        .connect(interface.context(), (address, port), local)
        .map_err(|error| Failure::new(format!("{address} port {port}: {error}")))?;
    Ok(socket)
}

impl Connection {
    pub fn open(arguments: &Arguments<'_>, peer: &Peer) -> Outcome<Self> {
        let own = address(arguments, "address", Ipv4Addr::new(10, 9, 0, 2))?;
        let mtu = mtu(arguments)?;
        let mut device = Ethernet::new(Card::start(arguments, DEPTH, false)?, mtu);

        let mhz = clock::frequency().map_or(PLAUSIBLE_MHZ, |hertz| (hertz / 1_000_000).max(1));
        let mut config = Config::new(EthernetAddress(device.mac()).into());
        config.random_seed = clock::now();
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(own.into(), peer.prefix))
                .expect("there is room for one address");
        });
        let mut sockets = SocketSet::new(vec![]);
        let handle = sockets.add(connecting(&mut interface, peer, LOCAL_PORT)?);
        Ok(Self {
            device,
            interface,
            sockets,
            handle,
            mhz,
            number: 0,
        })
    }

    /// Gives this one up for another, from another port.
    pub fn open_next(&mut self, peer: &Peer) -> Outcome {
        self.number += 1;
        let socket = connecting(&mut self.interface, peer, LOCAL_PORT + self.number)?;
        self.sockets.remove(self.handle);
        self.handle = self.sockets.add(socket);
        Ok(())
    }

    /// Takes what has come, and sends what there is to send.
    pub fn poll(&mut self) -> &mut Socket<'static> {
        let now = Instant::from_micros((clock::now() / self.mhz) as i64);
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        self.sockets.get_mut(self.handle)
    }

    fn receive(&mut self) -> Outcome<Tally> {
        let mut tally = Tally::new();
        loop {
            let socket = self.poll();
            if matches!(socket.state(), State::SynSent) {
                continue;
            }
            let taken = socket.recv(|data| {
                tally.add(data);
                (data.len(), ())
            });
            match taken {
                Ok(()) => {}
                Err(RecvError::Finished) => return Ok(tally),
                Err(RecvError::InvalidState) => {
                    let bytes = tally.bytes;
                    return Err(Failure::new(format!(
                        "no connection, or none any more after {bytes} bytes"
                    )));
                }
            }
        }
    }

    fn send(&mut self, count: u64, seed: u64) -> Outcome<Tally> {
        let (mut random, mut tally) = (Random::new(seed), Tally::new());
        let mut piece = vec![0; PIECE];
        while tally.bytes < count {
            let length = (count - tally.bytes).min(PIECE as u64) as usize;
            let mut rest = &mut piece[..length];
            random.fill(rest);
            tally.add(rest);
            while !rest.is_empty() {
                let sent = self.poll().send_slice(rest).map_err(|_| {
                    let bytes = tally.bytes;
                    Failure::new(format!(
                        "the host ended the connection before it had {bytes} bytes"
                    ))
                })?;
                rest = &mut rest[sent..];
            }
        }
        Ok(tally)
    }

    /// Ends this half too, and waits for the host to acknowledge that.
    fn close(&mut self) -> Outcome {
        self.poll().close();
        loop {
            let socket = self.poll();
            if socket.state() == State::Closed {
                return match socket.send_queue() {
                    0 => Ok(()),
                    left => Err(Failure::new(format!(
                        "the host has not taken the last {left} bytes"
                    ))),
                };
            }
        }
    }
}

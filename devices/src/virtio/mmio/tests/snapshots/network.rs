//! A network on a stream: frames under way, of which one has come half.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::rate_limit::Rates;
use crate::virtio::net::{FrameSocket, HEADER, Net, NetOptions};

const RX: usize = 0;
const TX: usize = 1;
/// Receive buffers, each in a place of its own, and where frames are sent from.
const ROOM: u64 = 2048;
const OUTGOING: u64 = DATA + 16 * ROOM;

/// A network whose other end on the host is the test.
pub struct Network {
    host: UnixStream,
}

pub fn open(mtu: Option<u16>) -> (UnixStream, Arc<dyn VirtioDevice>) {
    let (host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu,
        rx_limit: Rates::default(),
        tx_limit: Rates::default(),
    };
    let net = Net::on_stream(
        "network 'passt'".into(),
        options,
        FrameSocket::new(device).unwrap(),
    );
    (host, Arc::new(net))
}

/// Two receive buffers were posted and a frame is to be sent; of two that come, one has come half.
pub struct Begun {
    posted: [(u32, u64); 2],
    sent: u32,
}

fn frame(seed: u8) -> Vec<u8> {
    (0..1000u32).map(|n| seed ^ n as u8).collect()
}

fn on_the_wire(seed: u8) -> Vec<u8> {
    [&1000u32.to_be_bytes()[..], &frame(seed)].concat()
}

impl Network {
    fn post(guest: &mut Guest, n: u64) -> (u32, u64) {
        let at = DATA + ROOM * n;
        (guest.ask(RX, &[Buffer::Write(at, ROOM as u32)]), at)
    }

    fn send(guest: &mut Guest, seed: u8) -> u32 {
        guest.write_bytes(OUTGOING, &[0; HEADER]);
        guest.write_bytes(OUTGOING + HEADER as u64, &frame(seed));
        guest.ask(TX, &[Buffer::Read(OUTGOING, HEADER as u32 + 1000)])
    }

    #[track_caller]
    fn has_come(guest: &Guest, used: (u32, u32), posted: (u32, u64), seed: u8) {
        assert_eq!(used, (posted.0, HEADER as u32 + 1000));
        assert_eq!(guest.bytes(posted.1 + HEADER as u64, 1000), frame(seed));
    }

    #[track_caller]
    fn has_gone(&mut self, guest: &mut Guest, sent: u32, seed: u8) {
        assert_eq!(guest.used(TX, 1), [(sent, 0)]);
        let mut bytes = Vec::new();
        let end = self.host.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
        assert_eq!(bytes, on_the_wire(seed));
    }
}

impl Subject for Network {
    type Begun = Begun;

    fn open(_host: &Path) -> (Self, Arc<dyn VirtioDevice>) {
        let (host, device) = open(None);
        (Self { host }, device)
    }

    fn use_it(&mut self, guest: &mut Guest) {
        let posted = Self::post(guest, 0);
        guest.run();
        self.host.write_all(&on_the_wire(1)).unwrap();
        let used = guest.used(RX, 1);
        Self::has_come(guest, used[0], posted, 1);
        let sent = Self::send(guest, 2);
        self.has_gone(guest, sent, 2);
    }

    fn begin(&mut self, guest: &mut Guest) -> Begun {
        let posted = [Self::post(guest, 1), Self::post(guest, 2)];
        self.host.write_all(&on_the_wire(3)).unwrap();
        self.host.write_all(&on_the_wire(4)[..500]).unwrap();
        guest.run();
        let sent = Self::send(guest, 5);
        Begun { posted, sent }
    }

    fn end(&mut self, guest: &mut Guest, begun: Begun) {
        guest.run();
        self.host.write_all(&on_the_wire(4)[500..]).unwrap();
        let used = guest.used(RX, 2);
        Self::has_come(guest, used[0], begun.posted[0], 3);
        Self::has_come(guest, used[1], begun.posted[1], 4);
        self.has_gone(guest, begun.sent, 5);
    }

    /// The half frame is lost with the old stream, and its buffer is for the next one that comes.
    fn end_elsewhere(&mut self, guest: &mut Guest, begun: Begun) {
        guest.run();
        self.host.write_all(&on_the_wire(6)).unwrap();
        let used = guest.used(RX, 2);
        Self::has_come(guest, used[0], begun.posted[0], 3);
        Self::has_come(guest, used[1], begun.posted[1], 6);
        self.has_gone(guest, begun.sent, 5);
    }
}

#[test]
fn a_link_that_has_come_back_is_told_to_the_driver() {
    const STATUS: u64 = reg::CONFIG + 4;
    let host = TempDir::new().unwrap();
    let (subject, guest) = Guest::boot::<Network>(host.as_path());
    drop(subject);
    guest.run();
    assert_eq!(guest.machine.read(STATUS) >> 16 & 1, 0, "the link is down");
    guest.machine.write(reg::INTERRUPT_ACK, reg::INTERRUPT_CONFIG);
    let state = guest.rest();
    let generation = guest.machine.read(reg::CONFIG_GENERATION);

    let (_host, device) = open(None);
    let other = Driver::in_memory(guest.machine.memory.clone(), device);
    other.transport.restore(state).unwrap();
    assert_eq!(other.read(reg::CONFIG_GENERATION), generation);
    other.transport.resume().unwrap();
    assert_eq!(other.read(STATUS) >> 16 & 1, 1);
    assert_eq!(other.read(reg::INTERRUPT_STATUS), reg::INTERRUPT_CONFIG);
    assert_ne!(other.read(reg::CONFIG_GENERATION), generation);
}

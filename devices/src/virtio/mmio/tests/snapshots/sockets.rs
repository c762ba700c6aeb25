//! Sockets: streams live on through a rest; in another process they are gone, and the driver hears so before anything else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::*;
use crate::virtio::vsock::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op};
use crate::virtio::vsock::{SocketFile, Vsock};

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const CID: u32 = 52;
const PORT: u32 = 5;
const BUFFERS: u64 = 8;
const BUFFER: u64 = 1024;
const OUTGOING: u64 = DATA + BUFFERS * BUFFER;
const EVENTS: u64 = OUTGOING + BUFFERS * BUFFER;

/// The device's socket.
pub struct Sockets {
    path: PathBuf,
    _file: SocketFile,
    sent: u64,
}

/// A stream between a host program and port [`PORT`] of the guest's.
pub struct Stream {
    program: UnixStream,
    host_port: u32,
}

fn bind(host: &Path, cid: u32) -> (Sockets, Arc<dyn VirtioDevice>) {
    let path = host.join("vsock");
    let (device, file) = Vsock::bind(&path, cid).unwrap();
    let sockets = Sockets {
        path,
        _file: file,
        sent: 0,
    };
    (sockets, Arc::new(device))
}

/// The buffer of a descriptor: the driver's own memory of what it has given.
fn buffer_of(guest: &Guest, queue: usize, head: u32) -> u64 {
    let table = guest.queues[queue].state().desc_table;
    u64::from_le_bytes(guest.bytes(table + 16 * u64::from(head), 8).try_into().unwrap())
}

impl Sockets {
    fn give(guest: &mut Guest, at: u64) {
        guest.ask(RX, &[Buffer::Write(at, BUFFER as u32)]);
    }

    /// The packets that have come: operation, the host's port, data. Their buffers are given back.
    fn packets(guest: &mut Guest) -> Vec<(u16, u32, Vec<u8>)> {
        guest.run();
        let mut packets = Vec::new();
        for (head, len) in guest.queues[RX].take_used() {
            let at = buffer_of(guest, RX, head);
            let mut bytes = guest.bytes(at, len as usize);
            let data = bytes.split_off(HEADER_SIZE as usize);
            let header = Header::from_bytes(&bytes.try_into().unwrap());
            packets.push((header.op, header.src_port, data));
            Self::give(guest, at);
        }
        packets
    }

    fn send(&mut self, guest: &mut Guest, host_port: u32, op: u16, data: &[u8]) {
        let header = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: host_port,
            len: data.len() as u32,
            kind: TYPE_STREAM,
            op,
            buf_alloc: 1 << 16,
            ..Default::default()
        };
        let at = OUTGOING + self.sent % BUFFERS * BUFFER;
        self.sent += 1;
        guest.queues[TX].take_used();
        guest.write_bytes(at, &[&header.to_bytes(), data].concat());
        guest.ask(TX, &[Buffer::Read(at, HEADER_SIZE + data.len() as u32)]);
    }

    fn call(&self) -> UnixStream {
        let mut program = UnixStream::connect(&self.path).unwrap();
        writeln!(program, "CONNECT {PORT}").unwrap();
        program
    }

    /// A host program calls the guest, which accepts.
    fn connect(&mut self, guest: &mut Guest) -> Stream {
        let mut program = self.call();
        let packets = Self::packets(guest);
        let [(op::REQUEST, host_port, _)] = packets[..] else {
            panic!("no call: {packets:?}");
        };
        self.send(guest, host_port, op::RESPONSE, &[]);
        guest.run();
        hears(&mut program, format!("OK {host_port}\n").as_bytes());
        Stream { program, host_port }
    }

    /// Each side has said something; the guest hangs up.
    fn finish(&mut self, guest: &mut Guest, mut stream: Stream) {
        let heard: Vec<u8> = Self::packets(guest)
            .into_iter()
            .filter(|(op, port, _)| (*op, *port) == (op::RW, stream.host_port))
            .flat_map(|(_, _, data)| data)
            .collect();
        assert_eq!(heard, b"to the guest");
        hears(&mut stream.program, b"to the host");
        self.send(guest, stream.host_port, op::RST, &[]);
        guest.run();
        is_at_its_end(&mut stream.program);
        assert_eq!(Self::packets(guest), []);
    }

    fn talk(&mut self, guest: &mut Guest, stream: &mut Stream) {
        self.send(guest, stream.host_port, op::RW, b"to the host");
        stream.program.write_all(b"to the guest").unwrap();
    }
}

#[track_caller]
fn hears(program: &mut UnixStream, expected: &[u8]) {
    program.set_nonblocking(true).unwrap();
    let mut bytes = vec![0; expected.len()];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

#[track_caller]
fn is_at_its_end(program: &mut UnixStream) {
    program.set_nonblocking(true).unwrap();
    let end = program.read(&mut [0]);
    let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(matches!(end, Ok(0)) || end.as_ref().is_err_and(reset), "{end:?}");
}

impl Subject for Sockets {
    type Begun = Stream;

    fn open(host: &Path) -> (Self, Arc<dyn VirtioDevice>) {
        bind(host, CID)
    }

    fn set_up(&mut self, guest: &mut Guest) {
        for n in 0..BUFFERS {
            Self::give(guest, DATA + BUFFER * n);
            guest.ask(EVENT, &[Buffer::Write(EVENTS + 8 * n, 8)]);
        }
    }

    fn use_it(&mut self, guest: &mut Guest) {
        let mut stream = self.connect(guest);
        self.talk(guest, &mut stream);
        self.finish(guest, stream);
    }

    fn begin(&mut self, guest: &mut Guest) -> Stream {
        let mut stream = self.connect(guest);
        self.talk(guest, &mut stream);
        stream
    }

    fn end(&mut self, guest: &mut Guest, stream: Stream) {
        self.finish(guest, stream);
        assert_eq!(
            guest.queues[EVENT].take_used(),
            [],
            "nothing has happened to the streams"
        );
    }

    /// The stream has ended with the old device. Who calls at once is put through when the driver has ended its side of it.
    fn end_elsewhere(&mut self, guest: &mut Guest, mut stream: Stream) {
        is_at_its_end(&mut stream.program);
        let early = self.call();
        assert_eq!(Self::packets(guest), []);
        self.settle(guest);
        let mut packets: Vec<_> = Self::packets(guest);
        packets.sort_unstable();
        let [(op::REQUEST, called_from, _), (op::RST, port, _)] = packets[..] else {
            panic!("not a call, and the end of what the guest had on its way: {packets:?}");
        };
        assert_eq!(port, stream.host_port);
        drop(early);
        let ended = Self::packets(guest);
        assert_eq!(ended, [(op::RST, called_from, vec![])]);
    }

    /// The driver is told of the streams' end, and gives the event's buffer back.
    fn settle(&mut self, guest: &mut Guest) {
        let used = guest.used(EVENT, 1);
        let [(head, 4)] = used[..] else {
            panic!("no event: {used:?}");
        };
        let at = buffer_of(guest, EVENT, head);
        assert_eq!(guest.bytes(at, 4), [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
        guest.ask(EVENT, &[Buffer::Write(at, 8)]);
        guest.run();
    }
}

/// A guest at rest, in another process as the guest with this CID.
fn cloned(host: &Path, cid: u32) -> (Sockets, Guest) {
    let (mut sockets, mut guest) = Guest::boot::<Sockets>(host);
    sockets.use_it(&mut guest);
    let state = guest.rest();
    let (memory, queues) = (guest.machine.memory.clone(), guest.queues);
    drop((guest.machine, sockets));
    let (sockets, device) = bind(host, cid);
    let machine = Driver::in_memory(memory, device);
    machine.transport.restore(state).unwrap();
    machine.transport.resume().unwrap();
    (sockets, Guest { machine, queues })
}

#[test]
fn a_clone_has_its_own_cid_and_packets_of_the_old_one_are_nobodys() {
    let host = TempDir::new().unwrap();
    let (mut sockets, mut guest) = cloned(host.as_path(), CID + 1);
    assert_eq!(guest.machine.read(reg::CONFIG), CID + 1);
    sockets.settle(&mut guest);
    // On its way when the guest was saved.
    sockets.send(&mut guest, 77, op::RW, b"late");
    assert_eq!(Sockets::packets(&mut guest), []);
    guest.check();
}

#[test]
fn a_driver_that_does_not_give_the_event_back_is_served_after_a_while() {
    let host = TempDir::new().unwrap();
    let (mut sockets, mut guest) = cloned(host.as_path(), CID);
    assert_eq!(guest.used(EVENT, 1).len(), 1);
    let _program = sockets.call();
    assert_eq!(guest.used(RX, 1).len(), 1, "the call");
    sockets.send(&mut guest, 77, op::RW, b"nobody's");
    assert_eq!(guest.used(RX, 1).len(), 1, "the reset");
}

#[test]
fn a_driver_without_buffers_for_events_is_not_waited_for() {
    let host = TempDir::new().unwrap();
    let (sockets, mut guest) = Guest::boot::<Sockets>(host.as_path());
    let mut state = guest.rest();
    // As if it had taken them all back.
    state.queues[EVENT].next_avail = BUFFERS as u16;
    guest.machine.transport.restore(state).unwrap();
    guest.machine.transport.resume().unwrap();
    guest.run();
    let _program = sockets.call();
    guest.run();
    assert_eq!(guest.queues[RX].take_used().len(), 1, "the call, at once");
}

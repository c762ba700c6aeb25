//! Tests of the socket device, with a guest that is a queue's driver and host programs that are real sockets.

mod bad_packets;
mod streams;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::credit::BUFFER;
use super::packet::{HEADER_SIZE, HOST_CID, Header, TYPE_STREAM, op, shutdown};
use super::*;
use crate::virtio::testing::{Buffer, Started, memory};
use crate::virtio::{GuestMemory, Trouble};

const CID: u32 = 52;
const QUEUES: u64 = 0x1000;
const QUEUE_SIZE: u16 = 64;
/// Where the guest's packets lie, one after another in a ring.
const OUTGOING: u64 = 0x10_0000;
const MAX_PACKET: u64 = 0x1_1000;
const OUTGOING_SLOTS: u64 = 8;
/// Where its buffers for incoming ones lie.
const INCOMING: u64 = 0x20_0000;
const INCOMING_BUFFER: u64 = 0x1_1000;
const MEMORY: usize = 0x80_0000;
/// What a guest of these tests keeps free for a stream.
const GUEST_BUFFER: u32 = 1 << 20;

/// A guest with the device, and the directory that its sockets are in.
struct Guest {
    device: Vsock,
    started: Started,
    memory: GuestMemory,
    sent: u64,
    given: u64,
    /// Its buffers in the receive queue, by head.
    incoming: HashMap<u32, u64>,
    directory: TempDir,
    _file: SocketFile,
}

impl Guest {
    /// One that has given buffers for 16 packets.
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(16);
        guest
    }

    fn without_buffers() -> Self {
        let directory = TempDir::new().unwrap();
        let (device, file) = Vsock::bind(&directory.as_path().join("v.sock"), CID).unwrap();
        let memory = memory(MEMORY);
        Self {
            started: Started::new(&device, &memory, QUEUES, QUEUE_SIZE, 0),
            device,
            memory,
            sent: 0,
            given: 0,
            incoming: HashMap::new(),
            directory,
            _file: file,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.as_path().join("v.sock")
    }

    /// Lets the device see what host programs have done.
    fn run(&self) {
        self.started.turns.run();
    }

    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let address = INCOMING + self.given % 16 * INCOMING_BUFFER;
            self.given += 1;
            let (header, data) = (HEADER_SIZE, INCOMING_BUFFER as u32 - HEADER_SIZE);
            let head = self.started.queues[0].add(&[
                Buffer::Write(address, header),
                Buffer::Write(address + u64::from(header), data),
            ]);
            self.incoming.insert(head.into(), address);
        }
        self.started.ring(0);
    }

    /// The packets that have come, in as many buffers as are given anew.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.started.queues[0].take_used();
        let mut packets = Vec::new();
        for (head, len) in &used {
            let address = self.incoming.remove(head).expect("a buffer of the guest's");
            let mut bytes = vec![0; *len as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let data = bytes.split_off(HEADER_SIZE as usize);
            let header = Header::from_bytes(&bytes.try_into().unwrap());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
            assert_eq!(header.len as usize, data.len());
            packets.push((header, data));
        }
        self.give_buffers(used.len() as u64);
        packets
    }

    /// All packets until there are no more: what they are, and the data of all.
    fn drain(&mut self) -> (Vec<u16>, Vec<u8>) {
        let (mut ops, mut all) = (Vec::new(), Vec::new());
        loop {
            self.run();
            let packets = self.packets();
            if packets.is_empty() {
                return (ops, all);
            }
            for (header, data) in packets {
                ops.push(header.op);
                all.extend(data);
            }
        }
    }

    /// The one packet that has come.
    #[track_caller]
    fn packet(&mut self) -> Header {
        self.run();
        let packets = self.packets();
        let [(header, _)] = &packets[..] else {
            panic!("not one packet: {packets:?}")
        };
        *header
    }

    #[track_caller]
    fn nothing_comes(&mut self) {
        self.run();
        assert_eq!(self.packets(), []);
    }

    /// Sends a packet as it is.
    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let address = self.store(header, data);
        let len = HEADER_SIZE + data.len() as u32;
        self.transmit(&[Buffer::Read(address, len)]);
    }

    fn store(&mut self, header: &Header, data: &[u8]) -> u64 {
        let address = OUTGOING + self.sent % OUTGOING_SLOTS * MAX_PACKET;
        self.sent += 1;
        let write = |bytes: &[u8], at| self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        write(&header.to_bytes(), address);
        write(data, address + u64::from(HEADER_SIZE));
        address
    }

    fn transmit(&mut self, buffers: &[Buffer]) {
        self.started.queues[1].add(buffers);
        self.started.ring(1);
        self.started.queues[1].take_used();
    }

    /// Sends a packet of the stream between two ports.
    fn send(&mut self, ports: Ports, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            op,
            flags,
            len: data.len() as u32,
            fwd_cnt: ports.read,
            ..ports.header()
        };
        self.send_raw(&header, data);
    }

    fn reports(&self) -> Vec<String> {
        let reports = self.started.recorder.reports().into_iter();
        reports
            .map(|(trouble, what)| {
                assert_eq!(trouble, Trouble::Guest);
                what
            })
            .collect()
    }

    /// A host program that has connected to `port`, which the guest has accepted.
    fn called(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut program = UnixStream::connect(self.path()).unwrap();
        writeln!(program, "CONNECT {port}").unwrap();
        let request = self.packet();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, port));
        let ports = Ports {
            guest: port,
            host: request.src_port,
            read: 0,
        };
        self.send(ports, op::RESPONSE, 0, &[]);
        let answer = format!("OK {}\n", ports.host);
        assert_eq!(read(&mut program, answer.len()), answer.as_bytes());
        (program, ports)
    }

    /// A host program that listens at port 77, and has been connected to from the guest's port 1000.
    fn calls(&mut self) -> (UnixStream, Ports) {
        let listener = UnixListener::bind(self.directory.as_path().join("v.sock_77")).unwrap();
        let ports = Ports {
            guest: 1000,
            host: 77,
            read: 0,
        };
        self.send(ports, op::REQUEST, 0, &[]);
        let response = self.packet();
        assert_eq!((response.op, response.buf_alloc), (op::RESPONSE, BUFFER));
        (listener.accept().unwrap().0, ports)
    }
}

/// The ports of a stream, and how much of it the guest has read.
#[derive(Clone, Copy)]
struct Ports {
    guest: u32,
    host: u32,
    read: u32,
}

impl Ports {
    fn header(self) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            kind: TYPE_STREAM,
            buf_alloc: GUEST_BUFFER,
            ..Default::default()
        }
    }
}

fn read(from: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// What can be read now.
fn read_now(from: &mut UnixStream) -> Vec<u8> {
    from.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    // Ends with the stream, or for want of more.
    let _ = from.read_to_end(&mut bytes);
    from.set_nonblocking(false).unwrap();
    bytes
}

#[track_caller]
fn at_its_end(from: &mut UnixStream) {
    from.set_nonblocking(true).unwrap();
    assert_eq!(from.read(&mut [0]).unwrap(), 0, "more than the end");
}

/// `len` bytes that are not all alike.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 251 + n) as u8).collect()
}

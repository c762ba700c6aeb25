//! Networks on sockets, behind which somebody has sent frames and reads what comes: one on a stream, and one of two queue pairs and a
//! control queue, whose sockets stand in for a tap's queues.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;

use devices::rate_limit::Rates;
use devices::virtio::net::{FrameSocket, HEADER, Net, NetOptions, Tap};

use crate::guest;

/// What comes in before the guest begins: an ordinary frame, a short one, and one that is longer than most buffers.
const INCOMING: [usize; 3] = [60, 14, 1514];

/// Bytes of a frame at most: Ethernet header, VLAN tag, and the largest IP packet.
const LONGEST: usize = 14 + 4 + 65535;

fn options() -> NetOptions {
    NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        rx_limit: Rates::default(),
        tx_limit: Rates::default(),
    }
}

/// Lets the guest that `data` describes at a network on a stream.
pub fn drive_stream(data: &[u8]) {
    let (device, mut host) = UnixStream::pair().expect("a pair of sockets");
    host.set_nonblocking(true).expect("a socket that does not wait");
    for len in INCOMING {
        // Frames come with their length before them, as passt has it.
        host.write_all(&(len as u32).to_be_bytes())
            .expect("room for a frame");
        host.write_all(&[0xff; 1514][..len]).expect("room for a frame");
    }
    let socket = FrameSocket::new(device).expect("a socket that does not wait");
    // It keeps its end of the socket until what it sent has been looked at.
    let net = Arc::new(Net::on_stream("fuzz".into(), options(), socket));
    guest::drive(net.clone(), data);
    check_frames(&mut host);
}

/// Whatever the guest did, what came out of the device is one whole frame after another, but for the last.
fn check_frames(host: &mut UnixStream) {
    let mut sent = Vec::new();
    match host.read_to_end(&mut sent) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("the socket: {error}"),
        _ => {}
    }
    let mut rest = &sent[..];
    while let Some((len, frame)) = rest.split_at_checked(4) {
        let len = u32::from_be_bytes(len.try_into().expect("four bytes")) as usize;
        assert!((14..=LONGEST).contains(&len), "a frame of {len} bytes");
        rest = frame.get(len..).unwrap_or_default();
    }
}

/// Lets the guest that `data` describes at a network of two queue pairs.
pub fn drive_pairs(data: &[u8]) {
    let pairs = [(); 2].map(|()| UnixDatagram::pair().expect("a pair of sockets"));
    for (device, host) in &pairs {
        for socket in [device, host] {
            socket.set_nonblocking(true).expect("a socket that does not wait");
        }
        for len in INCOMING {
            let frame = [0; HEADER + 1514];
            host.send(&frame[..HEADER + len]).expect("room for a frame");
        }
    }
    let (devices, hosts): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let tap = Tap::on_sockets(devices.into_iter().map(Into::into));
    let net = Arc::new(Net::on_tap("fuzz".into(), options(), tap));
    guest::drive(net.clone(), data);
    let mut frame = vec![0; HEADER + LONGEST + 1];
    for host in hosts {
        while let Ok(len) = host.recv(&mut frame) {
            assert!(
                (HEADER + 14..=HEADER + LONGEST).contains(&len),
                "a frame of {len} bytes"
            );
        }
    }
}

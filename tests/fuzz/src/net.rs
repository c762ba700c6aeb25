//! A network on a socket, behind which somebody reads what comes and sends a frame now and then.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::rate_limit::RateLimit;
use devices::virtio::net::{FrameSocket, Net, NetOptions};

use crate::guest;

/// What comes in before the guest begins: an ordinary frame, a short one, and one that is longer than most buffers.
const INCOMING: [usize; 3] = [60, 14, 1514];

/// Lets the guest that `data` describes at a network.
pub fn drive(data: &[u8]) {
    let (device, mut host) = UnixStream::pair().expect("a pair of sockets");
    host.set_nonblocking(true).expect("a socket that does not wait");
    for len in INCOMING {
        // Frames come with their length before them, as passt has it.
        host.write_all(&(len as u32).to_be_bytes())
            .expect("room for a frame");
        host.write_all(&[0xff; 1514][..len]).expect("room for a frame");
    }
    let options = NetOptions {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        rx_limit: RateLimit::new(None, None),
        tx_limit: RateLimit::new(None, None),
    };
    let socket = FrameSocket::new(device).expect("a socket that does not wait");
    // It keeps its end of the socket until what it sent has been looked at.
    let net = Arc::new(Net::on_stream("fuzz".into(), options, socket));
    guest::drive(net.clone(), data);
    check_frames(&mut host);
}

/// Whatever the guest did, what came out of the device is one whole frame after another, but for the last.
fn check_frames(host: &mut UnixStream) {
    const LONGEST: usize = 14 + 4 + 65535;
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

//! `vsock-call`: calls a port of the host's many times at once, and checks that what it sends comes back.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use bare_guest::arguments::Arguments;
use virtio_drivers::device::socket::{
    SocketError, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::device::{self, kind};
use crate::failure::{Failure, Outcome};
use crate::hal::Identity;
use crate::println;

/// Bytes of a receive buffer, a packet's header included.
const RECEIVE: usize = 16 << 10;
/// Bytes of a packet to send.
const SEND: usize = 32 << 10;
/// Bytes of a stream that may wait to be looked at.
const WINDOW: u32 = 128 << 10;
/// The guest's port of the first stream; the others follow.
const FIRST_PORT: u32 = 10_000;
/// The period of what is sent: prime, so that no packet begins like the one before it.
const PERIOD: usize = 251;

type Sockets = VsockConnectionManager<Identity, MmioTransport<'static>, RECEIVE>;

#[derive(Default)]
struct Stream {
    connected: bool,
    sent: usize,
    received: usize,
}

struct Caller {
    sockets: ManuallyDrop<Sockets>,
    host: VsockAddr,
    streams: Vec<Stream>,
    /// Bytes that each stream shall send and bring.
    bytes: usize,
    /// Two periods and a packet of what is sent: any part of a stream begins somewhere in it.
    pattern: Vec<u8>,
}

/// Calls `port=` of the host `connections=` times, and sends `bytes=` on each.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let port = arguments.number("port")?.unwrap_or(5000) as u32;
    let connections = arguments.number("connections")?.unwrap_or(1) as usize;
    let bytes = arguments.number("bytes")?.unwrap_or(1 << 20) as usize;
    let driver = VirtIOSocket::new(device::transport(device::find(arguments, kind::SOCKET)?)?)?;
    let mut caller = Caller {
        // Never taken down: the machine is switched off next.
        sockets: ManuallyDrop::new(VsockConnectionManager::new_with_capacity(driver, WINDOW)),
        host: VsockAddr {
            cid: VMADDR_CID_HOST,
            port,
        },
        streams: Vec::new(),
        bytes,
        pattern: (0..2 * PERIOD + SEND).map(|n| (n % PERIOD) as u8).collect(),
    };
    for n in 0..connections {
        caller.sockets.connect(caller.host, FIRST_PORT + n as u32)?;
        caller.streams.push(Stream::default());
    }
    while caller.streams.iter().any(|stream| stream.received < bytes) {
        while let Some(event) = caller.sockets.poll()? {
            caller.take(event)?;
        }
        for n in 0..connections {
            caller.send(n)?;
        }
    }
    for n in 0..connections {
        caller.sockets.shutdown(caller.host, FIRST_PORT + n as u32)?;
    }
    println!("connections={connections} bytes={}", connections * bytes);
    Ok(())
}

impl Caller {
    fn take(&mut self, event: VsockEvent) -> Outcome {
        let n = (event.destination.port - FIRST_PORT) as usize;
        match event.event_type {
            VsockEventType::Connected => self.streams[n].connected = true,
            VsockEventType::Received { length } => self.receive(n, length)?,
            VsockEventType::Disconnected { reason } => {
                return Err(Failure::new(format!("stream {n} has ended: {reason:?}")));
            }
            _ => {}
        }
        Ok(())
    }

    fn receive(&mut self, n: usize, length: usize) -> Outcome {
        let port = FIRST_PORT + n as u32;
        let mut data = vec![0; length];
        let count = self.sockets.recv(self.host, port, &mut data)?;
        let stream = &mut self.streams[n];
        let start = (stream.received + n) % PERIOD;
        if data[..count] != self.pattern[start..start + count] {
            return Err(Failure::new(format!(
                "stream {n} has changed after {} bytes",
                stream.received
            )));
        }
        let half = WINDOW as usize / 2;
        let news = stream.received / half != (stream.received + count) / half;
        stream.received += count;
        if news {
            self.sockets.update_credit(self.host, port)?;
        }
        Ok(())
    }

    fn send(&mut self, n: usize) -> Outcome {
        let stream = &mut self.streams[n];
        let count = SEND.min(self.bytes - stream.sent);
        if !stream.connected || count == 0 {
            return Ok(());
        }
        let start = (stream.sent + n) % PERIOD;
        let data = &self.pattern[start..start + count];
        match self.sockets.send(self.host, FIRST_PORT + n as u32, data) {
            Ok(()) => stream.sent += count,
            // Its credit comes with a later event.
            Err(virtio_drivers::Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

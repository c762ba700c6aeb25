//! `vsock-echo`: sends back what streams bring, until enough of them have ended.

use alloc::vec;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use bare_guest::arguments::Arguments;
use virtio_drivers::device::socket::{
    SocketError, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use virtio_drivers::transport::mmio::MmioTransport;

use crate::device::{self, kind};
use crate::failure::Outcome;
use crate::hal::Identity;
use crate::{interrupts, println};

/// Bytes of a receive buffer, a packet's header included; of a packet to send; and of a stream that may wait to be sent back.
const PACKET: usize = 16 << 10;
const SEND: usize = 32 << 10;
const WINDOW: u32 = 128 << 10;

type Sockets = VsockConnectionManager<Identity, MmioTransport<'static>, PACKET>;

struct Stream {
    peer: VsockAddr,
    /// What has come and not yet gone back.
    pending: Vec<u8>,
    /// Bytes that the peer does not know to have been taken.
    untold: usize,
    /// The peer has ended it.
    ended: bool,
}

struct Echo {
    sockets: ManuallyDrop<Sockets>,
    port: u32,
    streams: Vec<Stream>,
    bytes: u64,
}

/// Listens on `port=`, and ends when `connections=` streams have.
pub fn run(arguments: &Arguments<'_>) -> Outcome {
    let port = arguments.number("port")?.unwrap_or(5000) as u32;
    let connections = arguments.number("connections")?.unwrap_or(1);
    let sleeps = arguments.choice(
        "wait",
        &[("poll", false), ("interrupt", true)],
        "poll or interrupt",
    )?;
    let registers = device::find(arguments, kind::SOCKET)?;
    let driver = VirtIOSocket::new(device::transport(registers)?)?;
    if sleeps {
        interrupts::enable(registers.place().irq, registers.place().base);
    }
    let mut echo = Echo {
        // Never taken down: the machine is switched off next.
        sockets: ManuallyDrop::new(VsockConnectionManager::new_with_capacity(driver, WINDOW)),
        port,
        streams: Vec::new(),
        bytes: 0,
    };
    echo.sockets.listen(port);
    println!("listening: cid {} port {port}", echo.sockets.guest_cid());
    let mut ended = 0;
    while ended < connections {
        let seen = interrupts::seen();
        let busy = echo.take_event()? | echo.send_back()?;
        let before = echo.streams.len();
        echo.streams
            .retain(|stream| !(stream.ended && stream.pending.is_empty()));
        ended += (before - echo.streams.len()) as u64;
        if sleeps && !busy && ended < connections {
            interrupts::wait(seen);
        }
    }
    println!("connections={ended} bytes={}", echo.bytes);
    Ok(())
}

impl Echo {
    /// Whether something has come.
    fn take_event(&mut self) -> Outcome<bool> {
        let Some(event) = self.sockets.poll()? else {
            return Ok(false);
        };
        match event.event_type {
            VsockEventType::ConnectionRequest => self.streams.push(Stream {
                peer: event.source,
                pending: Vec::new(),
                untold: 0,
                ended: false,
            }),
            VsockEventType::Received { length } => {
                let mut data = vec![0; length];
                let count = self.sockets.recv(event.source, self.port, &mut data)?;
                self.bytes += count as u64;
                if let Some(stream) = self.stream(event.source) {
                    stream.pending.extend_from_slice(&data[..count]);
                    stream.untold += count;
                }
            }
            VsockEventType::Disconnected { .. } => {
                if let Some(stream) = self.stream(event.source) {
                    // It takes nothing any more.
                    stream.ended = true;
                    stream.pending.clear();
                }
            }
            VsockEventType::Connected | VsockEventType::CreditRequest | VsockEventType::CreditUpdate => {}
        }
        Ok(true)
    }

    fn stream(&mut self, peer: VsockAddr) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.peer == peer)
    }

    /// Whether something has gone; what has not waits for an event.
    fn send_back(&mut self) -> Outcome<bool> {
        let mut gone = false;
        for stream in self.streams.iter_mut() {
            if stream.untold >= WINDOW as usize / 2 && stream.pending.len() < WINDOW as usize {
                self.sockets.update_credit(stream.peer, self.port)?;
                stream.untold = 0;
            }
            if stream.pending.is_empty() {
                continue;
            }
            let count = stream.pending.len().min(SEND);
            match self
                .sockets
                .send(stream.peer, self.port, &stream.pending[..count])
            {
                Ok(()) => {
                    stream.pending.drain(..count);
                    gone = true;
                }
                // Its credit comes with a later event.
                Err(virtio_drivers::Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(gone)
    }
}

//! Networks (§5.1): frames between the guest's queues and a tap, or a process on a stream socket.
//!
//! ```text
//!   transmit queue ─▶ Sender ─┐             ┌─▶ TapQueue ── /dev/net/tun
//!                             ├─ Pair ─ Frames
//!   receive queue ◀─ Receiver ┘             └─▶ FrameStream ── passt
//! ```
//!
//! A pair of queues has one worker and, on a tap with several queues, a queue of the tap's own. Frames move by one system
//! call each, straight between guest memory and the kernel: the guest's header is what the tap driver takes and gives.

mod control;
mod counts;
mod frames;
mod link;
mod meter;
mod pair;
mod rx;
mod service;
mod stream;
mod switch;
mod syscall;
mod tap;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use libc::iovec;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::{Activation, DeviceState, Difference, Queue, VirtioDevice, Worker, lock, read_config_bytes};
use crate::counters::{Counters, Sample};
use crate::rate_limit::{RateLimit, Rates};
use control::Control;
use counts::Counts;
use frames::Frames;
use link::Link;
use pair::Pair;
use service::Served;
use switch::Switch;

pub use service::{MAX_REQUEST, Responder, Service};
pub use stream::{FrameSocket, FrameStream};
pub use tap::{Tap, TapError, TapQueue};

/// Bytes of the header before each frame (§5.1.6): with VERSION_1 it always has `num_buffers`.
pub const HEADER: usize = 12;
/// Bytes of the shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Bytes of Ethernet header and VLAN tag.
const ETHERNET: usize = MIN_FRAME + 4;
/// Bytes of the longest frame: the largest IP packet, be it of segments that the other side is to split.
const MAX_FRAME: usize = ETHERNET + 65535;
/// Bytes that a frame carries unless more was agreed on.
const DEFAULT_MTU: u16 = 1500;
const QUEUE_SIZE: u16 = 256;

/// What a guest can leave to a tap, and a tap to a guest.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;
/// The same of UDP.
const UDP_OFFLOADS: u64 =
    1 << VIRTIO_NET_F_HOST_USO | 1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6;
/// With one of these, what the guest receives may be as long as any IP packet.
const LARGE_RECEIVE: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// A network device.
pub struct Net {
    name: String,
    mac: [u8; 6],
    mtu: Option<u16>,
    backend: Backend,
    limits: Mutex<[Arc<RateLimit>; 2]>,
    queue_sizes: Vec<u16>,
    link: Arc<Link>,
    /// Pairs that the driver uses.
    pairs_in_use: Arc<AtomicU16>,
    /// The driver knows another status of the link, before it had this network: it is to be told.
    link_has_changed: AtomicBool,
    /// By pair.
    counts: Vec<Arc<Counts>>,
    service: Option<Service>,
}

/// What a network is beside its end on the host.
#[derive(Debug)]
pub struct NetOptions {
    /// The guest's address.
    pub mac: [u8; 6],
    /// Bytes that a frame carries, if the driver is to be told.
    pub mtu: Option<u16>,
    /// The limit on what the guest receives.
    pub rx_limit: Rates,
    /// The limit on what the guest sends.
    pub tx_limit: Rates,
}

/// What a guest remembers of a network. Its address is not in it: each copy of a guest has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Bytes that a frame carries.
    pub mtu: u16,
    /// Whether the link was up.
    pub link_up: bool,
    /// Queue pairs that the driver uses.
    pub pairs: u16,
}

/// The host's end.
enum Backend {
    Tap(Arc<Tap>),
    Stream(Arc<FrameSocket>),
}

impl Net {
    /// A network on a tap, with a pair of queues for each queue of the tap.
    pub fn on_tap(name: String, options: NetOptions, tap: Tap) -> Self {
        let pairs = tap.queues().len();
        let queues = if pairs > 1 { 2 * pairs + 1 } else { 2 };
        Self::new(name, options, Backend::Tap(Arc::new(tap)), queues)
    }

    /// A network on a stream of frames.
    pub fn on_stream(name: String, options: NetOptions, socket: FrameSocket) -> Self {
        Self::new(name, options, Backend::Stream(Arc::new(socket)), 2)
    }

    fn new(name: String, options: NetOptions, backend: Backend, queues: usize) -> Self {
        Self {
            name,
            mac: options.mac,
            mtu: options.mtu,
            backend,
            limits: Mutex::new(
                [options.rx_limit, options.tx_limit].map(|rates| RateLimit::new(rates).into()),
            ),
            queue_sizes: vec![QUEUE_SIZE; queues],
            link: Arc::new(Link::new()),
            pairs_in_use: Arc::new(AtomicU16::new(1)),
            link_has_changed: AtomicBool::new(false),
            counts: (0..queues / 2).map(|_| Arc::default()).collect(),
            service: None,
        }
    }

    /// The same with a service of the host's on it. It must be one with a single pair of queues: what comes on one pair is not known to
    /// belong to what comes on another.
    pub fn with_service(mut self, service: Service) -> Self {
        self.service = Some(service);
        self
    }

    /// Limits what the guest receives and sends like this from the device's next start on.
    pub fn set_limits(&self, rx: Rates, tx: Rates) {
        let mut limits = self.limits();
        let [rx_before, tx_before] = &*limits;
        *limits = [rx_before.changed(rx).into(), tx_before.changed(tx).into()];
    }

    fn limits(&self) -> MutexGuard<'_, [Arc<RateLimit>; 2]> {
        lock(&self.limits)
    }

    fn has_several_pairs(&self) -> bool {
        self.queue_sizes.len() > 2
    }

    /// Bytes that a frame carries.
    fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(DEFAULT_MTU)
    }

    /// §5.1.4, `virtio_net_config` up to `mtu`.
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&self.link.status().to_le_bytes());
        let pairs = (self.queue_sizes.len() / 2) as u16;
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu().to_le_bytes());
        config
    }

    /// A worker for the two queues of a pair, and for the service if there is one.
    fn pair<F: Frames + 'static>(
        &self,
        features: u64,
        queues: [Queue; 2],
        frames: F,
        switch: Arc<Switch>,
    ) -> io::Result<Box<dyn Worker>> {
        match &self.service {
            None => self.pair_on(features, queues, frames, switch),
            Some(service) => self.pair_on(features, queues, Served::new(frames, service), switch),
        }
    }

    fn pair_on<F: Frames + 'static>(
        &self,
        features: u64,
        queues: [Queue; 2],
        frames: F,
        switch: Arc<Switch>,
    ) -> io::Result<Box<dyn Worker>> {
        let largest = if features & LARGE_RECEIVE != 0 {
            MAX_FRAME
        } else {
            ETHERNET + usize::from(self.mtu().max(DEFAULT_MTU))
        };
        let counts = self.counts.get(usize::from(queues[0].index() / 2)).cloned();
        let setup = pair::Setup {
            mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            largest: HEADER + largest,
            limits: self.limits().clone(),
            link: self.link.clone(),
            switch,
            counts: counts.unwrap_or_default(),
        };
        Ok(Box::new(Pair::new(queues, frames, setup)?))
    }

    fn start_on_tap(&self, tap: &Arc<Tap>, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        let features = activation.features;
        if let Err(error) = tap.set_offloads(features) {
            self.link.set_down(&*activation.interrupt, &error);
        }
        let several = activation.has(VIRTIO_NET_F_MQ);
        let mut workers = Vec::new();
        let mut switches = Vec::new();
        for (index, queue) in tap.queues().iter().enumerate() {
            let is_used = index < usize::from(self.pairs_in_use.load(Ordering::Relaxed));
            if index > 0 && self.link.is_up() {
                queue.set_enabled(is_used)?;
            }
            let there = index == 0 || several && activation.queues[2 * index].is_some();
            if there && switches.len() == index {
                let queues = [activation.take(2 * index)?, activation.take(2 * index + 1)?];
                let switch = Arc::new(Switch::new(index == 0 || is_used)?);
                workers.push(self.pair(features, queues, queue.clone(), switch.clone())?);
                switches.push(switch);
            }
        }
        if activation.has(VIRTIO_NET_F_CTRL_VQ) {
            // §5.1.2: behind all pairs that there can be.
            let index = if several { 2 * tap.queues().len() } else { 2 };
            let queue = activation.take(index)?;
            workers.push(Box::new(Control::new(
                queue,
                tap.clone(),
                switches,
                self.pairs_in_use.clone(),
            )));
        }
        Ok(workers)
    }
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if self.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.has_several_pairs() {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        }
        if let Backend::Tap(tap) = &self.backend {
            features |= OFFLOADS;
            if tap.knows_uso() {
                features |= UDP_OFFLOADS;
            }
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn reset(&self) {
        self.pairs_in_use.store(1, Ordering::Relaxed);
        self.link_has_changed.store(false, Ordering::Relaxed);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            mtu: self.mtu(),
            link_up: self.link.is_up(),
            pairs: self.pairs_in_use.load(Ordering::Relaxed),
        })
    }

    fn restore(&self, state: &DeviceState) -> Result<(), Difference> {
        let DeviceState::Net(state) = state else {
            return Err(Difference::Kind);
        };
        if state.mtu != self.mtu() {
            return Err(Difference::Mtu {
                snapshot: state.mtu,
                here: self.mtu(),
            });
        }
        self.pairs_in_use.store(state.pairs, Ordering::Relaxed);
        let link_has_changed = state.link_up != self.link.is_up();
        self.link_has_changed.store(link_has_changed, Ordering::Relaxed);
        Ok(())
    }

    fn start(&self, mut activation: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        if self.link_has_changed.swap(false, Ordering::Relaxed) {
            activation.interrupt.config_changed();
        }
        match &self.backend {
            Backend::Tap(tap) => self.start_on_tap(tap, activation),
            Backend::Stream(socket) => {
                let queues = [activation.take(0)?, activation.take(1)?];
                let switch = Arc::new(Switch::new(true)?);
                let frames = FrameStream::of(socket);
                Ok(vec![self.pair(activation.features, queues, frames, switch)?])
            }
        }
    }

    fn counts(&self) -> Vec<Sample> {
        Counters::sum(self.counts.iter().map(|counts| &**counts))
    }
}

/// The parts of `buffers` in which `len` bytes from `offset` on lie.
fn pieces(buffers: &[iovec], offset: usize, len: usize) -> impl Iterator<Item = iovec> {
    let (mut skip, mut left) = (offset, len);
    let pieces = buffers.iter().map_while(move |buffer| {
        let skipped = skip.min(buffer.iov_len);
        let len = left.min(buffer.iov_len - skipped);
        let piece = iovec {
            iov_base: buffer.iov_base.cast::<u8>().wrapping_add(skipped).cast(),
            iov_len: len,
        };
        let more = left > 0;
        (skip, left) = (skip - skipped, left - len);
        more.then_some(piece)
    });
    pieces.filter(|piece| piece.iov_len > 0)
}

//! The guest's virtio devices: made of its configuration, then put on the bus where the guest is told that they are.

use std::io;
use std::sync::Arc;

use arch_x86_64::layout::{self, Interrupts, VirtioSlot};
use devices::disk::{DiskError, Image};
use devices::virtio::balloon::Balloon;
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::net::{FrameSocket, Net, NetOptions, Service, Tap};
use devices::virtio::rng::Rng;
use devices::virtio::vsock::{SocketFile, Vsock};
use devices::virtio::{IoThreads, MmioTransport, NOTIFY_OFFSET, VirtioDevice};
use kvm_ioctls::{IoEventAddress, VmFd};
use tracing::warn;

use crate::config::net::MacAddress;
use crate::config::{ConfigError, DiskConfig, NetConfig, VmConfig};
use crate::error::{Doing, Error};
use crate::io_thread::{IoThreadPool, Sharing};
use crate::memory::GuestMemory;
use crate::mmds::{self, Metadata, MetadataService};
use crate::passt;
use crate::vcpu::Buses;
use crate::vm::eventfd;

/// A device and the threads that its workers will run on.
pub struct Device {
    /// What its user calls it.
    pub label: String,
    device: Arc<dyn VirtioDevice>,
    threads: Arc<dyn IoThreads>,
}

/// What of the host's is to be put in order when the machine goes, by dropping it.
pub enum Kept {
    /// A socket's name.
    Socket(SocketFile),
    /// What an overlay has is written down in its file.
    Overlay(KeptOverlay),
}

/// An overlay, in whose file it is written down when this is dropped which sectors it has.
pub struct KeptOverlay(Arc<Image>);

impl Kept {
    /// Has written down what the guest has done until now, as far as it is not.
    ///
    /// # Errors
    /// The host cannot write it.
    pub fn settle(&self) -> io::Result<()> {
        match self {
            Self::Socket(_) => Ok(()),
            Self::Overlay(overlay) => overlay.0.settle(),
        }
    }
}

impl Drop for KeptOverlay {
    fn drop(&mut self) {
        if let Err(error) = self.0.settle() {
            warn!(
                "what the guest wrote last to the disk {} may be lost: {error}",
                self.0
            );
        }
    }
}

/// A device that is one of a machine's.
pub struct Placed<D> {
    /// It.
    pub device: Arc<D>,
    /// Which of the machine's transports is its.
    pub transport: usize,
}

/// The devices that can be changed while the guest runs, in the configuration's order.
#[derive(Default)]
pub struct Changeable {
    /// Disks.
    pub disks: Vec<Placed<Block>>,
    /// Networks.
    pub nets: Vec<Placed<Net>>,
    /// The balloon.
    pub balloon: Option<Placed<Balloon>>,
    /// What the metadata service tells the guest, if there is one.
    pub metadata: Arc<Metadata>,
}

/// The devices so far, in the order in which the guest finds them.
#[derive(Default)]
struct Devices(Vec<Device>);

impl Devices {
    fn add<D: VirtioDevice + 'static>(
        &mut self,
        label: String,
        device: D,
        threads: &Arc<dyn IoThreads>,
    ) -> Placed<D> {
        let (device, transport) = (Arc::new(device), self.0.len());
        self.0.push(Device {
            label,
            device: device.clone(),
            threads: threads.clone(),
        });
        Placed { device, transport }
    }
}

/// Opens what the devices need of the host. Their order is the one in which the guest finds them.
pub fn open(config: &VmConfig) -> Result<(Vec<Device>, Vec<Kept>, Changeable), Error> {
    let shared: Arc<dyn IoThreads> = Arc::new(IoThreadPool::new("io", Sharing::One));
    let (mut devices, mut files) = (Devices::default(), Vec::new());
    let mut changeable = Changeable::default();
    for (index, disk) in config.disks.iter().enumerate() {
        let own: Arc<dyn IoThreads>;
        let threads = if disk.iothread {
            own = Arc::new(IoThreadPool::new("disk", Sharing::Own));
            &own
        } else {
            &shared
        };
        let block = devices.add(disk.label(index), open_disk(disk)?, threads);
        if disk.overlay.is_some() {
            files.push(Kept::Overlay(KeptOverlay(block.device.image())));
        }
        changeable.disks.push(block);
    }
    let service = service(config, &changeable.metadata);
    for (index, net) in config.nets.iter().enumerate() {
        let several: Arc<dyn IoThreads>;
        let threads = if net.queues() > 1 {
            several = Arc::new(IoThreadPool::new("net", Sharing::Own));
            &several
        } else {
            &shared
        };
        let label = net.label(index);
        let device = open_net(net, config.mac(index))?;
        let device = match &service {
            Some((nets, service)) if nets.contains(&label) => device.with_service(service.clone()),
            _ => device,
        };
        changeable.nets.push(devices.add(label, device, threads));
    }
    if let Some(vsock) = &config.vsock {
        let (device, file) = Vsock::bind(&vsock.socket(config.name())?, vsock.cid())?;
        devices.add("vsock".to_owned(), device, &shared);
        files.push(Kept::Socket(file));
    }
    if let Some(balloon) = &config.balloon {
        let balloon = devices.add("balloon".to_owned(), Balloon::new(balloon.options()), &shared);
        changeable.balloon = Some(balloon);
    }
    if config.rng {
        devices.add("rng".to_owned(), Rng::default(), &shared);
    }
    Ok((devices.0, files, changeable))
}

fn open_disk(config: &DiskConfig) -> Result<Block, DiskError> {
    let engine = config.engine.map(|engine| engine.0);
    if let Some(engine) = engine {
        engine.check()?;
    }
    let image = match &config.overlay {
        None => Image::open(&config.path, config.image_options())?,
        Some(overlay) => Image::open_over(&config.path, overlay, config.image_options())?,
    };
    let options = BlockOptions {
        id: config.id.clone().unwrap_or_default(),
        engine,
        queues: config.queues(),
        limit: config.limit(),
    };
    Ok(Block::new(image, options))
}

fn open_net(config: &NetConfig, mac: MacAddress) -> Result<Net, Error> {
    let name = format!("network '{config}'");
    let options = NetOptions {
        mac: mac.0,
        mtu: config.mtu,
        rx_limit: config.rx_limit(),
        tx_limit: config.tx_limit(),
    };
    if let Some(tap) = &config.tap {
        let tap = Tap::open(tap, config.queues(), config.mtu)?;
        return Ok(Net::on_tap(name, options, tap));
    }
    let socket = FrameSocket::new(passt::start(config)?).doing("use passt's socket")?;
    Ok(Net::on_stream(name, options, socket))
}

/// The metadata service, and the networks that it is on.
fn service<'a>(config: &'a VmConfig, metadata: &Arc<Metadata>) -> Option<(&'a [String], Service)> {
    let mmds = config.mmds.as_ref()?;
    let service = Service {
        address: mmds.address(),
        port: mmds::PORT,
        responder: Arc::new(MetadataService::new(mmds.clone(), metadata.clone())),
    };
    Some((&mmds.nets, service))
}

/// Puts the devices on the bus of memory, for a kernel that is interrupted so; returns their transports, and where they are.
///
/// Doorbells and interrupts go between KVM and the I/O threads: no vCPU leaves the guest for them.
pub fn place(
    fd: &VmFd,
    memory: &GuestMemory,
    devices: Vec<Device>,
    kernel: Interrupts,
    buses: &mut Buses,
) -> Result<(Vec<Arc<MmioTransport>>, Vec<VirtioSlot>), Error> {
    let mut transports = Vec::new();
    let slots = layout::virtio_slots(devices.len(), kernel);
    let slots = slots.ok_or(ConfigError::TooManyDevices(devices.len()))?;
    for (slot, device) in slots.iter().zip(devices) {
        let line = eventfd()?;
        fd.register_irqfd(&line, slot.irq)
            .doing("wire a virtio device's interrupt")?;
        let transport = MmioTransport::new(device.device, device.threads, memory.clone(), line);
        let transport = Arc::new(transport.doing("open an eventfd")?);
        let notify = IoEventAddress::Mmio(slot.base.0 + NOTIFY_OFFSET);
        for (index, doorbell) in (0u32..).zip(transport.doorbells()) {
            fd.register_ioevent(doorbell, &notify, index)
                .doing("wire a virtio device's doorbell")?;
        }
        buses
            .mmio
            .insert(slot.base.0, layout::VIRTIO_MMIO_SIZE, transport.clone())?;
        transports.push(transport);
    }
    Ok((transports, slots))
}

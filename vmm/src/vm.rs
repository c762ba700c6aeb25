//! One virtual machine: built from a configuration, then run.
//!
//! Building goes step by step: KVM's VM → what the host kind needs → guest memory → interrupt controllers →
//! devices on buses → kernel and tables in memory → vCPUs. The order of the first ones is that in which KVM does
//! not wait for a grace period, of up to 20 ms, between them (docs/decisions.md).

use std::arch::x86_64::__cpuid;
use std::io::Write;
use std::sync::Arc;
use std::thread::JoinHandle;

use arch_x86_64::layout;
use arch_x86_64::registers::Registers;
use devices::serial::{self, SerialPort};
use devices::virtio::vsock::SocketFile;
use devices::{i8042, power, pvpanic, rtc};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use tracing::{debug, info};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot;
use crate::config::{ByteSize, VmConfig};
use crate::dirty_log;
use crate::error::{Doing, Error};
use crate::host::{self, HostKind};
use crate::lifecycle::{Lifecycle, Stop};
use crate::memory;
use crate::pvm;
use crate::vcpu::{self, Buses, Host, Machine, VcpuThread};
use crate::virtio;

/// A machine that has been built and has not run. Its vCPUs' threads wait for their start.
pub struct Vm {
    vcpus: Vec<VcpuThread>,
    buses: Arc<Buses>,
    registers: Registers,
    serial: Arc<SerialPort>,
    room: EventFd,
    lifecycle: Arc<Lifecycle>,
    files: Vec<SocketFile>,
}

/// A machine whose vCPUs run, each on its thread. Dropping it stops them.
pub struct RunningVm {
    threads: Vec<JoinHandle<()>>,
    serial: Arc<SerialPort>,
    room: EventFd,
    lifecycle: Arc<Lifecycle>,
    files: Vec<SocketFile>,
}

impl Vm {
    /// Builds the machine that `config` describes; what its serial console prints goes to `console`.
    ///
    /// The vCPUs are made by their own threads while this one does the rest.
    pub fn build(config: &VmConfig, console: Box<dyn Write + Send>) -> Result<Self, Error> {
        config.check()?;
        let kvm = host::open()?;
        let kind = choose_host_kind(config);
        check_memory_fits_cpu(config.memory())?;
        vcpu::install_kick_handler().doing("install a signal handler")?;
        let host = Arc::new(Host::new(kvm, kind, config.cpus()));
        let vcpus = (0..config.cpus())
            .map(|index| VcpuThread::spawn(index, host.clone()))
            .collect::<Result<Vec<_>, _>>()?;

        let machine = Arc::new(create_machine(&host, config.memory())?);
        vcpus.iter().for_each(|vcpu| vcpu.make(machine.clone()));

        let lifecycle = Arc::new(Lifecycle::new().doing("open an eventfd")?);
        let room = eventfd()?;
        let (mut buses, serial) = place_devices(&machine.fd, &room, console)?;
        let (devices, files) = virtio::open(config)?;
        let slots = virtio::place(&machine.fd, &machine.memory, devices, &mut buses)?;
        let registers = boot::load(config, kind, &machine.memory, &slots)?;
        vcpus.iter().try_for_each(VcpuThread::wait_until_ready)?;
        Ok(Self {
            vcpus,
            buses: buses.into(),
            registers,
            serial,
            room,
            lifecycle,
            files,
        })
    }

    /// Lets the vCPUs run.
    pub fn start(self) -> RunningVm {
        self.lifecycle.start();
        let start = |vcpu: VcpuThread| vcpu.start(self.buses.clone(), self.registers, self.lifecycle.clone());
        RunningVm {
            threads: self.vcpus.into_iter().map(start).collect(),
            serial: self.serial,
            room: self.room,
            lifecycle: self.lifecycle,
            files: self.files,
        }
    }
}

impl RunningVm {
    /// The guest's serial console.
    pub fn serial(&self) -> &SerialPort {
        &self.serial
    }

    /// Becomes readable when the serial console may take more input than it did.
    pub fn room(&self) -> &EventFd {
        &self.room
    }

    /// Becomes readable when the machine has stopped.
    pub fn stopped(&self) -> &EventFd {
        self.lifecycle.stopped()
    }

    /// Why the machine has stopped, or `None` while it runs.
    pub fn stop_reason(&self) -> Option<Stop> {
        self.lifecycle.stop_reason()
    }

    /// Removes what the machine has in the host's file system, for who does not drop it.
    pub fn remove_files(&mut self) {
        self.files.clear();
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.lifecycle.stop(Stop::Ended);
        for thread in &self.threads {
            // Fails only for a thread that has ended.
            let _ = vcpu::kick(thread);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                debug!("a vCPU's thread had panicked");
            }
        }
    }
}

fn choose_host_kind(config: &VmConfig) -> HostKind {
    let kind = config.host_kind.unwrap_or_else(HostKind::detect);
    info!("host kind: {kind}");
    kind
}

fn check_memory_fits_cpu(wanted: ByteSize) -> Result<(), Error> {
    let max = ByteSize(layout::max_memory(physical_address_bits()));
    if wanted > max {
        Err(Error::MemoryBeyondCpu { wanted, max })
    } else {
        Ok(())
    }
}

/// Leaf 0x8000_0008, EAX bits 0 to 7 (Intel SDM Vol 2, CPUID). A CPU without that leaf has 36.
fn physical_address_bits() -> u8 {
    const LEAF: u32 = 0x8000_0008;
    if __cpuid(LEAF & 1 << 31).eax < LEAF {
        36
    } else {
        __cpuid(LEAF).eax as u8
    }
}

fn create_machine(host: &Host, memory: ByteSize) -> Result<Machine, Error> {
    let fd = create_vm(&host.kvm)?;
    if host.kind == HostKind::Pvm {
        pvm::prepare_vm(&fd)?;
    }
    let memory = memory::map(memory)?;
    dirty_log::set_slots(&fd, &memory, false)?;
    create_interrupt_controllers(&fd)?;
    Ok(Machine { fd, memory })
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            // A signal during KVM_CREATE_VM interrupts it; it has no effect then.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.doing("create a virtual machine"),
        }
    }
}

fn create_interrupt_controllers(fd: &VmFd) -> Result<(), Error> {
    fd.set_tss_address(layout::KVM_TSS.0 as usize)
        .doing("place KVM's task state segment")?;
    fd.set_identity_map_address(layout::KVM_IDENTITY_MAP.0)
        .doing("place KVM's identity map")?;
    fd.create_irq_chip().doing("create the interrupt controllers")?;
    // The speaker port answers without sound: guests time short waits by it.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    fd.create_pit2(pit).doing("create the timer")
}

/// Puts every device where `arch-x86_64`'s layout and ACPI tables say that it is.
fn place_devices(
    fd: &VmFd,
    room: &EventFd,
    console: Box<dyn Write + Send>,
) -> Result<(Buses, Arc<SerialPort>), Error> {
    let interrupt = eventfd()?;
    fd.register_irqfd(&interrupt, layout::COM1_IRQ)
        .doing("wire the serial port's interrupt")?;
    let room = room.try_clone().doing("copy an eventfd")?;
    let serial = Arc::new(SerialPort::new(interrupt, room, console));

    let mut buses = Buses::default();
    let power = power::PowerRegisters::new(layout::S5_SLEEP_TYPE, layout::RESET_VALUE);
    let pio = &mut buses.pio;
    pio.insert(layout::COM1_PORT.into(), serial::PORTS, serial.clone())?;
    pio.insert(
        layout::CMOS_PORT.into(),
        rtc::PORTS,
        Arc::new(rtc::Rtc::default()),
    )?;
    pio.insert(layout::I8042_DATA_PORT.into(), 1, Arc::new(i8042::DataPort))?;
    pio.insert(layout::I8042_COMMAND_PORT.into(), 1, Arc::new(i8042::CommandPort))?;
    pio.insert(
        layout::PVPANIC_PORT.into(),
        pvpanic::PORTS,
        Arc::new(pvpanic::Pvpanic),
    )?;
    pio.insert(layout::SLEEP_CONTROL_PORT.into(), power::PORTS, Arc::new(power))?;
    Ok((buses, serial))
}

pub(crate) fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing("open an eventfd")
}

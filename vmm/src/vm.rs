//! One virtual machine: built from a configuration, then run.
//!
//! Building goes step by step: KVM's VM → guest memory → interrupt controllers → devices on buses → kernel and
//! tables in memory → vCPUs. Memory, and what a host kind needs, come before the interrupt controllers: once
//! these are there, KVM waits for a grace period, 4 to 20 ms, to change anything.

use std::io::Write;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arch_x86_64::layout;
use arch_x86_64::registers::Registers;
use devices::serial::{self, SerialPort};
use devices::{i8042, power, pvpanic, rtc};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use tracing::{debug, info};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot;
use crate::config::{ByteSize, VmConfig};
use crate::error::{Error, KvmContext};
use crate::host::{self, HostKind};
use crate::lifecycle::{Lifecycle, Stop};
use crate::memory::{self, GuestMemory};
use crate::pvm::{self, PvmVcpu};
use crate::vcpu::{self, Buses, Vcpu};

/// A machine that has been built and has not run.
pub struct Vm {
    fd: VmFd,
    vcpus: Vec<Vcpu>,
    serial: Arc<SerialPort>,
    room: EventFd,
    lifecycle: Arc<Lifecycle>,
}

/// A machine whose vCPUs run, each on its thread. Dropping it stops them.
pub struct RunningVm {
    threads: Vec<JoinHandle<()>>,
    serial: Arc<SerialPort>,
    room: EventFd,
    lifecycle: Arc<Lifecycle>,
    /// Closed last: its interrupt controllers serve the vCPUs.
    _fd: VmFd,
}

impl Vm {
    /// Builds the machine that `config` describes; what its serial console prints goes to `console`.
    pub fn build(config: &VmConfig, console: Box<dyn Write + Send>) -> Result<Self, Error> {
        config.check()?;
        let kvm = host::open()?;
        let host = choose_host_kind(config);
        let leaves = vcpu::supported_leaves(&kvm)?;
        check_memory_fits_cpu(config.memory(), &leaves)?;

        let fd = create_vm(&kvm)?;
        let memory = memory::map(config.memory())?;
        give_memory(&fd, &memory)?;
        if host == HostKind::Pvm {
            pvm::prepare_vm(&fd)?;
        }
        create_interrupt_controllers(&fd)?;
        let room = eventfd()?;
        let (buses, serial) = place_devices(&fd, &room, console)?;
        let registers = boot::load(config, host, &memory)?;
        let lifecycle = Arc::new(Lifecycle::new().doing("open an eventfd")?);
        let mut vm = Self {
            fd,
            vcpus: Vec::new(),
            serial,
            room,
            lifecycle,
        };
        vm.create_vcpus(
            config.cpus(),
            host,
            &leaves,
            &registers,
            &Arc::new(buses),
            &memory,
        )?;
        Ok(vm)
    }

    fn create_vcpus(
        &mut self,
        cpus: u32,
        host: HostKind,
        leaves: &[arch_x86_64::cpuid::Leaf],
        registers: &Registers,
        buses: &Arc<Buses>,
        memory: &GuestMemory,
    ) -> Result<(), Error> {
        for index in 0..cpus {
            let mut fd = self.fd.create_vcpu(index.into()).doing("create a vCPU")?;
            fd.set_cpuid2(&vcpu::cpuid(leaves, index, cpus, host)?)
                .doing("set a vCPU's CPUID")?;
            vcpu::set_msrs(&fd)?;
            // The others wait for the guest's INIT and SIPI, which set their registers.
            if index == 0 {
                vcpu::set_boot_state(&fd, registers)?;
            }
            let pvm = match host {
                HostKind::Hardware => None,
                HostKind::Pvm => Some(PvmVcpu::new(&self.fd, &mut fd, layout::PVM_STUB)?),
            };
            let (buses, memory) = (buses.clone(), memory.clone());
            self.vcpus.push(Vcpu {
                index,
                fd,
                buses,
                memory,
                pvm,
                lifecycle: self.lifecycle.clone(),
            });
        }
        Ok(())
    }

    /// Lets the vCPUs run, each on a thread of its own.
    pub fn start(self) -> Result<RunningVm, Error> {
        vcpu::install_kick_handler()
            .map_err(std::io::Error::from)
            .doing("install a signal handler")?;
        self.lifecycle.start();
        let mut running = RunningVm {
            threads: Vec::new(),
            serial: self.serial,
            room: self.room,
            lifecycle: self.lifecycle,
            _fd: self.fd,
        };
        for vcpu in self.vcpus {
            let name = format!("vcpu{}", vcpu.index);
            let thread = thread::Builder::new().name(name).spawn(move || vcpu.run());
            running.threads.push(thread.doing("start a vCPU's thread")?);
        }
        Ok(running)
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

/// Leaf 0x8000_0008, EAX bits 0 to 7: physical address bits (Intel SDM Vol 2, CPUID). A CPU without it has 36.
fn check_memory_fits_cpu(wanted: ByteSize, leaves: &[arch_x86_64::cpuid::Leaf]) -> Result<(), Error> {
    let bits = leaves
        .iter()
        .find(|leaf| leaf.function == 0x8000_0008)
        .map_or(36, |leaf| leaf.eax as u8);
    let max = ByteSize(layout::max_memory(bits));
    if wanted > max {
        Err(Error::MemoryBeyondCpu { wanted, max })
    } else {
        Ok(())
    }
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

fn give_memory(fd: &VmFd, memory: &GuestMemory) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region's mapping is kept by `memory`, of which every vCPU holds a share, so it outlives
        // all that can run in it; and the regions of one GuestMemory do not overlap.
        unsafe { fd.set_user_memory_region(region) }.doing("give the guest its memory")?;
    }
    Ok(())
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

fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing("open an eventfd")
}

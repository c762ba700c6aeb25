//! One virtual machine: built from a configuration or a snapshot's state, then run, paused, and run again.
//!
//! Building goes step by step: a [`Foundation`] → devices on buses → kernel and tables in memory, or all that a state says →
//! vCPUs, which their own threads have made meanwhile.

mod changes;
mod user;

use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arch_x86_64::layout;
use devices::boot_timer::{self, BootTimer};
use devices::serial::{self, SerialPort};
use devices::virtio::MmioTransport;
use devices::{i8042, power, pvpanic, rtc};
use kvm_ioctls::VmFd;
use nix::time::{ClockId, clock_gettime};
use tracing::{debug_span, warn};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot;
use crate::config::VmConfig;
use crate::console::Hub;
use crate::error::{Doing, Error};
use crate::events::Events;
use crate::foundation::Foundation;
use crate::generation;
use crate::host::HostKind;
use crate::lifecycle::{Lifecycle, Stop};
use crate::machine::Machine;
use crate::machine_state::MachineState;
use crate::memory::GuestMemory;
use crate::snapshot::History;
use crate::state::{LoadError, VmState};
use crate::vcpu::features::CpuFeatures;
use crate::vcpu::state::CpuRestore;
use crate::vcpu::{Begin, Buses, ExitCounts, Host, RequestError, VcpuThread, Vcpus};
use crate::virtio::{self, Changeable};

pub use changes::ChangeError;

/// A machine that has been built and has not run. Its vCPUs' threads wait for their start.
pub struct Vm {
    vcpus: Vec<VcpuThread>,
    buses: Arc<Buses>,
    begin: Begin,
    running: Parts,
}

/// What a machine has beside its vCPUs.
struct Parts {
    config: Mutex<Arc<VmConfig>>,
    host: Arc<Host>,
    machine: Arc<Machine>,
    serial: Arc<SerialPort>,
    console: Arc<Hub>,
    rtc: Arc<rtc::Rtc>,
    virtio: Vec<Arc<MmioTransport>>,
    /// Of each of them, what its user calls it.
    labels: Vec<String>,
    changeable: Changeable,
    room: EventFd,
    lifecycle: Arc<Lifecycle>,
    files: Mutex<Vec<virtio::Kept>>,
    history: Mutex<History>,
    /// Who is told what is done to it, once there is somebody.
    events: OnceLock<Arc<Events>>,
    /// By its user: it rests whatever else is done with it.
    held: AtomicBool,
    built: Instant,
}

/// A machine whose vCPUs run or rest, each on its thread. Dropping it stops them.
pub struct RunningVm {
    // Dropped first: nothing runs any more when the rest goes.
    vcpus: Vcpus,
    parts: Parts,
}

impl Vm {
    /// Builds the machine that `config` describes, on the foundation that was laid for it; what its serial console prints
    /// goes to `console`.
    ///
    /// # Errors
    /// The user asked for what cannot be, or the host refuses something.
    pub fn build(
        foundation: Foundation,
        config: &VmConfig,
        console: Box<dyn Write + Send>,
    ) -> Result<Self, Error> {
        let kind = foundation.host.kind;
        Self::assemble(foundation, config, console, |machine, slots| {
            Ok(Begin::Boot(boot::load(config, kind, &machine.memory, slots)?))
        })
    }

    /// Builds a machine like the one that a snapshot was taken of, around the snapshot's memory. It is at rest:
    /// [`RunningVm::load`] makes it what the snapshot's state says.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    pub fn rebuild(
        config: &VmConfig,
        memory: GuestMemory,
        console: Box<dyn Write + Send>,
    ) -> Result<Self, Error> {
        let foundation = Foundation::around(config, || Ok(memory))?;
        Self::assemble(foundation, config, console, |_, _| Ok(Begin::Rest))
    }

    /// The vCPUs are made by their own threads while this one does the rest.
    fn assemble(
        foundation: Foundation,
        config: &VmConfig,
        console: Box<dyn Write + Send>,
        load: impl FnOnce(&Machine, &[layout::VirtioSlot]) -> Result<Begin, Error>,
    ) -> Result<Self, Error> {
        let _span = debug_span!("build").entered();
        let Foundation {
            host,
            machine,
            vcpus,
            begun,
        } = foundation;
        let lifecycle = Arc::new(Lifecycle::new().doing("open an eventfd")?);
        let room = eventfd()?;
        let hub = Arc::new(Hub::new()?);
        let (mut buses, serial, rtc) = place_devices(&machine.fd, &room, hub.printer(console))?;
        if config.boot_timer {
            let timer = BootTimer::new(move || report_boot(begun));
            buses
                .mmio
                .insert(layout::BOOT_TIMER.0, boot_timer::MMIO_SIZE, Arc::new(timer))?;
        }
        let (devices, files, changeable) = virtio::open(config)?;
        let labels = devices.iter().map(|device| device.label.clone()).collect();
        let kernel = config.interrupts();
        let (virtio, slots) = virtio::place(&machine.fd, &machine.memory, devices, kernel, &mut buses)?;
        let begin = load(&machine, &slots)?;
        vcpus.iter().try_for_each(VcpuThread::wait_until_ready)?;
        Ok(Self {
            vcpus,
            buses: buses.into(),
            begin,
            running: Parts {
                config: Mutex::new(Arc::new(config.clone())),
                host,
                machine,
                serial,
                console: hub,
                rtc,
                virtio,
                labels,
                changeable,
                room,
                lifecycle,
                files: files.into(),
                history: Mutex::default(),
                events: OnceLock::new(),
                held: AtomicBool::new(false),
                built: Instant::now(),
            },
        })
    }

    /// Lets the vCPUs run, or rest if the machine has been made for a snapshot's state.
    pub fn start(self) -> RunningVm {
        let lifecycle = &self.running.lifecycle;
        match self.begin {
            Begin::Boot(_) => lifecycle.start(),
            Begin::Rest => lifecycle.pause(),
        }
        let start = |vcpu: VcpuThread| vcpu.start(self.buses.clone(), self.begin, lifecycle.clone());
        RunningVm {
            vcpus: Vcpus::new(self.vcpus.into_iter().map(start).collect()),
            parts: self.running,
        }
    }
}

impl RunningVm {
    /// What it was built from, with what has been changed since.
    pub fn config(&self) -> Arc<VmConfig> {
        self.lock_config().clone()
    }

    fn lock_config(&self) -> MutexGuard<'_, Arc<VmConfig>> {
        self.parts.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs the guest's kernel code.
    pub fn host_kind(&self) -> HostKind {
        self.parts.host.kind
    }

    /// How long ago it was built.
    pub fn age(&self) -> Duration {
        self.parts.built.elapsed()
    }

    /// What a guest can be shown of this host's CPU.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn cpu_features(&self) -> Result<CpuFeatures, Error> {
        self.parts.host.features()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.parts.machine.memory
    }

    /// What it has to do with snapshots.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.parts.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// KVM's side of it.
    pub fn machine(&self) -> &Machine {
        &self.parts.machine
    }

    /// The guest's serial console.
    pub fn serial(&self) -> &SerialPort {
        &self.parts.serial
    }

    /// Who watches it and types there.
    pub fn console(&self) -> &Arc<Hub> {
        &self.parts.console
    }

    /// Becomes readable when the serial console may take more input than it did.
    pub fn room(&self) -> &EventFd {
        &self.parts.room
    }

    /// What each vCPU has come out of the guest for.
    pub fn exit_counts(&self) -> impl Iterator<Item = &ExitCounts> {
        self.vcpus.exit_counts()
    }

    /// The virtio devices, each with what its user calls it.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &MmioTransport)> {
        let labels = self.parts.labels.iter().map(String::as_str);
        labels.zip(self.parts.virtio.iter().map(|device| &**device))
    }

    /// Whether it runs, shared with who may end it.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.parts.lifecycle
    }

    /// Becomes readable when the machine has stopped.
    pub fn stopped(&self) -> &EventFd {
        self.parts.lifecycle.stopped()
    }

    /// Why the machine has stopped, or `None` while it has not.
    pub fn stop_reason(&self) -> Option<Stop> {
        self.parts.lifecycle.stop_reason()
    }

    /// Ends the machine for good.
    pub fn stop(&self, why: Stop) {
        self.parts.lifecycle.stop(why);
    }

    /// Puts in order what the machine has in the host's file system, for who does not drop it.
    pub fn close_files(&self) {
        let mut files = self.parts.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.clear();
    }

    /// Has the files of the guest's disks hold what it has written: overlays are told apart from their bases by a bitmap,
    /// which else is written when the guest flushes.
    ///
    /// # Errors
    /// The host cannot write it.
    pub fn settle_disks(&self) -> io::Result<()> {
        let files = self.parts.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().try_for_each(virtio::Kept::settle)
    }

    /// Takes the vCPUs out of the guest, then the devices' workers off their threads, with no request in flight: from
    /// now on nothing changes the guest's memory.
    ///
    /// # Errors
    /// The guest has ended, or does not come to rest; then it goes on.
    pub fn pause(&self) -> Result<(), RequestError> {
        if self.is_held() {
            return Ok(());
        }
        self.vcpus.pause()?;
        self.parts.lifecycle.pause();
        self.parts.virtio.iter().for_each(|device| device.pause());
        Ok(())
    }

    /// Lets a paused machine go on, unless it is [held](Self::hold). A device that cannot has told its driver that it needs a reset, and the log why.
    pub fn resume(&self) {
        if self.is_held() {
            return;
        }
        for device in &self.parts.virtio {
            if let Err(error) = device.resume() {
                warn!("a device cannot go on: {error}");
            }
        }
        self.parts.lifecycle.start();
        self.vcpus.resume();
    }

    /// Everything that makes a paused machine what it is, but for its memory.
    ///
    /// # Errors
    /// The guest has ended, or KVM does not tell.
    pub fn save(&self) -> Result<VmState, RequestError> {
        let parts = &self.parts;
        Ok(VmState {
            // Before the vCPUs: an interrupt that is on its way from one to the other is seen.
            machine: MachineState::save(&parts.machine.fd)?,
            vcpus: self.vcpus.save()?,
            serial: parts.serial.save(),
            rtc: parts.rtc.save(),
            virtio: parts.virtio.iter().map(|device| device.save()).collect(),
        })
    }

    /// Whether a state is of a machine like this one.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, state: &VmState) -> Result<(), LoadError> {
        state.check_shape(self.config().cpus(), self.parts.virtio.len())
    }

    /// Makes a paused machine what a state says, down to its devices, which work from now on; its memory is there already. Its vCPUs
    /// rest until it is [resumed](Self::resume).
    ///
    /// # Errors
    /// The state is another machine's, or KVM refuses it. The machine is of no use any more.
    pub fn load(&self, state: VmState) -> Result<(), LoadError> {
        self.check(&state)?;
        let parts = &self.parts;
        let vcpus = CpuRestore::new(state.vcpus);
        self.vcpus.load(&Arc::new(vcpus))?;
        // After the vCPUs: what the I/O APIC holds is delivered at once.
        state.machine.restore(&parts.machine.fd)?;
        parts.serial.restore(&state.serial)?;
        parts.rtc.restore(&state.rtc)?;
        for (device, state) in parts.virtio.iter().zip(state.virtio) {
            device.restore(state)?;
        }
        for device in &parts.virtio {
            device.resume().doing("let a device go on")?;
        }
        // Its twins, if there are any, have another one, and the guest hears of it before it goes on.
        Ok(generation::renew(&parts.machine.fd, &parts.machine.memory)?)
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.parts.lifecycle.stop(Stop::Ended);
    }
}

/// Puts every device where `arch-x86_64`'s layout and ACPI tables say that it is.
fn place_devices(
    fd: &VmFd,
    room: &EventFd,
    console: Box<dyn Write + Send>,
) -> Result<(Buses, Arc<SerialPort>, Arc<rtc::Rtc>), Error> {
    let interrupt = eventfd()?;
    fd.register_irqfd(&interrupt, layout::COM1_IRQ)
        .doing("wire the serial port's interrupt")?;
    let room = room.try_clone().doing("copy an eventfd")?;
    let serial = Arc::new(SerialPort::new(interrupt, room, console));

    let rtc = Arc::new(rtc::Rtc::default());
    let mut buses = Buses::default();
    let power = power::PowerRegisters::new(layout::S5_SLEEP_TYPE, layout::RESET_VALUE);
    let pio = &mut buses.pio;
    pio.insert(layout::COM1_PORT.into(), serial::PORTS, serial.clone())?;
    pio.insert(layout::CMOS_PORT.into(), rtc::PORTS, rtc.clone())?;
    pio.insert(layout::I8042_DATA_PORT.into(), 1, Arc::new(i8042::DataPort))?;
    pio.insert(layout::I8042_COMMAND_PORT.into(), 1, Arc::new(i8042::CommandPort))?;
    pio.insert(
        layout::PVPANIC_PORT.into(),
        pvpanic::PORTS,
        Arc::new(pvpanic::Pvpanic),
    )?;
    pio.insert(layout::SLEEP_CONTROL_PORT.into(), power::PORTS, Arc::new(power))?;
    Ok((buses, serial, rtc))
}

/// Says how long the guest took since its machine was begun, and this process's CPUs, in the words that Firecracker's clients look for.
fn report_boot(begun: Instant) {
    let took = begun.elapsed();
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
    warn!(
        "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms",
        took.as_micros(),
        took.as_millis(),
        cpu.as_micros(),
        cpu.as_millis()
    );
}

pub(crate) fn eventfd() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing("open an eventfd")
}

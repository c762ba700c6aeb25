//! A vCPU's thread: makes its vCPU while the machine is still being built, waits, and runs it.
//!
//! What KVM takes for a vCPU, a third of a millisecond, so passes beside the loading of the kernel, and beside
//! that for the other vCPUs.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use arch_x86_64::cpuid::Leaf;
use arch_x86_64::layout;
use arch_x86_64::registers::Registers;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{Buses, Vcpu, setup};
use crate::error::{Error, KvmContext};
use crate::host::HostKind;
use crate::lifecycle::{Lifecycle, Stop};
use crate::memory::GuestMemory;
use crate::pvm::PvmVcpu;

/// What all vCPUs of a machine are made from.
pub struct Machine {
    kvm: Kvm,
    fd: VmFd,
    memory: GuestMemory,
    host: HostKind,
    cpus: u32,
    /// What KVM can show of the host's CPU: read by the first vCPU for all.
    leaves: OnceLock<Vec<Leaf>>,
}

impl Machine {
    /// A machine of `cpus` vCPUs with its memory and interrupt controllers in place.
    pub fn new(kvm: Kvm, fd: VmFd, memory: GuestMemory, host: HostKind, cpus: u32) -> Self {
        Self {
            kvm,
            fd,
            memory,
            host,
            cpus,
            leaves: OnceLock::new(),
        }
    }

    /// KVM's side of the machine.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn leaves(&self) -> Result<&[Leaf], Error> {
        if let Some(leaves) = self.leaves.get() {
            return Ok(leaves);
        }
        let leaves = setup::supported_leaves(&self.kvm)?;
        Ok(self.leaves.get_or_init(|| leaves))
    }

    fn create_vcpu(&self, index: u32) -> Result<(VcpuFd, Option<PvmVcpu>), Error> {
        let cpuid = setup::cpuid(self.leaves()?, index, self.cpus, self.host)?;
        let mut fd = self.fd.create_vcpu(index.into()).doing("create a vCPU")?;
        fd.set_cpuid2(&cpuid).doing("set a vCPU's CPUID")?;
        setup::set_msrs(&fd)?;
        let pvm = match self.host {
            HostKind::Hardware => None,
            HostKind::Pvm => Some(PvmVcpu::new(&self.fd, &mut fd, layout::PVM_STUB)?),
        };
        Ok((fd, pvm))
    }
}

/// What a vCPU still needs when the machine is complete.
struct Start {
    buses: Arc<Buses>,
    registers: Registers,
}

/// The thread of a vCPU that has not run.
pub struct VcpuThread {
    thread: JoinHandle<()>,
    ready: Receiver<Result<(), Error>>,
    start: Sender<Start>,
}

impl VcpuThread {
    /// Starts the thread, which makes the vCPU at once.
    pub fn spawn(index: u32, machine: Arc<Machine>, lifecycle: Arc<Lifecycle>) -> Result<Self, Error> {
        let (ready_sender, ready) = mpsc::channel();
        let (start, start_receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || live(index, &machine, lifecycle, &ready_sender, &start_receiver))
            .doing("start a vCPU's thread")?;
        Ok(Self { thread, ready, start })
    }

    /// Waits until the vCPU has been made. To be called once.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        // A thread that has gone without a word has panicked, which ends the process.
        self.ready.recv().unwrap_or(Ok(()))
    }

    /// Lets the vCPU run; the first of them starts with `registers`.
    pub fn start(self, buses: Arc<Buses>, registers: Registers) -> JoinHandle<()> {
        // As above.
        let _ = self.start.send(Start { buses, registers });
        self.thread
    }
}

/// What the thread does. When the machine is given up before its start, the channels close and it ends.
fn live(
    index: u32,
    machine: &Machine,
    lifecycle: Arc<Lifecycle>,
    ready: &Sender<Result<(), Error>>,
    start: &Receiver<Start>,
) {
    let (fd, pvm) = match machine.create_vcpu(index) {
        Ok(made) => made,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let Ok(Start { buses, registers }) = start.recv() else {
        return;
    };
    // The others wait for the guest's INIT and SIPI, which set their registers.
    if index == 0
        && let Err(error) = setup::set_boot_state(&fd, &registers)
    {
        return lifecycle.stop(Stop::Crash(format!("vCPU 0: {error}")));
    }
    let memory = machine.memory().clone();
    Vcpu {
        index,
        fd,
        buses,
        memory,
        pvm,
        lifecycle,
    }
    .run();
}

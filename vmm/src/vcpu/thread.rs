//! A vCPU's thread: makes its vCPU while the machine is still being built, waits, and runs it.
//!
//! What KVM takes for a vCPU, half a millisecond, so passes beside the building of the machine and the loading
//! of the kernel, and beside that for the other vCPUs.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use arch_x86_64::cpuid::{CpuTopology, Leaf};
use arch_x86_64::layout;
use arch_x86_64::registers::Registers;
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd};

use super::features::CpuFeatures;
use super::requests::{Request, RunningVcpu};
use super::state::StateFormat;
use super::{Buses, ExitCounts, Vcpu, setup};
use crate::config::CpuTemplate;
use crate::config::cpu_template::NoSuchLeaf;
use crate::error::{Doing, Error};
use crate::host::HostKind;
use crate::lifecycle::{Lifecycle, Stop};
use crate::machine::Machine;
use crate::pvm::PvmVcpu;

/// What vCPUs are made from before there is a machine: the host.
pub struct Host {
    /// The host's KVM.
    pub kvm: Kvm,
    /// What runs the guest's kernel code.
    pub kind: HostKind,
    /// How many vCPUs there will be, and of what.
    pub topology: CpuTopology,
    /// What KVM can show of the host's CPU. Reading it is slow, so one thread does it and the others wait for it.
    leaves: OnceLock<Result<Vec<Leaf>, LeavesError>>,
    template: CpuTemplate,
    /// What there is to a vCPU's state, once somebody has wanted to know.
    state_format: OnceLock<StateFormat>,
}

impl Host {
    /// A host on which a machine of these vCPUs is to be made, which show what `template` says.
    pub fn new(kvm: Kvm, kind: HostKind, topology: CpuTopology, template: CpuTemplate) -> Self {
        Self {
            template,
            kvm,
            kind,
            topology,
            leaves: OnceLock::new(),
            state_format: OnceLock::new(),
        }
    }

    /// What there is to a vCPU's state.
    pub(super) fn state_format(&self) -> Result<&StateFormat, Error> {
        match self.state_format.get() {
            Some(format) => Ok(format),
            // Two vCPUs that ask at the same time find the same.
            None => StateFormat::new(&self.kvm).map(|format| self.state_format.get_or_init(|| format)),
        }
    }

    /// What a guest can be shown of its CPU.
    ///
    /// # Errors
    /// KVM does not tell.
    pub fn features(&self) -> Result<CpuFeatures, Error> {
        let cpuid: Vec<_> = self.leaves()?.iter().map(setup::entry).collect();
        Ok(CpuFeatures::shown(&cpuid, self.kind))
    }

    fn leaves(&self) -> Result<&[Leaf], Error> {
        let leaves = self.leaves.get_or_init(|| {
            let mut leaves = setup::supported_leaves(&self.kvm).map_err(LeavesError::Kvm)?;
            self.template.apply(&mut leaves).map_err(LeavesError::Template)?;
            Ok(leaves)
        });
        leaves.as_deref().map_err(|error| match *error {
            LeavesError::Kvm(error) => Error::Refused {
                what: "read the host's CPUID",
                source: error.into(),
            },
            LeavesError::Template(error) => error.into(),
        })
    }
}

/// Why there is no CPUID.
#[derive(Clone, Copy)]
enum LeavesError {
    Kvm(kvm_ioctls::Error),
    Template(NoSuchLeaf),
}

/// How the vCPUs of a machine begin.
#[derive(Clone, Copy)]
#[expect(clippy::large_enum_variant, reason = "there is one for each vCPU, once")]
pub enum Begin {
    /// The first of them with these registers, where the kernel is entered; the others wait for it.
    Boot(Registers),
    /// At rest, to be told what they are.
    Rest,
}

/// What a vCPU still needs when the machine is complete.
struct Start {
    buses: Arc<Buses>,
    begin: Begin,
    lifecycle: Arc<Lifecycle>,
    requests: Receiver<Request>,
    counts: Arc<ExitCounts>,
}

/// The thread of a vCPU that has not run. Dropping it ends the thread.
pub struct VcpuThread {
    thread: JoinHandle<()>,
    machine: Sender<Arc<Machine>>,
    ready: Receiver<Result<(), Error>>,
    start: Sender<Start>,
}

impl VcpuThread {
    /// Starts the thread of vCPU `index`, which finds out what it can about the host.
    pub fn spawn(index: u32, host: Arc<Host>) -> Result<Self, Error> {
        let (machine, machine_receiver) = mpsc::channel();
        let (ready_sender, ready) = mpsc::channel();
        let (start, start_receiver) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || live(index, host, &machine_receiver, &ready_sender, &start_receiver))
            .doing("start a vCPU's thread")?;
        Ok(Self {
            thread,
            machine,
            ready,
            start,
        })
    }

    // A thread whose channels are closed has failed, which `wait_until_ready` tells, or has panicked, which ends
    // the process; so what cannot be sent to it need not be.

    /// Lets the thread make its vCPU.
    pub fn make(&self, machine: Arc<Machine>) {
        let _ = self.machine.send(machine);
    }

    /// Waits until the vCPU has been made. To be called once.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        self.ready.recv().unwrap_or(Ok(()))
    }

    /// Lets the vCPU run.
    pub fn start(self, buses: Arc<Buses>, begin: Begin, lifecycle: Arc<Lifecycle>) -> RunningVcpu {
        let (requests, receiver) = mpsc::channel();
        let counts = Arc::<ExitCounts>::default();
        let _ = self.start.send(Start {
            buses,
            begin,
            lifecycle,
            requests: receiver,
            counts: counts.clone(),
        });
        RunningVcpu {
            thread: self.thread,
            requests,
            counts,
        }
    }
}

/// What the thread does. When the machine is given up before its start, a channel closes and it ends.
fn live(
    index: u32,
    host: Arc<Host>,
    machine: &Receiver<Arc<Machine>>,
    ready: &Sender<Result<(), Error>>,
    start: &Receiver<Start>,
) {
    let cpuid = host
        .leaves()
        .and_then(|leaves| setup::cpuid(leaves, index, host.topology, host.kind));
    let Ok(machine) = machine.recv() else { return };
    let (fd, pvm) = match cpuid.and_then(|cpuid| create_vcpu(&machine, index, &cpuid, &host)) {
        Ok(made) => made,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    let Ok(Start {
        buses,
        begin,
        lifecycle,
        requests,
        counts,
    }) = start.recv()
    else {
        return;
    };
    // The others wait for the guest's INIT and SIPI, which set their registers.
    if index == 0
        && let Begin::Boot(registers) = begin
        && let Err(error) = setup::set_boot_state(&fd, &registers)
    {
        return lifecycle.stop(Stop::Crash(format!("vCPU 0: {error}")));
    }
    Vcpu {
        index,
        fd,
        host,
        buses,
        machine,
        pvm,
        lifecycle,
        requests,
        counts,
    }
    .run(matches!(begin, Begin::Rest));
}

fn create_vcpu(
    machine: &Machine,
    index: u32,
    cpuid: &CpuId,
    host: &Host,
) -> Result<(VcpuFd, Option<PvmVcpu>), Error> {
    let fd = machine.fd.create_vcpu(index.into()).doing("create a vCPU")?;
    fd.set_cpuid2(cpuid).doing("set a vCPU's CPUID")?;
    setup::set_msrs(&fd)?;
    setup::change_msrs(&fd, &host.template.msr_modifiers)?;
    let pvm = match host.kind {
        HostKind::Hardware => None,
        HostKind::Pvm => Some(PvmVcpu::new(&machine.fd, layout::PVM_STUB)?),
    };
    Ok((fd, pvm))
}

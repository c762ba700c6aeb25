//! What a machine is built on: its host, and KVM's VM with memory and interrupt controllers; its vCPUs are on their way.
//!
//! It is a step of its own because it leaves time: until the vCPUs' threads have made them, who builds can do what else the
//! guest's start waits for.

use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::Kvm;
use tracing::{debug_span, info};

use crate::config::{CpuTemplate, VmConfig};
use crate::error::{Doing, Error};
use crate::host::{self, HostKind};
use crate::machine::{self, Machine};
use crate::memory::{self, GuestMemory};
use crate::vcpu::{self, Host, VcpuThread};

/// A machine to be: [`Vm::build`](crate::vm::Vm::build) does the rest. Dropping it ends its threads.
pub struct Foundation {
    pub(crate) host: Arc<Host>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) vcpus: Vec<VcpuThread>,
    /// When it was begun.
    pub(crate) begun: Instant,
}

impl Foundation {
    /// For a machine with `config`'s number of CPUs and amount of memory.
    ///
    /// # Errors
    /// The user asked for what cannot be, or the host refuses something.
    pub fn lay(config: &VmConfig) -> Result<Self, Error> {
        Self::around(config, || Ok(memory::map(config.memory())?))
    }

    /// The same around memory that is made only when KVM's VM is there (docs/decisions.md).
    pub(crate) fn around(
        config: &VmConfig,
        memory: impl FnOnce() -> Result<GuestMemory, Error>,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let _span = debug_span!("foundation").entered();
        config.check()?;
        let kind = config.host_kind.unwrap_or_else(HostKind::detect);
        info!("host kind: {kind}");
        let kvm = host::open()?;
        machine::check_memory_fits_cpu(config.memory())?;
        vcpu::install_kick_handler().doing("install a signal handler")?;
        let template = config.cpu_template.clone().unwrap_or_default();
        check_capabilities(&kvm, &template)?;
        let host = Arc::new(Host::new(kvm, kind, config.cpu_topology(), template));
        let vcpus = (0..config.cpus())
            .map(|index| VcpuThread::spawn(index, host.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let machine = Arc::new(Machine::new(&host.kvm, kind, memory)?);
        vcpus.iter().for_each(|vcpu| vcpu.make(machine.clone()));
        Ok(Self {
            host,
            machine,
            vcpus,
            begun,
        })
    }
}

/// Whether KVM has what a CPU template needs.
fn check_capabilities(kvm: &Kvm, template: &CpuTemplate) -> Result<(), Error> {
    let needed = template
        .kvm_capabilities
        .iter()
        .filter(|capability| capability.is_needed);
    for capability in needed {
        if kvm.check_extension_raw(capability.number.into()) <= 0 {
            return Err(Error::Capability(capability.number));
        }
    }
    Ok(())
}

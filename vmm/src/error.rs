//! Everything that can keep a guest from running, each a sentence for its user.

use std::io;
use std::path::PathBuf;

use arch_x86_64::acpi::AcpiError;
use arch_x86_64::boot::BootError;
use arch_x86_64::initrd::InitrdError;
use arch_x86_64::kernel::KernelError;
use arch_x86_64::mptable::MpTableError;
use devices::BusError;
use devices::disk::DiskError;
use devices::virtio::net::TapError;
use devices::virtio::vsock::BindError;
use thiserror::Error;

use crate::config::cpu_template::NoSuchLeaf;
use crate::config::{ByteSize, ConfigError};
use crate::host::HostError;
use crate::memory::MemoryError;
use crate::passt::PasstError;
use crate::pvm;
use crate::runtime::RuntimeError;

/// Why a guest could not be built or started.
#[derive(Debug, Error)]
pub enum Error {
    /// The user asked for something that cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host's KVM cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// More memory than the host's CPU can address.
    #[error("memory of {wanted}: this host's CPU can give a guest at most {max}; ask for less")]
    MemoryBeyondCpu {
        /// What was asked for.
        wanted: ByteSize,
        /// What there can be.
        max: ByteSize,
    },
    /// No kernel was named and the tiny guest has not been built.
    #[error("no kernel was named and there is no tiny guest in '{path}': run 'make guest', or give --kernel", path = .0.display())]
    NoTinyGuest(PathBuf),
    /// No kernel was named, and nothing says where the tiny guest is.
    #[error(
        "no kernel was named, and without HOME or POSADA_CACHE in the environment there is no telling where the tiny \
         guest is: set one of them, or give --kernel"
    )]
    NoCache,
    /// A file could not be opened.
    #[error("cannot open the {what} '{path}': {source}", path = path.display())]
    Open {
        /// What the file is to the guest.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("the kernel '{path}' cannot be loaded: {source}", path = path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KernelError,
    },
    /// The initial RAM file system cannot be loaded.
    #[error("the initrd '{path}' cannot be loaded: {source}", path = path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InitrdError,
    },
    /// A disk's image cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A user network cannot be made.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The kernel cannot be told how to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The MP table does not fit.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// Two devices want one address.
    #[error("cannot place a device: {0}")]
    Bus(#[from] BusError),
    /// Host programs cannot reach the guest's sockets.
    #[error(transparent)]
    Vsock(#[from] BindError),
    /// The guest has no place among the running ones.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// More CPUID entries or MSRs than KVM takes.
    #[error("KVM takes fewer than {0} CPUID entries or MSRs")]
    CpuidTooLong(usize),
    /// KVM does not know an MSR that every guest needs, or that a CPU template changes.
    #[error("KVM refuses MSR {0:#x}")]
    Msr(u32),
    /// A CPU template is for another CPU.
    #[error(transparent)]
    Template(#[from] NoSuchLeaf),
    /// A CPU template is for another KVM.
    #[error("this host's KVM does not have the capability {0}, which the CPU template asks for")]
    Capability(u32),
    /// KVM has no room for the extended state that it announced.
    #[error("KVM announces an extended CPU state of {0} bytes, which cannot be")]
    XsaveTooLong(usize),
    /// A snapshot's MSR cannot be set here.
    #[error(
        "the snapshot has MSR {index:#x} = {value:#x}, which this host's KVM refuses; restore it on a host like the one it is from"
    )]
    MsrValue {
        /// The MSR's number.
        index: u32,
        /// What it should be.
        value: u64,
    },
    /// The guest counts time in other units than this host.
    #[error(
        "the snapshot's guest counts time by a TSC of {wanted} kHz; this host's has {host} kHz, and its CPU or KVM cannot scale it"
    )]
    TscFrequency {
        /// What the guest knows.
        wanted: u32,
        /// What there is.
        host: u32,
    },
    /// A snapshot has fewer vCPUs than the machine.
    #[error("the snapshot has no vCPU {0}")]
    NoVcpuState(u32),
    /// The guest's last instruction before a pause did not end.
    #[error("the guest cannot be paused: its last instruction ends in {0}")]
    Unsettled(String),
    /// The help that a kvm-pvm host needs could not be set up.
    #[error(transparent)]
    Pvm(#[from] pvm::Error),
    /// KVM or the host refused something.
    #[error("cannot {what}: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Says what was being done when KVM or the host refused.
pub trait Doing<T> {
    /// `what` completes "cannot …".
    fn doing(self, what: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Refused {
            what,
            source: source.into(),
        })
    }
}

//! The kvm-pvm host kind: a KVM for machines without VT-x or AMD-V, and all that a guest needs of the VMM there.
//!
//! kvm-pvm runs guest user mode (CPL 3) natively and interprets guest kernel mode (CPL 0) with KVM's instruction emulator,
//! over shadow page tables. Three things keep an unmodified Linux from booting on it; each has its remedy here:
//!
//! - The emulator lacks instructions that kernels use. KVM then exits with an internal error, and
//!   [`PvmVcpu::complete_instruction`] finishes the instruction ([`fallback`]).
//! - `syscall` does not leave CPL 3. [`PvmVcpu::write_msr`] repairs it from inside the guest ([`syscall_gate`]).
//! - Paravirtual IPIs hang a second CPU. [`mask_cpuid`] hides them.
//!
//! Nothing here is used on other hosts: the VMM asks [`is_pvm_host`] once, when it creates the VM.
//!
//! Limits of this host kind: 32-bit user programs do not run (`int 0x80` and `sysenter` arrive as #GP).

pub mod fallback;
pub mod syscall_gate;
mod vcpu;

use std::arch::x86_64::__cpuid;
use std::path::Path;
use std::{fs, io};

use kvm_bindings::{KVM_MSR_EXIT_REASON_FILTER, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

pub use self::vcpu::PvmVcpu;

/// Guest kernel command line options for Linux guests on this host kind.
///
/// - `noxsave`, `clearcpuid=` SMAP (308), POPCNT (151), ERMS (297), FSRM (580): without these features, the kernel uses
///   instructions that need no exit, and string instructions by words rather than bytes, whose cost is per element. XSAVE and
///   AVX go together: without AVX alone, the kernel would not save registers that user programs use.
/// - `clearcpuid=` PCLMULQDQ (129), SSSE3 (137), AES (153): with them, kernels do cryptography in vector registers, by
///   instructions that neither KVM nor the fallback knows. User programs ask the CPU and use them all the same.
/// - `nopti`: page table isolation protects a kernel from its users on the CPU it runs on; this kernel is interpreted.
/// - `noreplace-smp rodata=off`: spares the patching of lock prefixes and the splitting of the kernel's large pages, 2.6 s of a
///   boot of 8.2 s. The second leaves the kernel's text writable for the kernel itself.
/// - `tsc=reliable no_timer_check`: spares calibration loops, which the interpreter drags out and makes fail.
pub const GUEST_OPTIONS: &str = "noxsave clearcpuid=308,151,297,580,129,137,153 nopti noreplace-smp rodata=off \
    tsc=reliable no_timer_check";

/// IA32_LSTAR: where `syscall` goes in 64-bit mode (Intel SDM Vol 4, table 2-2).
const MSR_LSTAR: u32 = 0xc000_0082;

/// CPUID leaf of KVM's paravirtual features (Linux, Documentation/virt/kvm/x86/cpuid.rst).
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
/// EAX of that leaf: IPIs by hypercall.
const KVM_FEATURE_PV_SEND_IPI: u32 = 1 << 11;
/// CPUID leaf of extended state; its sub-leaf 1 has the bits of IA32_XSS in EDX:ECX (Intel SDM Vol 1 §13.2).
const LEAF_XSTATE: u32 = 0xd;

/// Why a VM or vCPU cannot go on, on this host kind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM lacks something that this host kind needs.
    #[error(
        "this host's KVM does not offer {0}, which a guest on kvm-pvm needs; load a newer kvm and kvm_pvm module"
    )]
    Missing(&'static str),
    /// KVM refused a request.
    #[error("KVM refused to {what}: {source}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// An internal error of KVM that is not a missing instruction.
    #[error(
        "KVM reported internal error {suberror} at {rip:#x}, which is not a missing instruction; see the host's kernel log"
    )]
    Internal {
        /// `KVM_INTERNAL_ERROR_*` (Linux, Documentation/virt/kvm/api.rst, KVM_EXIT_INTERNAL_ERROR).
        suberror: u32,
        /// The vCPU's instruction pointer.
        rip: u64,
    },
    /// An instruction could not be completed.
    #[error(transparent)]
    Instruction(#[from] fallback::Error),
}

impl Error {
    fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Error::Kvm {
            what,
            source: error.into(),
        }
    }
}

/// True if this machine's KVM is kvm-pvm. Where the CPU has nothing to virtualise with there is no other, and no file is needed to tell.
pub fn is_pvm_host() -> bool {
    !cpu_virtualises() || is_pvm_host_at(Path::new("/sys"), Path::new("/proc"))
}

/// Whether the CPU has VT-x or AMD-V. The firmware may have turned it off.
fn cpu_virtualises() -> bool {
    // Intel SDM Vol 2A, CPUID, table 3-10; AMD APM Vol 3, E.4.2. Every CPU in 64-bit mode has both leaves.
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    __cpuid(1).ecx & VMX != 0 || __cpuid(0x8000_0001).ecx & SVM != 0
}

/// [`is_pvm_host`] with the mount points of sysfs and procfs.
///
/// kvm_intel and kvm_amd have a directory in sysfs also where they are built in but found no VT-x or AMD-V; so the CPU is asked
/// as well where both are there.
fn is_pvm_host_at(sysfs: &Path, procfs: &Path) -> bool {
    let loaded = |module: &str| sysfs.join("module").join(module).exists();
    if !loaded("kvm_pvm") {
        return false;
    }
    let (intel, amd) = (loaded("kvm_intel"), loaded("kvm_amd"));
    if !intel && !amd {
        return true;
    }
    let cpuinfo = fs::read_to_string(procfs.join("cpuinfo")).unwrap_or_default();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    !(intel && has("vmx") || amd && has("svm"))
}

/// Makes guest writes to the `syscall` target exit to the VMM, for [`PvmVcpu::write_msr`]. Call before vCPUs run.
///
/// # Errors
/// KVM lacks MSR filters, or refuses this one.
pub fn prepare_vm(vm: &VmFd) -> Result<(), Error> {
    if !vm.check_extension(Cap::X86UserSpaceMsr) || !vm.check_extension(Cap::X86MsrFilter) {
        return Err(Error::Missing(
            "MSR filters (KVM_CAP_X86_USER_SPACE_MSR and KVM_CAP_X86_MSR_FILTER)",
        ));
    }
    let mut cap = kvm_enable_cap {
        cap: Cap::X86UserSpaceMsr as u32,
        ..Default::default()
    };
    cap.args[0] = u64::from(KVM_MSR_EXIT_REASON_FILTER);
    vm.enable_cap(&cap).map_err(Error::kvm("exit on filtered MSRs"))?;
    // A clear bit denies the access, which here means an exit (Linux, Documentation/virt/kvm/api.rst, KVM_X86_SET_MSR_FILTER).
    let lstar = MsrFilterRange {
        flags: MsrFilterRangeFlags::WRITE,
        base: MSR_LSTAR,
        msr_count: 1,
        bitmap: &[0],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[lstar])
        .map_err(Error::kvm("filter the guest's writes to MSR LSTAR"))
}

/// Hides from a guest what does not work on this host kind. For the entries that go to KVM_SET_CPUID2.
///
/// IPIs by hypercall hang a second CPU. Supervisor state components (CET) cannot be saved for the guest: KVM_GET_XSAVE does not
/// have them. kvm-pvm shows the host's own leaves 1 and 7 whatever it is told, so nothing is masked there; see [`GUEST_OPTIONS`].
pub fn mask_cpuid(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        match (entry.function, entry.index) {
            (LEAF_KVM_FEATURES, _) => entry.eax &= !KVM_FEATURE_PV_SEND_IPI,
            (LEAF_XSTATE, 1) => (entry.ecx, entry.edx) = (0, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod kvm_tests;
#[cfg(test)]
mod tests;

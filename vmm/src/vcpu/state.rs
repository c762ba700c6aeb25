//! All that KVM knows of one vCPU: taken while it is paused, and given to another.
//!
//! What is read when, and what is set when, is not free: the comments say why, and by which part of KVM's API
//! documentation ("KVM API": Linux, Documentation/virt/kvm/api.rst) where it is one.

mod msrs;
mod tsc;

use std::sync::OnceLock;

use kvm_bindings::{
    CpuId, KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MAX_CPUID_ENTRIES,
    KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, Xsave, kvm_cpuid_entry2, kvm_debugregs,
    kvm_enable_cap, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::exit::{self, Buses, ExitCounts, Next};
use crate::error::{Doing, Error};
use msrs::MsrNumbers;

/// What this host's KVM can tell of a vCPU. The same for all of them, so found once.
pub struct StateFormat {
    msrs: MsrNumbers,
    /// Bytes of the extended state.
    xsave: usize,
    /// The flags of events beyond those that every KVM has, which this one takes.
    event_flags: u32,
}

/// Events that KVM tells of, and takes, only when it has been asked to: the capability, and the flag of
/// kvm_vcpu_events (KVM API, KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT).
const EVENTS: [(u32, u32); 2] = [
    (KVM_CAP_EXCEPTION_PAYLOAD, KVM_VCPUEVENT_VALID_PAYLOAD),
    (KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_VCPUEVENT_VALID_TRIPLE_FAULT),
];

/// Has KVM tell of all events of the machine's vCPUs that it can tell of.
pub fn enable_events(vm: &VmFd) {
    for (cap, _) in EVENTS {
        let cap = kvm_enable_cap {
            cap,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        if let Err(error) = vm.enable_cap(&cap) {
            debug!(
                "KVM does not tell of events by its extension {}: {error}",
                cap.cap
            );
        }
    }
}

impl StateFormat {
    /// Asks KVM for the MSRs that make up a vCPU's state, and for the size of its extended state.
    pub fn new(kvm: &Kvm) -> Result<Self, Error> {
        // The size in bytes; 0 where the extension is unknown, and the area of a fixed size (KVM API, KVM_GET_XSAVE2).
        let size = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            msrs: MsrNumbers::of(kvm)?,
            xsave: size.max(size_of::<kvm_xsave>()),
            event_flags: EVENTS
                .iter()
                .filter(|(cap, _)| kvm.check_extension_raw((*cap).into()) > 0)
                .fold(0, |flags, (_, flag)| flags | flag),
        })
    }

    /// An area for the extended state, all zeros.
    fn xsave(&self) -> Result<Xsave, Error> {
        let rest = (self.xsave - size_of::<kvm_xsave>()).div_ceil(size_of::<u32>());
        Xsave::new(rest).map_err(|_| Error::XsaveTooLong(self.xsave))
    }
}

/// The state of one vCPU between two instructions.
///
/// KVM's structs are kept as they are; their layout is part of Linux's stable ABI. KVM_GET_SREGS and not its successor
/// KVM_GET_SREGS2 is used: that one has the PDPTRs of a guest in PAE mode, which KVM else reads from the guest's memory,
/// but not the interrupt that is being delivered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Running, halted, or waiting for another vCPU to start it.
    pub mp_state: kvm_mp_state,
    /// Exceptions, interrupts and NMIs that are being delivered.
    pub events: kvm_vcpu_events,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, EFER and the local APIC's base.
    pub sregs: kvm_sregs,
    /// x87, SSE, AVX and what else the CPU has, as XSAVE's standard form.
    #[serde(with = "serde_bytes")]
    pub xsave: Vec<u8>,
    /// Which of it the guest has switched on.
    pub xcrs: kvm_xcrs,
    /// Breakpoints.
    pub debug_registers: kvm_debugregs,
    /// Model-specific registers, IA32_TSC and IA32_TSC_DEADLINE among them.
    pub msrs: Vec<kvm_msr_entry>,
    /// The local APIC's registers, with the interrupts that it holds.
    pub lapic: kvm_lapic_state,
    /// What the guest's TSC is ahead of the host's, modulo 2^64; `None` where KVM does not tell (before Linux 5.16).
    pub tsc_offset: Option<u64>,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// What the guest is told of its CPU.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl VcpuState {
    /// Takes the state of a paused vCPU, which can go on afterwards.
    ///
    /// All vCPUs must have been paused before the first is saved: the TSC of each is read, and no guest may see it go back. And so must
    /// the devices, and the [`MachineState`](crate::machine_state::MachineState) have been saved: an interrupt on its way from them ends up
    /// here, and is seen if the way is followed.
    ///
    /// To be called on the vCPU's own thread. KVM's record of the last exit is overwritten, and the vCPU's next KVM_RUN returns at once.
    ///
    /// # Errors
    /// KVM refuses to tell something, or the guest can never run again.
    pub fn save(vcpu: &mut VcpuFd, buses: &Buses, format: &StateFormat) -> Result<Self, Error> {
        settle(vcpu, buses)?;
        // This lets an INIT or SIPI that has come take effect, which changes registers.
        let mp_state = vcpu.get_mp_state().doing("read whether a vCPU runs")?;
        // Where KVM does not tell what a page fault or debug exception that waits will put into CR2 or DR6, this makes it take effect
        // there (KVM API, KVM_CAP_EXCEPTION_PAYLOAD).
        let events = vcpu.get_vcpu_events().doing("read a vCPU's events")?;
        // A timer that expires now sets a bit in the local APIC and clears IA32_TSC_DEADLINE. Read in this order, the interrupt is
        // seen at least once; one too many is what guests are used to.
        let msrs = format.msrs.read(vcpu)?;
        let lapic = vcpu.get_lapic().doing("read a local APIC")?;
        Ok(Self {
            mp_state,
            events,
            regs: vcpu.get_regs().doing("read a vCPU's registers")?,
            sregs: vcpu.get_sregs().doing("read a vCPU's system registers")?,
            xsave: extended_state(vcpu, format)?,
            xcrs: vcpu
                .get_xcrs()
                .doing("read a vCPU's extended control registers")?,
            debug_registers: vcpu.get_debug_regs().doing("read a vCPU's debug registers")?,
            msrs,
            lapic,
            tsc_offset: tsc::offset(vcpu),
            tsc_khz: vcpu.get_tsc_khz().doing("read the TSC's frequency")?,
            cpuid: cpuid_entries(vcpu)?,
        })
    }

    /// What KVM_SET_CPUID2 takes, for who makes the vCPU: before it gets its state, and before it runs.
    pub fn cpuid(&self) -> Result<CpuId, Error> {
        CpuId::from_entries(&self.cpuid).map_err(|_| Error::CpuidTooLong(self.cpuid.len()))
    }

    /// The CPUID must have been set: which bits of control registers and which MSRs KVM takes goes by it.
    fn restore(&self, vcpu: &VcpuFd, format: &StateFormat, tsc: &OnceLock<u64>) -> Result<(), Error> {
        tsc::set_frequency(vcpu, self.tsc_khz)?;
        // Holds the local APIC's base, by whose mode KVM reads the APIC's registers (KVM API, KVM_SET_LAPIC).
        vcpu.set_sregs(&self.sregs)
            .doing("set a vCPU's system registers")?;
        // KVM forgets an exception that waits when it gets registers; so the events come later.
        vcpu.set_regs(&self.regs).doing("set a vCPU's registers")?;
        vcpu.set_xcrs(&self.xcrs)
            .doing("set a vCPU's extended control registers")?;
        self.set_extended_state(vcpu, format)?;
        vcpu.set_debug_regs(&self.debug_registers)
            .doing("set a vCPU's debug registers")?;
        // KVM takes a deadline only for a timer that is in deadline mode, which the local APIC says; and starts the timer by what the
        // TSC is then. So the order is local APIC, TSC, deadline, each after the one that it is measured by.
        vcpu.set_lapic(&self.lapic).doing("set a local APIC")?;
        msrs::write(vcpu, self.msrs.iter().filter(|msr| self.is_plain(msr)))?;
        tsc::restore(vcpu, self, tsc)?;
        vcpu.set_vcpu_events(&self.events_for(format))
            .doing("set a vCPU's events")?;
        // Last, since KVM_SET_SREGS may start a vCPU.
        vcpu.set_mp_state(self.mp_state).doing("set whether a vCPU runs")
    }

    /// The events without what this KVM does not know and they do not have, either: it would refuse them for the flag.
    fn events_for(&self, format: &StateFormat) -> kvm_vcpu_events {
        let mut events = self.events;
        let mut leave_out = |flag: u32, is_there: u8| {
            if is_there == 0 {
                events.flags &= !flag | format.event_flags;
            }
        };
        leave_out(KVM_VCPUEVENT_VALID_PAYLOAD, self.events.exception.pending);
        leave_out(KVM_VCPUEVENT_VALID_TRIPLE_FAULT, self.events.triple_fault.pending);
        events
    }

    /// Whether an MSR is set with the others: the two of time are not.
    fn is_plain(&self, msr: &kvm_msr_entry) -> bool {
        ![msrs::IA32_TSC, msrs::IA32_TSC_DEADLINE].contains(&msr.index)
    }

    /// The saved value of an MSR, if it was saved.
    fn msr(&self, index: u32) -> Option<u64> {
        let msr = self.msrs.iter().find(|msr| msr.index == index)?;
        Some(msr.data)
    }

    fn set_extended_state(&self, vcpu: &VcpuFd, format: &StateFormat) -> Result<(), Error> {
        let mut xsave = format.xsave()?;
        let mut bytes = self.xsave.chunks_exact(size_of::<u32>());
        let mut fill = |words: &mut [u32]| {
            for (word, bytes) in words.iter_mut().zip(bytes.by_ref()) {
                *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        };
        // SAFETY: the length field of the structure is not changed.
        fill(unsafe { &mut xsave.as_mut_fam_struct().xsave.region });
        fill(xsave.as_mut_slice());
        // SAFETY: the area has the size that KVM_CAP_XSAVE2 gave.
        unsafe { vcpu.set_xsave2(&xsave) }.doing("set a vCPU's extended state")
    }
}

/// The vCPUs of a snapshot on their way back into a machine. Shared by their threads, each of which restores its own.
pub struct CpuRestore {
    states: Vec<VcpuState>,
    /// By how much the offsets of all TSCs change: one number, or they would drift apart.
    tsc_shift: OnceLock<u64>,
}

impl CpuRestore {
    /// For one restore: TSCs go on from where they were when the first vCPU is restored.
    pub fn new(states: Vec<VcpuState>) -> Self {
        Self {
            states,
            tsc_shift: OnceLock::new(),
        }
    }

    /// The state of a vCPU, if the snapshot has that vCPU.
    pub fn state(&self, index: u32) -> Option<&VcpuState> {
        self.states.get(index as usize)
    }

    /// Gives vCPU `index`, which does not run, its state. Its CPUID must have been set to [`VcpuState::cpuid`].
    ///
    /// To be called for all vCPUs, in any order and beside each other, before the
    /// [`MachineState`](crate::machine_state::MachineState) is restored. To be rewound, a vCPU may have run before.
    ///
    /// # Errors
    /// KVM refuses something, or cannot do what the snapshot needs.
    pub fn restore(&self, index: u32, vcpu: &VcpuFd, format: &StateFormat) -> Result<(), Error> {
        let state = self.state(index).ok_or(Error::NoVcpuState(index))?;
        state.restore(vcpu, format, &self.tsc_shift)
    }
}

/// Tells the guest's clock that the vCPU was paused, so that the guest's watchdogs do not take the pause for a hang.
///
/// # Errors
/// KVM refuses, but for the reason that the guest has no such clock.
pub fn tell_of_pause(vcpu: &VcpuFd) -> Result<(), Error> {
    match vcpu.kvmclock_ctrl() {
        // What KVM says of a vCPU without kvmclock (KVM API, KVM_KVMCLOCK_CTRL).
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        result => result.doing("tell the guest's clock of the pause"),
    }
}

/// Has KVM finish the instruction that the guest is in.
///
/// An access to a device is complete only when KVM_RUN has been entered again, and what is missing of it can be read nowhere; with
/// `immediate_exit` KVM_RUN does that and nothing else, and takes over registers from the run page (KVM API, §5 "kvm_run"). An access
/// in two pieces comes out a second time, and is answered like the first. `immediate_exit` stays: a kick that came meanwhile has set it, too.
fn settle(vcpu: &mut VcpuFd, buses: &Buses) -> Result<(), Error> {
    // Not the run loop's.
    let counts = ExitCounts::default();
    loop {
        vcpu.set_kvm_immediate_exit(1);
        match exit::handle(exit::enter(vcpu), buses, &counts) {
            Next::Check => return Ok(()),
            Next::Enter => {}
            other => return Err(Error::Unsettled(format!("{other:?}"))),
        }
    }
}

fn extended_state(vcpu: &VcpuFd, format: &StateFormat) -> Result<Vec<u8>, Error> {
    let mut xsave = format.xsave()?;
    // SAFETY: the area has the size that KVM_CAP_XSAVE2 gave.
    unsafe { vcpu.get_xsave2(&mut xsave) }.doing("read a vCPU's extended state")?;
    let region = &xsave.as_fam_struct_ref().xsave.region;
    let words = region.iter().chain(xsave.as_slice());
    Ok(words.flat_map(|word| word.to_ne_bytes()).collect())
}

fn cpuid_entries(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .doing("read a vCPU's CPUID")?;
    Ok(cpuid.as_slice().to_vec())
}

#[cfg(test)]
mod kvm_tests;

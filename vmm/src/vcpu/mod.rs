//! A vCPU: its first state, and the run loop.

pub mod exit;
mod kick;
mod setup;
mod thread;

use std::sync::Arc;

use devices::GuestRequest;
use kvm_ioctls::VcpuFd;
use tracing::debug;

pub use exit::{Buses, Crash};
pub use kick::{install as install_kick_handler, kick};
pub use thread::{Host, Machine, VcpuThread};

use crate::lifecycle::{Lifecycle, Stop};
use crate::memory::GuestMemory;
use crate::pvm::PvmVcpu;
use exit::Next;
use kick::Kickable;

/// Spurious-interrupt vector register of the local APIC (Intel SDM Vol 3 §12.9), and its enable bit.
const APIC_SPIV: usize = 0xf0;
const APIC_SPIV_ENABLED: u8 = 1 << 0;
/// Logical destination register (Intel SDM Vol 3 §12.6.2.2), 0 after a reset.
const APIC_LDR: usize = 0xd0;
/// The vector that Linux uses for as long as it runs.
const LINUX_SPURIOUS_VECTOR: u8 = 0xff;

/// One vCPU with all that it touches while it runs.
pub struct Vcpu {
    /// Its number, which is also its APIC id.
    pub index: u32,
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// Where its accesses to devices go.
    pub buses: Arc<Buses>,
    /// The memory it runs in.
    pub memory: GuestMemory,
    /// What a kvm-pvm host needs posada to do for it; nothing on hardware.
    pub pvm: Option<PvmVcpu>,
    /// Who says when to stop.
    pub lifecycle: Arc<Lifecycle>,
}

impl Vcpu {
    /// Runs the guest on this thread until it ends or somebody stops the machine, and tells the machine why.
    pub fn run(mut self) {
        let kickable = Kickable::arm(&mut self.fd);
        // A kick that came before had no vCPU to reach, but the stop that it was for can be seen.
        if !self.lifecycle.is_stopped()
            && let Some(stop) = self.run_loop()
        {
            self.lifecycle.stop(stop);
        }
        drop(kickable);
    }

    /// The hot path. Returns why the guest cannot go on, or `None` when the machine has been stopped already.
    fn run_loop(&mut self) -> Option<Stop> {
        loop {
            match exit::handle(exit::enter(&mut self.fd), &self.buses) {
                Next::Enter => {}
                Next::Check => {
                    self.fd.set_kvm_immediate_exit(0);
                    if self.lifecycle.is_stopped() {
                        return None;
                    }
                }
                Next::CompleteInstruction => {
                    if let Err(stop) = self.complete_instruction() {
                        return Some(stop);
                    }
                }
                Next::WriteMsr { index, value } => {
                    if let Err(stop) = self.write_msr(index, value) {
                        return Some(stop);
                    }
                }
                Next::Request(request) => return Some(self.answer(request)),
                Next::Crash(crash) => return Some(self.crashed(&describe(crash))),
            }
        }
    }

    fn complete_instruction(&mut self) -> Result<(), Stop> {
        let Some(pvm) = &mut self.pvm else {
            return Err(self.crashed("KVM could not emulate an instruction"));
        };
        pvm.complete_instruction(&mut self.fd, &self.memory)
            .map_err(|error| self.crashed(&error.to_string()))
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        let Some(pvm) = &mut self.pvm else {
            return Err(self.crashed(&format!("an exit for MSR {index:#x}, which nobody asked for")));
        };
        pvm.write_msr(&mut self.fd, &self.memory, index, value)
            .map_err(|error| self.crashed(&error.to_string()))
    }

    fn answer(&self, request: GuestRequest) -> Stop {
        match request {
            GuestRequest::PowerOff => Stop::PowerOff,
            GuestRequest::Reset if self.resets_in_emergency() => Stop::Panic,
            GuestRequest::Reset => Stop::Reset,
            GuestRequest::Panicked => Stop::Panic,
        }
    }

    /// Whether the reset is that of a panic.
    ///
    /// An orderly reboot of Linux leaves the local APIC in virtual wire mode, with another spurious vector. A panic leaves
    /// Linux's own vector there, with the APIC disabled by a kernel built for SMP, enabled by others. So a guest without
    /// pvpanic is told apart too. A reset leaves that vector as well, but no logical destination.
    fn resets_in_emergency(&self) -> bool {
        match self.fd.get_lapic() {
            Ok(apic) => {
                let [vector, flags] = [apic.regs[APIC_SPIV], apic.regs[APIC_SPIV + 1]].map(|byte| byte as u8);
                let was_set_up = apic.regs[APIC_LDR..APIC_LDR + 4].iter().any(|byte| *byte != 0);
                vector == LINUX_SPURIOUS_VECTOR && (flags & APIC_SPIV_ENABLED != 0 || was_set_up)
            }
            Err(error) => {
                debug!("cannot read the local APIC of vCPU {}: {error}", self.index);
                false
            }
        }
    }

    fn crashed(&self, what: &str) -> Stop {
        let place = self
            .fd
            .get_regs()
            .map_or(String::new(), |regs| format!(" at rip {:#x}", regs.rip));
        Stop::Crash(format!("vCPU {}: {what}{place}", self.index))
    }
}

fn describe(crash: Crash) -> String {
    match crash {
        Crash::TripleFault => "triple fault".to_owned(),
        Crash::Internal(suberror) => format!("KVM internal error {suberror}"),
        Crash::FailedEntry(reason) => format!("the hardware refused to enter the guest (reason {reason:#x})"),
        Crash::Unexpected(number) => format!("unexpected exit {number} from KVM"),
        Crash::Run(errno) => format!("KVM_RUN failed: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

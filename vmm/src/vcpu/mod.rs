//! A vCPU: its first state, and the run loop.

pub mod exit;
pub mod features;
mod kick;
mod requests;
mod reset;
mod setup;
pub mod state;
#[cfg(test)]
pub mod testing;
mod thread;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use devices::GuestRequest;
use kvm_ioctls::VcpuFd;

pub use exit::{Buses, Crash, ExitCounts};
pub use kick::install as install_kick_handler;
use kick::kick;
pub use requests::{Request, RequestError, RunningVcpu, Vcpus};
pub use thread::{Begin, Host, VcpuThread};

use crate::lifecycle::{Lifecycle, Stop};
use crate::machine::Machine;
use crate::pvm::PvmVcpu;
use exit::Next;
use kick::Kickable;

/// One vCPU with all that it touches while it runs.
pub struct Vcpu {
    /// Its number, which is also its APIC id.
    pub index: u32,
    /// KVM's side of it.
    pub fd: VcpuFd,
    /// The host that it runs on.
    pub host: Arc<Host>,
    /// Where its accesses to devices go.
    pub buses: Arc<Buses>,
    /// The machine that it is part of, with the memory it runs in.
    pub machine: Arc<Machine>,
    /// What a kvm-pvm host needs posada to do for it; nothing on hardware.
    pub pvm: Option<PvmVcpu>,
    /// Who says when to stop.
    pub lifecycle: Arc<Lifecycle>,
    /// What other threads ask of it.
    pub requests: Receiver<Request>,
    /// What it comes out of the guest for.
    pub counts: Arc<ExitCounts>,
}

impl Vcpu {
    /// Runs the guest on this thread until it ends or somebody stops the machine, and tells the machine why. A vCPU that
    /// is to become what a state says rests first.
    pub fn run(mut self, rests: bool) {
        let kickable = Kickable::arm(&mut self.fd);
        let begun = if rests { self.rest() } else { self.heed() };
        // A kick that came before had no vCPU to reach, but what it was for can be seen.
        if begun.is_continue()
            && !self.lifecycle.is_stopped()
            && let Some(stop) = self.run_loop()
        {
            self.lifecycle.stop(stop);
        }
        drop(kickable);
    }

    /// The hot path. Returns why the guest cannot go on, or `None` when the machine has been stopped already.
    ///
    /// What a device has answered goes straight back into the guest. A match on all cases would be a jump table, and
    /// an indirect jump costs 25 ns here: an exit leaves the CPU's branch predictor with little.
    fn run_loop(&mut self) -> Option<Stop> {
        loop {
            let next = exit::handle(exit::enter(&mut self.fd), &self.buses, &self.counts);
            if next != Next::Enter
                && let ControlFlow::Break(stop) = self.attend_to(next)
            {
                return stop;
            }
        }
    }

    /// What an exit needs beside a device.
    #[cold]
    fn attend_to(&mut self, next: Next) -> ControlFlow<Option<Stop>> {
        let done = match next {
            Next::Enter => Ok(()),
            Next::Check => {
                self.fd.set_kvm_immediate_exit(0);
                return match self.lifecycle.is_stopped() {
                    true => ControlFlow::Break(None),
                    false => self.heed(),
                };
            }
            Next::CompleteInstruction => self.complete_instruction(),
            Next::WriteMsr { index, value } => self.write_msr(index, value),
            Next::Request(request) => Err(self.answer(request)),
            Next::Crash(crash) => Err(self.crashed(&describe(crash))),
        };
        match done {
            Ok(()) => ControlFlow::Continue(()),
            Err(stop) => ControlFlow::Break(Some(stop)),
        }
    }

    fn complete_instruction(&mut self) -> Result<(), Stop> {
        let Some(pvm) = &mut self.pvm else {
            return Err(self.crashed("KVM could not emulate an instruction"));
        };
        pvm.complete_instruction(&mut self.fd, &self.machine.memory)
            .map_err(|error| self.crashed(&error.to_string()))
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        let Some(pvm) = &mut self.pvm else {
            return Err(self.crashed(&format!("an exit for MSR {index:#x}, which nobody asked for")));
        };
        pvm.write_msr(&mut self.fd, &self.machine.memory, index, value)
            .map_err(|error| self.crashed(&error.to_string()))
    }

    fn answer(&self, request: GuestRequest) -> Stop {
        match request {
            GuestRequest::PowerOff => Stop::PowerOff,
            GuestRequest::Reset if reset::is_emergency(&self.fd, &self.machine.fd) => Stop::Panic,
            GuestRequest::Reset => Stop::Reset,
            GuestRequest::Panicked => Stop::Panic,
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

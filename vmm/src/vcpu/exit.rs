//! Entering the guest, and what it came out for.
//!
//! [`enter`] runs the vCPU and names the exit in posada's own terms; [`handle`] answers those that concern a
//! device. The second knows no KVM, so that its tests need none.

use std::ops::ControlFlow;

use devices::{Bus, GuestRequest, counters};
use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_EMULATION, kvm_run,
};
use kvm_ioctls::VcpuFd;
use libc::c_ulong;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl;

/// The two address spaces that devices live in.
#[derive(Default)]
pub struct Buses {
    /// The 65,536 I/O ports.
    pub pio: Bus,
    /// Guest-physical memory where there is no RAM.
    pub mmio: Bus,
}

counters! {
    /// What a vCPU has come out of the guest for. Its thread counts, in a cache line that it shares with no other.
    #[repr(align(128))]
    pub struct ExitCounts {
        /// Exits for a write to an I/O port.
        port_writes,
        /// Exits for a read from an I/O port.
        port_reads,
        /// Exits for a write to a device's memory.
        mmio_writes,
        /// Exits for a read from a device's memory.
        mmio_reads,
        /// Exits for a write to an MSR that posada carries out.
        msr_writes,
        /// Exits for an instruction that posada completes.
        instructions,
        /// Exits for a signal, or as there was nothing to run.
        interruptions,
        /// Exits that the guest could not go on from.
        crashes,
    }
}

/// Why the guest does not run at the moment.
#[derive(Debug)]
pub enum Exit<'a> {
    /// It wrote to a port.
    PortOut {
        /// The port.
        port: u16,
        /// Bytes of one value: 1, 2 or 4.
        width: usize,
        /// One value or, for `rep outs`, several.
        data: &'a [u8],
    },
    /// It reads from a port.
    PortIn {
        /// The port.
        port: u16,
        /// Bytes of one value: 1, 2 or 4.
        width: usize,
        /// Takes one value or, for `rep ins`, several.
        data: &'a mut [u8],
    },
    /// It wrote or read where there is no RAM. One case for both: two would be told apart by an indirect jump.
    Mmio {
        /// The guest-physical address.
        addr: u64,
        /// 1 to 8 bytes: what it wrote, or room for what it reads.
        data: &'a mut [u8],
        /// Whether it wrote.
        write: bool,
    },
    /// It wrote an MSR that this host kind watches.
    MsrWrite {
        /// The MSR's number.
        index: u32,
        /// What it wrote.
        value: u64,
    },
    /// KVM's emulator does not know an instruction.
    EmulationFailed,
    /// A signal came, or there was nothing to run yet.
    Interrupted,
    /// It can never run again.
    Crashed(Crash),
}

/// What a vCPU cannot go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// An exception while delivering a double fault.
    TripleFault,
    /// KVM's own inconsistency, with its suberror.
    Internal(u32),
    /// The hardware refused the vCPU's state, with its reason.
    FailedEntry(u64),
    /// An exit that no guest should be able to cause, with its number.
    Unexpected(u32),
    /// KVM_RUN itself failed, with its errno.
    Run(i32),
}

/// What the run loop does after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Back into the guest.
    Enter,
    /// See whether somebody wants this vCPU to stop.
    Check,
    /// The host kind is to finish the instruction.
    CompleteInstruction,
    /// The host kind is to carry out a write to an MSR.
    WriteMsr {
        /// The MSR's number.
        index: u32,
        /// The value to give it.
        value: u64,
    },
    /// The guest asks for the machine's end.
    Request(GuestRequest),
    /// The guest is lost.
    Crash(Crash),
}

/// `_IO(KVMIO, 0x80)` (Linux, include/uapi/linux/kvm.h).
const KVM_RUN: c_ulong = 0xae80;

/// Runs the guest until its next exit.
///
/// kvm-ioctls has this too, but of a `rep outs` it tells only how many bytes there are, not how wide each value
/// is; so the kernel's own record is read here, and read once.
#[inline(always)]
pub fn enter(vcpu: &mut VcpuFd) -> Exit<'_> {
    // SAFETY: the descriptor is a vCPU's. KVM_RUN takes no argument, and writes to kvm_run, which the vCPU has
    // mapped and to which `&mut` says that there is no other reference, and to the guest's memory, which is not
    // Rust's.
    if unsafe { ioctl(vcpu, KVM_RUN) } != 0 {
        return match errno::Error::last().errno() {
            // EAGAIN: the vCPU has not been started by another one yet.
            libc::EINTR | libc::EAGAIN => Exit::Interrupted,
            errno => Exit::Crashed(Crash::Run(errno)),
        };
    }
    let run = vcpu.get_kvm_run();
    // Devices first, by branches: a jump table would be an indirect jump, which after an exit is never predicted.
    match run.exit_reason {
        KVM_EXIT_IO => port_access(run),
        KVM_EXIT_MMIO => memory_access(run),
        _ => other_exit(run),
    }
}

#[cold]
fn other_exit(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_X86_WRMSR => {
            // SAFETY: exit_reason says that the kernel filled this member of the union.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            Exit::MsrWrite {
                index: msr.index,
                value: msr.data,
            }
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above.
            match unsafe { run.__bindgen_anon_1.internal }.suberror {
                KVM_INTERNAL_ERROR_EMULATION => Exit::EmulationFailed,
                suberror => Exit::Crashed(Crash::Internal(suberror)),
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let reason = unsafe { run.__bindgen_anon_1.fail_entry }.hardware_entry_failure_reason;
            Exit::Crashed(Crash::FailedEntry(reason))
        }
        KVM_EXIT_SHUTDOWN => Exit::Crashed(Crash::TripleFault),
        KVM_EXIT_INTR => Exit::Interrupted,
        other => Exit::Crashed(Crash::Unexpected(other)),
    }
}

#[inline(always)]
fn memory_access(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: called for KVM_EXIT_MMIO only, for which the kernel filled this member of the union.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let len = (mmio.len as usize).min(mmio.data.len());
    Exit::Mmio {
        addr: mmio.phys_addr,
        data: &mut mmio.data[..len],
        write: mmio.is_write != 0,
    }
}

#[inline(always)]
fn port_access(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: called for KVM_EXIT_IO only, for which the kernel filled this member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let (port, width) = (io.port, usize::from(io.size));
    let len = width * io.count as usize;
    // SAFETY: the kernel put `count` values of `size` bytes at `data_offset` from the start of kvm_run, within
    // the mapping that kvm-ioctls made of KVM_GET_VCPU_MMAP_SIZE bytes. It lives as long as the vCPU, from
    // which `run` is borrowed, and no other reference into it exists while this one does.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, len)
    };
    match u32::from(io.direction) {
        KVM_EXIT_IO_OUT => Exit::PortOut { port, width, data },
        _ => Exit::PortIn { port, width, data },
    }
}

/// Answers an exit: what concerns a device at once, what needs more is for the caller to do.
#[inline(always)]
pub fn handle(exit: Exit<'_>, buses: &Buses, counts: &ExitCounts) -> Next {
    match exit {
        Exit::PortOut { port, width, data } if data.len() == width.max(1) => {
            counts.port_writes.add(1);
            next(buses.pio.write(port.into(), data))
        }
        Exit::PortOut { port, width, data } => {
            counts.port_writes.add(1);
            let mut values = data.chunks(width.max(1));
            next(values.try_for_each(|value| buses.pio.write(port.into(), value)))
        }
        Exit::PortIn { port, width, data } => {
            counts.port_reads.add(1);
            data.chunks_mut(width.max(1))
                .for_each(|value| buses.pio.read(port.into(), value));
            Next::Enter
        }
        Exit::Mmio { addr, data, write } => {
            if write {
                counts.mmio_writes.add(1);
                return next(buses.mmio.write(addr, data));
            }
            counts.mmio_reads.add(1);
            buses.mmio.read(addr, data);
            Next::Enter
        }
        Exit::MsrWrite { index, value } => {
            counts.msr_writes.add(1);
            Next::WriteMsr { index, value }
        }
        Exit::EmulationFailed => {
            counts.instructions.add(1);
            Next::CompleteInstruction
        }
        Exit::Interrupted => {
            counts.interruptions.add(1);
            Next::Check
        }
        Exit::Crashed(crash) => {
            counts.crashes.add(1);
            Next::Crash(crash)
        }
    }
}

#[inline(always)]
fn next(answer: ControlFlow<GuestRequest>) -> Next {
    match answer {
        ControlFlow::Continue(()) => Next::Enter,
        ControlFlow::Break(request) => Next::Request(request),
    }
}

#[cfg(test)]
mod tests;

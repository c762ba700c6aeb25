//! Finishes instructions that a hypervisor's emulator lacks, on a stopped vCPU and guest RAM. Knows no KVM.
//!
//! [`complete`] does one instruction in 64-bit mode: registers, flags, memory and extended state change as on a real CPU, or
//! the exception a real CPU would raise is raised. #UD is raised for `ud0`, `ud1`, `ud2` and for an instruction that is known
//! here but not defined in the vCPU's present state (`clac` at CPL 3, `xsave` without CR4.OSXSAVE). Any other instruction is
//! an [`Error`] that names its address and bytes: to guess that it is illegal would hide a gap in this module.
//!
//! Left out: the single-step trap (RFLAGS.TF) behind a completed instruction, and instructions outside 64-bit mode.

mod atomic;
pub mod cpu;
mod floating_point;
mod integer;
mod operand;
pub mod paging;
mod random;
mod system;
mod xsave;
pub mod xstate;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};
use vm_memory::GuestMemoryBackend;

use self::cpu::{Cpu, Exception, control, rflags};
use self::paging::{Access, LinearMemory};
use self::xstate::XsaveImage;

pub use self::atomic::compare_exchange_16;

/// The longest x86 instruction, in bytes (Intel SDM Vol 2A §2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// Why an instruction could not be completed. The vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No known instruction.
    #[error(
        "the guest executed an instruction that neither KVM nor posada can emulate: {bytes} at {rip:#x}; \
         hide the CPU feature it belongs to from the guest by its command line"
    )]
    UnknownInstruction {
        /// Its address.
        rip: u64,
        /// Its first bytes, up to 15.
        bytes: Bytes,
    },
    /// A known instruction in a state that is not provided for.
    #[error("cannot emulate the guest's instruction {bytes} at {rip:#x}: {reason}")]
    Unsupported {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: Bytes,
        /// What is not provided for.
        reason: Unsupported,
    },
    /// The operand, or a page table that leads to it, is not RAM.
    #[error(
        "cannot emulate the guest's instruction {bytes} at {rip:#x}: it needs guest-physical address {address:#x}, \
         which is not in the guest's RAM"
    )]
    OutsideRam {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: Bytes,
        /// Guest-physical address of the operand or table.
        address: u64,
    },
    /// The hypervisor refused to give or take state.
    #[error("cannot emulate the guest's instruction {bytes} at {rip:#x}: {source}")]
    Host {
        /// Its address.
        rip: u64,
        /// Its bytes.
        bytes: Bytes,
        /// The hypervisor's answer.
        source: io::Error,
    },
}

/// A state of the vCPU that the fallback does not provide for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Real, protected or compatibility mode.
    #[error("the vCPU is not in 64-bit mode, and the fallback knows no other")]
    Mode,
    /// CR4.LA57.
    #[error("the guest uses five-level paging; boot it with no5lvl")]
    FiveLevelPaging,
    /// An extended state component that the hypervisor does not hand out.
    #[error("it saves or restores extended state component {0}, which KVM does not hand out")]
    StateComponent(u32),
}

/// Instruction bytes, shown in hexadecimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    bytes: [u8; MAX_INSTRUCTION],
    len: usize,
}

impl Bytes {
    /// The first (at most 15) bytes of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(MAX_INSTRUCTION);
        let mut this = Bytes {
            len,
            ..Default::default()
        };
        this.bytes[..len].copy_from_slice(&bytes[..len]);
        this
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.as_slice().iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// What ends the execution of one instruction before its end.
#[derive(Debug)]
pub enum Stop {
    /// The guest gets an exception.
    Exception(Exception),
    /// The guest is in a state that is not provided for.
    Unsupported(Unsupported),
    /// This guest-physical address is not RAM.
    OutsideRam(u64),
    /// The instruction is not one of ours.
    Unknown,
    /// The hypervisor refused.
    Host(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Host(error)
    }
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Stop::Exception(exception)
    }
}

/// The instruction at hand and all that it can reach.
struct Machine<'a, C, M> {
    cpu: &'a mut C,
    ram: &'a M,
    memory: LinearMemory<'a, M>,
    instruction: Instruction,
    /// Scratch room for the extended state: contents do not outlive an instruction.
    xsave: &'a mut XsaveImage,
}

/// Completes the instruction at the vCPU's RIP.
///
/// `seen` is what the hypervisor read there, as far as it did: it may be shorter than the instruction, or empty. It counts more
/// than what is in memory now, since another vCPU may have patched the place meanwhile (Linux does, by way of `int3`).
/// `xsave` is scratch room.
///
/// # Errors
/// See [`Error`]: the vCPU is then as it was, but an extended state save may have been written in part.
pub fn complete<C: Cpu, M: GuestMemoryBackend>(
    cpu: &mut C,
    ram: &M,
    seen: &[u8],
    xsave: &mut XsaveImage,
) -> Result<(), Error> {
    let rip = cpu.rip();
    let mut bytes = Bytes::new(seen);
    let stop = match attempt(cpu, ram, &mut bytes, xsave) {
        Ok(()) => return Ok(()),
        Err(Stop::Exception(exception)) => match cpu.raise(exception) {
            Ok(()) => return Ok(()),
            Err(error) => Stop::Host(error),
        },
        Err(stop) => stop,
    };
    Err(match stop {
        Stop::Host(source) => Error::Host { rip, bytes, source },
        Stop::Unsupported(reason) => Error::Unsupported { rip, bytes, reason },
        Stop::OutsideRam(address) => Error::OutsideRam { rip, bytes, address },
        Stop::Unknown | Stop::Exception(_) => Error::UnknownInstruction { rip, bytes },
    })
}

fn attempt<C: Cpu, M: GuestMemoryBackend>(
    cpu: &mut C,
    ram: &M,
    bytes: &mut Bytes,
    xsave: &mut XsaveImage,
) -> Result<(), Stop> {
    let (mode, flags, rip) = (cpu.mode(), cpu.rflags(), cpu.rip());
    if mode.efer & control::EFER_LMA == 0 || !mode.code64 {
        return Err(Stop::Unsupported(Unsupported::Mode));
    }
    let memory = LinearMemory::new(ram, mode, flags);
    let instruction = fetch(&memory, rip, bytes)?;
    let mut machine = Machine {
        cpu,
        ram,
        memory,
        instruction,
        xsave,
    };
    machine.execute()?;
    let flags = machine.cpu.rflags();
    machine.cpu.set_rflags(flags & !rflags::RF);
    machine.cpu.set_rip(instruction.next_ip());
    if instruction.code() == Code::Int3 {
        // A trap: the handler finds RIP behind the instruction, hence after everything else.
        machine.cpu.raise(Exception::Breakpoint)?;
    }
    Ok(())
}

/// Decodes what the hypervisor saw and, if that is not a whole instruction, as many bytes of memory as it takes.
fn fetch<M: GuestMemoryBackend>(
    memory: &LinearMemory<'_, M>,
    rip: u64,
    bytes: &mut Bytes,
) -> Result<Instruction, Stop> {
    loop {
        let mut decoder = Decoder::with_ip(64, bytes.as_slice(), rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if !instruction.is_invalid() {
            bytes.len = instruction.len();
            return Ok(instruction);
        }
        if decoder.last_error() != iced_x86::DecoderError::NoMoreBytes || bytes.len == MAX_INSTRUCTION {
            return Err(Stop::Unknown);
        }
        let next = &mut bytes.bytes[bytes.len..=bytes.len];
        memory.read(rip.wrapping_add(bytes.len as u64), next, Access::Fetch)?;
        bytes.len += 1;
    }
}

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    fn execute(&mut self) -> Result<(), Stop> {
        use Mnemonic as I;
        match self.instruction.mnemonic() {
            I::Int3 => Ok(()),
            I::Ud0 | I::Ud1 | I::Ud2 => Err(Exception::InvalidOpcode.into()),
            I::Clac => self.set_access_control(false),
            I::Stac => self.set_access_control(true),
            I::Popcnt => self.popcnt(),
            I::Cmpxchg16b => self.cmpxchg16b(),
            I::Rdrand | I::Rdseed => self.random(),
            I::Rdpid => self.rdpid(),
            I::Rdtscp => self.rdtscp(),
            I::Rdfsbase | I::Rdgsbase | I::Wrfsbase | I::Wrgsbase => self.segment_base(),
            I::Invpcid => self.invpcid(),
            I::Verr | I::Verw => self.verify_segment(),
            // A fence of this thread, which is what the vCPU runs on, orders and serializes the vCPU's accesses.
            I::Serialize | I::Lfence | I::Mfence | I::Sfence => {
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                Ok(())
            }
            I::Wait => self.wait(),
            I::Fninit => self.fninit(),
            I::Fnclex => self.fnclex(),
            I::Ldmxcsr => self.ldmxcsr(),
            I::Stmxcsr => self.stmxcsr(),
            I::Xgetbv => self.xgetbv(),
            I::Rdpkru => self.rdpkru(),
            I::Wrpkru => self.wrpkru(),
            I::Xsave | I::Xsave64 | I::Xsaveopt | I::Xsaveopt64 => self.save_standard(),
            I::Xsavec | I::Xsavec64 | I::Xsaves | I::Xsaves64 => self.save_compacted(),
            I::Xrstor | I::Xrstor64 | I::Xrstors | I::Xrstors64 => self.restore(),
            _ => Err(Stop::Unknown),
        }
    }

    /// #UD unless `condition` holds.
    fn defined_if(&self, condition: bool) -> Result<(), Stop> {
        if condition {
            Ok(())
        } else {
            Err(Exception::InvalidOpcode.into())
        }
    }

    /// #GP unless `condition` holds.
    fn protect(&self, condition: bool) -> Result<(), Stop> {
        if condition {
            Ok(())
        } else {
            Err(Exception::GeneralProtection.into())
        }
    }

    fn has_cr0(&self, bits: u64) -> bool {
        self.cpu.mode().cr0 & bits != 0
    }

    fn has_cr4(&self, bits: u64) -> bool {
        self.cpu.mode().cr4 & bits != 0
    }
}

//! Operands of an instruction in 64-bit mode: general purpose registers of each size, and effective addresses.

use iced_x86::{OpKind, Register};
use vm_memory::GuestMemoryBackend;

use super::cpu::{Cpu, Exception, Segment};
use super::paging::{self, Access};
use super::{Machine, Stop};

/// A general purpose register as an instruction names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gpr {
    /// Encoding number, 0 to 15.
    pub number: u8,
    /// Width in bytes: 2, 4 or 8.
    pub size: usize,
}

impl Gpr {
    /// `None` for what is no 16-, 32- or 64-bit general purpose register.
    pub fn from_iced(register: Register) -> Option<Self> {
        // iced numbers each bank in encoding order.
        [(Register::AX, 2), (Register::EAX, 4), (Register::RAX, 8)]
            .into_iter()
            .find_map(|(first, size)| {
                let number = (register as usize).checked_sub(first as usize)?;
                (number < 16).then_some(Gpr {
                    number: number as u8,
                    size,
                })
            })
    }
}

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    /// The register that operand 0 or 1 names; an operand that is none makes the instruction unknown.
    pub(super) fn register_operand(&self, operand: u32) -> Result<Gpr, Stop> {
        if self.instruction.op_kind(operand) != OpKind::Register {
            return Err(Stop::Unknown);
        }
        Gpr::from_iced(self.instruction.op_register(operand)).ok_or(Stop::Unknown)
    }

    /// A register's value, zero-extended.
    pub(super) fn register(&self, register: Gpr) -> u64 {
        self.cpu.gpr(register.number) & (u64::MAX >> (64 - 8 * register.size))
    }

    /// Sets a register as an instruction of its size does: 32 bits clear the upper half, 16 bits leave the rest alone (Intel
    /// SDM Vol 1 §3.4.1.1).
    pub(super) fn set_register(&mut self, register: Gpr, value: u64) {
        let value = match register.size {
            2 => (self.cpu.gpr(register.number) & !0xffff) | (value & 0xffff),
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.cpu.set_gpr(register.number, value);
    }

    /// EDX:EAX, which several instructions take as one 64-bit operand.
    pub(super) fn edx_eax(&self) -> u64 {
        (self.cpu.gpr(super::cpu::RDX) << 32) | (self.cpu.gpr(super::cpu::RAX) & 0xffff_ffff)
    }

    /// Sets RAX and RDX to the halves of `value`, zero-extended.
    pub(super) fn set_edx_eax(&mut self, value: u64) {
        self.cpu.set_gpr(super::cpu::RAX, value & 0xffff_ffff);
        self.cpu.set_gpr(super::cpu::RDX, value >> 32);
    }

    /// Operand 0 or 1 as a value of `size` (at most 8) bytes, from a register or from memory.
    pub(super) fn value(&mut self, operand: u32, size: usize) -> Result<u64, Stop> {
        if self.instruction.op_kind(operand) == OpKind::Register {
            let register = self.register_operand(operand)?;
            return Ok(self.register(Gpr { size, ..register }));
        }
        let address = self.address(size)?;
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..size).ok_or(Stop::Unknown)?;
        self.memory.read(address, part, Access::Read)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Linear address of the memory operand, `size` (at least 1) bytes long and canonical.
    pub(super) fn address(&self, size: usize) -> Result<u64, Stop> {
        let instruction = &self.instruction;
        let base = match instruction.memory_base() {
            // iced has resolved the displacement of these already.
            Register::None | Register::RIP | Register::EIP => 0,
            register => self.register(Gpr::from_iced(register).ok_or(Stop::Unknown)?),
        };
        let index = match instruction.memory_index() {
            Register::None => 0,
            register => self.register(Gpr::from_iced(register).ok_or(Stop::Unknown)?),
        };
        let scaled = index.wrapping_mul(u64::from(instruction.memory_index_scale()));
        let mut offset = base
            .wrapping_add(scaled)
            .wrapping_add(instruction.memory_displacement64());
        let registers = [instruction.memory_base(), instruction.memory_index()];
        // Address size 32 (prefix 67h) truncates the offset, not the sum with the segment base (Vol 1 §3.7.5.1).
        if registers
            .iter()
            .any(|r| matches!(Gpr::from_iced(*r), Some(Gpr { size: 4, .. })))
            || registers.contains(&Register::EIP)
            || instruction.memory_displ_size() == 4 && registers == [Register::None; 2]
        {
            offset &= 0xffff_ffff;
        }
        let segment = instruction.memory_segment();
        let address = match segment {
            Register::FS => offset.wrapping_add(self.cpu.segment_base(Segment::Fs)),
            Register::GS => offset.wrapping_add(self.cpu.segment_base(Segment::Gs)),
            _ => offset,
        };
        let last = address.wrapping_add(size as u64 - 1);
        if paging::is_canonical(address) && paging::is_canonical(last) {
            return Ok(address);
        }
        let stack = segment == Register::SS;
        Err(if stack {
            Exception::StackFault
        } else {
            Exception::GeneralProtection
        }
        .into())
    }
}

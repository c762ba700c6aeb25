//! System instructions: access control, segment bases, processor numbers, translations, segment checks.

use iced_x86::Mnemonic;
use vm_memory::GuestMemoryBackend;

use super::cpu::{Cpu, RCX, Segment, control, rflags};
use super::paging::{Access, LinearMemory, is_canonical};
use super::{Machine, Stop};

/// IA32_TIME_STAMP_COUNTER (Intel SDM Vol 4, table 2-2).
const MSR_TSC: u32 = 0x10;
/// IA32_TSC_AUX.
const MSR_TSC_AUX: u32 = 0xc000_0103;

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    /// Intel SDM Vol 2A, CLAC, and Vol 2B, STAC.
    pub(super) fn set_access_control(&mut self, set: bool) -> Result<(), Stop> {
        self.defined_if(self.cpu.mode().cpl == 0)?;
        let flags = self.cpu.rflags();
        self.cpu.set_rflags(if set {
            flags | rflags::AC
        } else {
            flags & !rflags::AC
        });
        Ok(())
    }

    /// Intel SDM Vol 2B, RDPID.
    pub(super) fn rdpid(&mut self) -> Result<(), Stop> {
        let target = self.register_operand(0)?;
        let value = self.cpu.msr(MSR_TSC_AUX)?;
        self.set_register(target, value & 0xffff_ffff);
        Ok(())
    }

    /// Intel SDM Vol 2B, RDTSCP.
    pub(super) fn rdtscp(&mut self) -> Result<(), Stop> {
        self.protect(!self.has_cr4(control::CR4_TSD) || self.cpu.mode().cpl == 0)?;
        let tsc = self.cpu.msr(MSR_TSC)?;
        let aux = self.cpu.msr(MSR_TSC_AUX)?;
        self.set_edx_eax(tsc);
        self.cpu.set_gpr(RCX, aux & 0xffff_ffff);
        Ok(())
    }

    /// Intel SDM Vol 2B, RDFSBASE/RDGSBASE, and Vol 2D, WRFSBASE/WRGSBASE.
    pub(super) fn segment_base(&mut self) -> Result<(), Stop> {
        self.defined_if(self.has_cr4(control::CR4_FSGSBASE))?;
        let register = self.register_operand(0)?;
        let (segment, writes) = match self.instruction.mnemonic() {
            Mnemonic::Rdfsbase => (Segment::Fs, false),
            Mnemonic::Rdgsbase => (Segment::Gs, false),
            Mnemonic::Wrfsbase => (Segment::Fs, true),
            _ => (Segment::Gs, true),
        };
        if writes {
            let base = self.register(register);
            self.protect(is_canonical(base))?;
            self.cpu.set_segment_base(segment, base);
        } else {
            let base = self.cpu.segment_base(segment);
            self.set_register(register, base);
        }
        Ok(())
    }

    /// Intel SDM Vol 2A, INVPCID. Invalidating more than was asked for is always allowed (Vol 3A §4.10.4.1).
    pub(super) fn invpcid(&mut self) -> Result<(), Stop> {
        self.protect(self.cpu.mode().cpl == 0)?;
        let kind = self.register_operand(0)?;
        let kind = self.register(kind);
        self.protect(kind <= 3)?;
        let mut descriptor = [0; 16];
        self.memory
            .read(self.address(16)?, &mut descriptor, Access::Read)?;
        let descriptor = u128::from_le_bytes(descriptor);
        let (low, address) = (descriptor as u64, (descriptor >> 64) as u64);
        if kind <= 1 {
            // Bits 63 to 12 are reserved; a PCID other than 0 needs CR4.PCIDE.
            self.protect(low >> 12 == 0 && (low == 0 || self.has_cr4(control::CR4_PCIDE)))?;
        }
        self.protect(kind != 0 || is_canonical(address))?;
        Ok(self.cpu.flush_tlb()?)
    }

    /// Intel SDM Vol 2D, VERR/VERW: ZF says whether the segment may be read or written from here.
    pub(super) fn verify_segment(&mut self) -> Result<(), Stop> {
        let selector = self.value(0, 2)?;
        let descriptor = self.descriptor(selector)?;
        let write = self.instruction.mnemonic() == Mnemonic::Verw;
        let privilege = u64::from(self.cpu.mode().cpl).max(selector & 3);
        let ok = descriptor.is_some_and(|d| segment_allows(d, write, privilege));
        let flags = self.cpu.rflags();
        self.cpu.set_rflags(if ok {
            flags | rflags::ZF
        } else {
            flags & !rflags::ZF
        });
        Ok(())
    }

    /// The descriptor that `selector` means; `None` for the null selector and for one beyond its table.
    fn descriptor(&self, selector: u64) -> Result<Option<u64>, Stop> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let table = if selector & 4 == 0 {
            self.cpu.gdt()
        } else {
            self.cpu.ldt()
        };
        let offset = selector & !7;
        if offset + 7 > u64::from(table.limit) {
            return Ok(None);
        }
        let mut bytes = [0; 8];
        let memory = LinearMemory::system(self.ram, self.cpu.mode());
        memory.read(table.base.wrapping_add(offset), &mut bytes, Access::Read)?;
        Ok(Some(u64::from_le_bytes(bytes)))
    }
}

/// Segment descriptors: Intel SDM Vol 3A §3.4.5, types in table 3-1. `privilege` is the weaker of CPL and RPL.
fn segment_allows(descriptor: u64, write: bool, privilege: u64) -> bool {
    let bit = |n: u32| descriptor >> n & 1 != 0;
    let (read_write, conforming, code, code_or_data) = (bit(41), bit(42), bit(43), bit(44));
    let level = descriptor >> 45 & 3;
    let access = match (code, write) {
        (true, true) => false,
        (true, false) => read_write,
        (false, true) => read_write,
        (false, false) => true,
    };
    code_or_data && access && ((code && conforming) || privilege <= level)
}

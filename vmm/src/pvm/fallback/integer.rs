//! Integer instructions: `popcnt`, `cmpxchg16b`, `rdrand` and `rdseed`.

use vm_memory::GuestMemoryBackend;

use super::cpu::{Cpu, RAX, RBX, RCX, RDX, rflags};
use super::{Machine, Stop, random};

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    fn set_arithmetic_flags(&mut self, set: u64) {
        let flags = self.cpu.rflags();
        self.cpu.set_rflags((flags & !rflags::ARITHMETIC) | set);
    }

    /// Intel SDM Vol 2B, POPCNT: ZF says that the source is zero, the other arithmetic flags are cleared.
    pub(super) fn popcnt(&mut self) -> Result<(), Stop> {
        let target = self.register_operand(0)?;
        let value = self.value(1, target.size)?;
        self.set_register(target, u64::from(value.count_ones()));
        self.set_arithmetic_flags(if value == 0 { rflags::ZF } else { 0 });
        Ok(())
    }

    /// Intel SDM Vol 2A, CMPXCHG8B/CMPXCHG16B. Atomic with or without a LOCK prefix, which is stronger than asked for.
    pub(super) fn cmpxchg16b(&mut self) -> Result<(), Stop> {
        let address = self.address(16)?;
        self.protect(address.is_multiple_of(16))?;
        let pair = |cpu: &C, high, low| (u128::from(cpu.gpr(high)) << 64) | u128::from(cpu.gpr(low));
        let expected = pair(self.cpu, RDX, RAX);
        let new = pair(self.cpu, RCX, RBX);
        let seen = self.memory.compare_exchange_16(address, expected, new)?;
        let flags = self.cpu.rflags();
        if seen == expected {
            self.cpu.set_rflags(flags | rflags::ZF);
        } else {
            self.cpu.set_rflags(flags & !rflags::ZF);
            self.cpu.set_gpr(RAX, seen as u64);
            self.cpu.set_gpr(RDX, (seen >> 64) as u64);
        }
        Ok(())
    }

    /// Intel SDM Vol 2B, RDRAND and RDSEED: CF says that there was a value, else the target is zero.
    pub(super) fn random(&mut self) -> Result<(), Stop> {
        let target = self.register_operand(0)?;
        let value = random::random();
        self.set_register(target, value.unwrap_or(0));
        self.set_arithmetic_flags(if value.is_some() { rflags::CF } else { 0 });
        Ok(())
    }
}

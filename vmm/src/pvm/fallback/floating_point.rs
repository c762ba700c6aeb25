//! x87 and SSE control: `fwait`, `fninit`, `fnclex`, `ldmxcsr`, `stmxcsr`; XCR0 and PKRU.

use vm_memory::GuestMemoryBackend;

use super::cpu::{Cpu, Exception, RCX, RDX, control};
use super::xstate::{PKRU, SSE, X87};
use super::{Machine, Stop, Unsupported};

/// x87 status word: exception summary (Intel SDM Vol 1 §8.1.3).
const FSW_ES: u16 = 1 << 7;
/// x87 status word: what FNCLEX clears: exception flags, stack fault, summary and busy (Vol 2A, FCLEX/FNCLEX).
const FSW_EXCEPTIONS: u16 = 0x80ff;

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    /// #NM if any of these CR0 bits is set.
    fn available_unless(&self, cr0: u64) -> Result<(), Stop> {
        if self.has_cr0(cr0) {
            Err(Exception::DeviceNotAvailable.into())
        } else {
            Ok(())
        }
    }

    /// Intel SDM Vol 2D, WAIT/FWAIT: #NM if CR0 has both MP and TS, #MF if an unmasked x87 exception is pending.
    pub(super) fn wait(&mut self) -> Result<(), Stop> {
        if self.has_cr0(control::CR0_MP) {
            self.available_unless(control::CR0_TS)?;
        }
        self.cpu.get_xsave(self.xsave)?;
        if self.xsave.fsw() & FSW_ES != 0 && self.has_cr0(control::CR0_NE) {
            return Err(Exception::FloatingPoint.into());
        }
        Ok(())
    }

    /// Intel SDM Vol 2A, FINIT/FNINIT.
    pub(super) fn fninit(&mut self) -> Result<(), Stop> {
        self.available_unless(control::CR0_EM | control::CR0_TS)?;
        self.cpu.get_xsave(self.xsave)?;
        self.xsave.init_x87_control();
        self.xsave.mark_in_use(X87);
        Ok(self.cpu.set_xsave(self.xsave)?)
    }

    /// Intel SDM Vol 2A, FCLEX/FNCLEX.
    pub(super) fn fnclex(&mut self) -> Result<(), Stop> {
        self.available_unless(control::CR0_EM | control::CR0_TS)?;
        self.cpu.get_xsave(self.xsave)?;
        let status = self.xsave.fsw() & !FSW_EXCEPTIONS;
        self.xsave.set_fsw(status);
        Ok(self.cpu.set_xsave(self.xsave)?)
    }

    /// What LDMXCSR and STMXCSR demand (Intel SDM Vol 2A §2.4.5, type 5).
    fn sse_available(&self) -> Result<(), Stop> {
        self.defined_if(!self.has_cr0(control::CR0_EM) && self.has_cr4(control::CR4_OSFXSR))?;
        self.available_unless(control::CR0_TS)
    }

    /// Intel SDM Vol 2A, LDMXCSR.
    pub(super) fn ldmxcsr(&mut self) -> Result<(), Stop> {
        self.sse_available()?;
        let value = self.value(0, 4)? as u32;
        self.cpu.get_xsave(self.xsave)?;
        self.protect(value & !self.xsave.mxcsr_mask() == 0)?;
        self.xsave.set_mxcsr(value);
        self.xsave.mark_in_use(SSE);
        Ok(self.cpu.set_xsave(self.xsave)?)
    }

    /// Intel SDM Vol 2B, STMXCSR.
    pub(super) fn stmxcsr(&mut self) -> Result<(), Stop> {
        self.sse_available()?;
        let address = self.address(4)?;
        self.cpu.get_xsave(self.xsave)?;
        self.memory.write(address, &self.xsave.mxcsr().to_le_bytes())
    }

    /// Intel SDM Vol 2D, XGETBV: register 0 is XCR0, register 1 the components of it that are in use.
    pub(super) fn xgetbv(&mut self) -> Result<(), Stop> {
        self.defined_if(self.has_cr4(control::CR4_OSXSAVE))?;
        let index = self.cpu.gpr(RCX) & 0xffff_ffff;
        self.protect(index <= 1)?;
        let mut value = self.cpu.xcr0()?;
        if index == 1 {
            self.cpu.get_xsave(self.xsave)?;
            value &= self.xsave.in_use();
        }
        self.set_edx_eax(value);
        Ok(())
    }

    fn pkru_component(&mut self) -> Result<&mut [u8; 4], Stop> {
        let bytes = self
            .xsave
            .component_mut(PKRU)
            .and_then(|bytes| bytes.first_chunk_mut());
        bytes.ok_or(Stop::Unsupported(Unsupported::StateComponent(PKRU)))
    }

    /// Intel SDM Vol 2B, RDPKRU.
    pub(super) fn rdpkru(&mut self) -> Result<(), Stop> {
        self.defined_if(self.has_cr4(control::CR4_PKE))?;
        self.protect(self.cpu.gpr(RCX) & 0xffff_ffff == 0)?;
        self.cpu.get_xsave(self.xsave)?;
        let value = u32::from_le_bytes(*self.pkru_component()?);
        self.set_edx_eax(u64::from(value));
        Ok(())
    }

    /// Intel SDM Vol 2D, WRPKRU.
    pub(super) fn wrpkru(&mut self) -> Result<(), Stop> {
        self.defined_if(self.has_cr4(control::CR4_PKE))?;
        let upper = self.cpu.gpr(RCX) | self.cpu.gpr(RDX);
        self.protect(upper & 0xffff_ffff == 0)?;
        let value = self.edx_eax() as u32;
        self.cpu.get_xsave(self.xsave)?;
        *self.pkru_component()? = value.to_le_bytes();
        self.xsave.mark_in_use(PKRU);
        Ok(self.cpu.set_xsave(self.xsave)?)
    }
}

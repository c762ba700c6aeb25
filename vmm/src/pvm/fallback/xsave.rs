//! The XSAVE family: `xsave`, `xsaveopt`, `xsavec`, `xsaves`, `xrstor`, `xrstors` (Intel SDM Vol 1 §13.7 to §13.12).
//!
//! Supervisor components are not provided for: KVM does not hand them out with the rest. posada hides them from the guest's
//! CPUID, so that IA32_XSS stays 0; a guest that sets it all the same gets an error that names the component.

use iced_x86::Mnemonic;
use vm_memory::GuestMemoryBackend;

use super::cpu::{Cpu, Exception, control};
use super::paging::Access;
use super::xstate::{
    AVX, EXTENDED, LEGACY_SIZE, Layout, MXCSR, MXCSR_MASK, MXCSR_RESET, PKRU, SSE, ST, X87, XMM, XMM_END,
    XSTATE_BV,
};
use super::{Machine, Stop, Unsupported};

/// IA32_XSS (Intel SDM Vol 4, table 2-2).
const MSR_XSS: u32 = 0xda0;
/// XCOMP_BV: the area is in the compacted format (Vol 1 §13.4.2).
const COMPACTED: u64 = 1 << 63;

/// The memory operand and which components it is about.
struct Area {
    address: u64,
    /// Components enabled in XCR0, and in IA32_XSS where the instruction regards it.
    enabled: u64,
    /// The requested-feature bitmap, RFBM.
    requested: u64,
    /// REX.W: instruction and data pointers of the x87 are 64 bits wide rather than 32 and a (now always zero) segment.
    wide: bool,
}

impl Area {
    fn requests(&self, component: u32) -> bool {
        self.requested >> component & 1 != 0
    }
}

fn has(components: u64, component: u32) -> bool {
    components >> component & 1 != 0
}

/// Numbers of the components of the extended region in a bitmap.
fn extended(components: u64) -> impl Iterator<Item = u32> {
    (AVX..63).filter(move |n| has(components, *n))
}

/// Walks the compacted format (§13.4.3): offset of each component in `xcomp_bv`, lowest first.
fn compacted(layout: &Layout, xcomp_bv: u64) -> impl Iterator<Item = (u32, u64)> {
    let mut end = EXTENDED as u64;
    extended(xcomp_bv).filter_map(move |n| {
        let component = layout.component(n)?;
        let offset = if component.aligned {
            end.next_multiple_of(64)
        } else {
            end
        };
        end = offset + component.size as u64;
        Some((n, offset))
    })
}

impl<C: Cpu, M: GuestMemoryBackend> Machine<'_, C, M> {
    /// Common checks, and the operands.
    fn area(&mut self) -> Result<Area, Stop> {
        use Mnemonic as I;
        let mnemonic = self.instruction.mnemonic();
        let supervisor = matches!(mnemonic, I::Xsaves | I::Xsaves64 | I::Xrstors | I::Xrstors64);
        let wide = matches!(
            mnemonic,
            I::Xsave64 | I::Xsaveopt64 | I::Xsavec64 | I::Xsaves64 | I::Xrstor64 | I::Xrstors64
        );
        self.defined_if(self.has_cr4(control::CR4_OSXSAVE))?;
        if self.has_cr0(control::CR0_TS) {
            return Err(Exception::DeviceNotAvailable.into());
        }
        self.protect(!supervisor || self.cpu.mode().cpl == 0)?;
        let address = self.address(EXTENDED)?;
        self.protect(address.is_multiple_of(64))?;
        let mut enabled = self.cpu.xcr0()?;
        if supervisor {
            enabled |= self.cpu.msr(MSR_XSS)?;
        }
        let requested = enabled & self.edx_eax();
        self.provides(requested)?;
        Ok(Area {
            address,
            enabled,
            requested,
            wide,
        })
    }

    fn provides(&self, components: u64) -> Result<(), Stop> {
        let missing = |n: &u32| self.xsave.layout().component(*n).is_none();
        match extended(components).find(missing) {
            Some(n) => Err(Stop::Unsupported(Unsupported::StateComponent(n))),
            None => Ok(()),
        }
    }

    /// XSAVE and XSAVEOPT. The latter leaves out what is in its initial state (§13.9); it may, but need not, leave out what was
    /// not modified since the last XRSTOR.
    pub(super) fn save_standard(&mut self) -> Result<(), Stop> {
        let area = self.area()?;
        self.cpu.get_xsave(self.xsave)?;
        // Since the standard format always holds MXCSR, that does not count as SSE here.
        let in_use = self.xsave.xstate_bv();
        let optimized = matches!(
            self.instruction.mnemonic(),
            Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64
        );
        let saved = area.requested & if optimized { in_use } else { u64::MAX };
        // MXCSR goes with either SSE or AVX (§13.7, §13.9).
        self.save_legacy(&area, saved, area.requests(SSE) || area.requests(AVX))?;
        for n in extended(saved) {
            if let Some(component) = self.xsave.layout().component(n) {
                self.save_component(n, area.address.wrapping_add(component.offset as u64))?;
            }
        }
        let header = area.address.wrapping_add(XSTATE_BV as u64);
        let mut old = [0; 8];
        self.memory.read(header, &mut old, Access::Read)?;
        let new = (u64::from_le_bytes(old) & !area.requested) | (in_use & area.requested);
        self.memory.write(header, &new.to_le_bytes())
    }

    /// XSAVEC and XSAVES (§13.10, §13.11).
    pub(super) fn save_compacted(&mut self) -> Result<(), Stop> {
        let area = self.area()?;
        self.cpu.get_xsave(self.xsave)?;
        let saved = area.requested & self.xsave.in_use();
        self.save_legacy(&area, saved, has(saved, SSE))?;
        let layout = self.xsave.layout().clone();
        for (n, offset) in compacted(&layout, area.requested) {
            if has(saved, n) {
                self.save_component(n, area.address.wrapping_add(offset))?;
            }
        }
        let mut header = [0; 16];
        header[..8].copy_from_slice(&saved.to_le_bytes());
        header[8..].copy_from_slice(&(area.requested | COMPACTED).to_le_bytes());
        self.memory
            .write(area.address.wrapping_add(XSTATE_BV as u64), &header)
    }

    fn save_component(&self, number: u32, address: u64) -> Result<(), Stop> {
        match self.xsave.component(number) {
            // Only half of PKRU's 8 bytes is used (§13.5.7), and the CPU leaves the other half alone.
            Some(bytes) if number == PKRU => self.memory.write(address, &bytes[..bytes.len().min(4)]),
            Some(bytes) => self.memory.write(address, bytes),
            None => Err(Stop::Unsupported(Unsupported::StateComponent(number))),
        }
    }

    /// Writes the parts of the legacy region (§13.4.1) that the components in `saved` and MXCSR take up.
    fn save_legacy(&self, area: &Area, saved: u64, mxcsr: bool) -> Result<(), Stop> {
        let mut legacy = [0; LEGACY_SIZE];
        legacy.copy_from_slice(&self.xsave.bytes()[..LEGACY_SIZE]);
        legacy[MXCSR_MASK..ST].copy_from_slice(&self.xsave.mxcsr_mask().to_le_bytes());
        if !area.wide {
            clear_segments(&mut legacy);
        }
        let parts = [
            (has(saved, X87), 0, MXCSR),
            (mxcsr, MXCSR, ST),
            (has(saved, X87), ST, XMM),
            (has(saved, SSE), XMM, XMM_END),
        ];
        for (_, start, end) in parts.into_iter().filter(|(wanted, ..)| *wanted) {
            self.memory
                .write(area.address.wrapping_add(start as u64), &legacy[start..end])?;
        }
        Ok(())
    }

    /// XRSTOR and XRSTORS (§13.8, §13.12).
    pub(super) fn restore(&mut self) -> Result<(), Stop> {
        let area = self.area()?;
        let (xstate_bv, xcomp_bv) = self.checked_header(&area)?;
        self.provides(xcomp_bv & !COMPACTED)?;
        let is_compacted = xcomp_bv & COMPACTED != 0;
        self.cpu.get_xsave(self.xsave)?;
        self.restore_mxcsr(&area, xstate_bv, is_compacted)?;
        for n in [X87, SSE] {
            self.restore_legacy(&area, xstate_bv, n)?;
        }
        let layout = self.xsave.layout().clone();
        for n in extended(area.requested & !xstate_bv) {
            self.xsave.init(n);
        }
        if is_compacted {
            for (n, offset) in compacted(&layout, xcomp_bv) {
                self.restore_component(&area, xstate_bv, n, offset)?;
            }
        } else {
            for n in extended(xstate_bv) {
                let offset = layout.component(n).map_or(0, |c| c.offset as u64);
                self.restore_component(&area, xstate_bv, n, offset)?;
            }
        }
        let kept = self.xsave.xstate_bv() & !area.requested;
        self.xsave.set_xstate_bv(kept | (xstate_bv & area.requested));
        Ok(self.cpu.set_xsave(self.xsave)?)
    }

    /// Reads XSTATE_BV and XCOMP_BV; #GP where §13.8 or §13.12 says so.
    fn checked_header(&self, area: &Area) -> Result<(u64, u64), Stop> {
        let mut header = [0; EXTENDED - LEGACY_SIZE];
        self.memory.read(
            area.address.wrapping_add(XSTATE_BV as u64),
            &mut header,
            Access::Read,
        )?;
        let mut words = header
            .chunks_exact(8)
            .map(|w| w.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)));
        let xstate_bv: u64 = words.next().unwrap_or(0);
        let xcomp_bv: u64 = words.next().unwrap_or(0);
        let third: u64 = words.next().unwrap_or(0);
        if xcomp_bv & COMPACTED != 0 {
            let components = xcomp_bv & !COMPACTED;
            self.protect(components & !area.enabled == 0 && xstate_bv & !components == 0)?;
            self.protect(third == 0 && words.all(|w| w == 0))?;
        } else {
            let demands_compacted = matches!(
                self.instruction.mnemonic(),
                Mnemonic::Xrstors | Mnemonic::Xrstors64
            );
            self.protect(!demands_compacted && xstate_bv & !area.enabled == 0)?;
            self.protect(xcomp_bv == 0 && third == 0)?;
        }
        Ok((xstate_bv, xcomp_bv))
    }

    /// The standard format always holds MXCSR, the compacted one only together with SSE state.
    fn restore_mxcsr(&mut self, area: &Area, xstate_bv: u64, is_compacted: bool) -> Result<(), Stop> {
        let wanted = area.requests(SSE) || (!is_compacted && area.requests(AVX));
        if !wanted {
            return Ok(());
        }
        let mut bytes = MXCSR_RESET.to_le_bytes();
        if !is_compacted || has(xstate_bv, SSE) {
            self.memory
                .read(area.address.wrapping_add(MXCSR as u64), &mut bytes, Access::Read)?;
        }
        let value = u32::from_le_bytes(bytes);
        self.protect(value & !self.xsave.mxcsr_mask() == 0)?;
        self.xsave.set_mxcsr(value);
        Ok(())
    }

    fn restore_legacy(&mut self, area: &Area, xstate_bv: u64, component: u32) -> Result<(), Stop> {
        if !area.requests(component) {
            return Ok(());
        }
        if !has(xstate_bv, component) {
            self.xsave.init(component);
            return Ok(());
        }
        let parts: &[(usize, usize)] = if component == X87 {
            &[(0, MXCSR), (ST, XMM)]
        } else {
            &[(XMM, XMM_END)]
        };
        for (start, end) in parts.iter().copied() {
            let target = &mut self.xsave.bytes_mut()[start..end];
            self.memory
                .read(area.address.wrapping_add(start as u64), target, Access::Read)?;
        }
        if component == X87 && !area.wide {
            clear_segments(self.xsave.bytes_mut());
        }
        Ok(())
    }

    fn restore_component(
        &mut self,
        area: &Area,
        xstate_bv: u64,
        number: u32,
        offset: u64,
    ) -> Result<(), Stop> {
        if !has(xstate_bv & area.requested, number) {
            return Ok(());
        }
        match self.xsave.component_mut(number) {
            Some(target) => self
                .memory
                .read(area.address.wrapping_add(offset), target, Access::Read),
            None => Err(Stop::Unsupported(Unsupported::StateComponent(number))),
        }
    }
}

/// Without REX.W, the upper halves of the x87's pointers hold FCS and FDS, which CPUs no longer record (CPUID.7.0:EBX bit 13).
fn clear_segments(legacy: &mut [u8]) {
    for upper_half in [12..16, 20..24] {
        legacy[upper_half].fill(0);
    }
}

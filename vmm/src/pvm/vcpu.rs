//! One vCPU on kvm-pvm: carries state between KVM and the instruction fallback, and watches over MSR LSTAR.

use std::io;

use kvm_bindings::{
    KVM_CAP_SYNC_REGS, KVM_CAP_XSAVE2, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Msrs, Xsave,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::fallback::cpu::{Cpu, DescriptorTable, Exception, Mode, Segment, control};
use super::fallback::xstate::{Layout, SSE, X87, XSTATE_BV, XsaveImage};
use super::fallback::{self, MAX_INSTRUCTION};
use super::{Error, MSR_LSTAR, syscall_gate};

/// What kvm-pvm needs beside a vCPU. Holds no guest state: a restored vCPU gets a new one.
pub struct PvmVcpu {
    /// KVM's own form of the extended state.
    kvm_xsave: Xsave,
    /// The same as the fallback reads it; kept to spare an allocation each time.
    image: XsaveImage,
    stub_page: GuestAddress,
    /// That `syscall` cannot be repaired has been told: a guest can write LSTAR as often as it likes.
    told: bool,
}

impl PvmVcpu {
    /// What a vCPU of `vm` needs. Its exits stay as they are: registers with each of them, which KVM offers too, cost
    /// every exit 2 to 7 %, and an instruction to complete is rare.
    ///
    /// `stub_page` is the guest-physical address of a page of RAM that the guest is told to leave alone; it is for
    /// [`syscall_gate`].
    ///
    /// # Errors
    /// KVM lacks KVM_CAP_SYNC_REGS or KVM_CAP_XSAVE2.
    pub fn new(vm: &VmFd, stub_page: GuestAddress) -> Result<Self, Error> {
        let wanted = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
        let offered = vm.check_extension_raw(KVM_CAP_SYNC_REGS.into());
        if u32::try_from(offered).unwrap_or(0) & wanted != wanted {
            return Err(Error::Missing("registers in the run page (KVM_CAP_SYNC_REGS)"));
        }
        // The size in bytes of KVM's area, 0 where the extension is unknown (api.rst, KVM_GET_XSAVE2).
        let fixed = size_of::<kvm_xsave>();
        let size = usize::try_from(vm.check_extension_raw(KVM_CAP_XSAVE2.into())).unwrap_or(0);
        if size < fixed {
            return Err(Error::Missing("the whole extended state (KVM_CAP_XSAVE2)"));
        }
        let kvm_xsave = Xsave::new((size - fixed).div_ceil(4))
            .map_err(|_| Error::Missing("an XSAVE area of a sane size (KVM_CAP_XSAVE2)"))?;
        Ok(PvmVcpu {
            kvm_xsave,
            image: XsaveImage::new(Layout::of_this_cpu(size)),
            stub_page,
            told: false,
        })
    }

    /// Finishes the instruction that KVM gave up on. To be called on KVM_EXIT_INTERNAL_ERROR.
    ///
    /// # Errors
    /// The internal error is another one, or the instruction is not known either ([`fallback::Error`]): the guest has crashed.
    pub fn complete_instruction<M: GuestMemoryBackend>(
        &mut self,
        vcpu: &mut VcpuFd,
        ram: &M,
    ) -> Result<(), Error> {
        fetch_registers(vcpu)?;
        let mut seen = [0; MAX_INSTRUCTION];
        let seen = emulation_failure(vcpu, &mut seen)?;
        let mut cpu = KvmCpu {
            vcpu,
            kvm_xsave: &mut self.kvm_xsave,
        };
        // KVM has queued a #UD for the case that we do nothing. Taking the registers back makes it forget that.
        cpu.vcpu.set_sync_dirty_reg(SyncReg::Register);
        Ok(fallback::complete(&mut cpu, ram, seen, &mut self.image)?)
    }

    /// Does the guest's write of `value` to MSR `index`. To be called on KVM_EXIT_X86_WRMSR.
    ///
    /// A write to LSTAR also installs the repair of `syscall`; where that cannot be done, the log says why, once, and the guest goes on,
    /// for it may be one without user mode.
    ///
    /// # Errors
    /// KVM refuses to tell or change registers. A value that KVM does not accept is a #GP for the guest, not an error.
    pub fn write_msr<M: GuestMemoryBackend>(
        &mut self,
        vcpu: &mut VcpuFd,
        ram: &M,
        index: u32,
        value: u64,
    ) -> Result<(), Error> {
        let entry = kvm_msr_entry {
            index,
            data: value,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|error| Error::Kvm {
            what: "set an MSR",
            source: io::Error::other(error),
        })?;
        let accepted = vcpu.set_msrs(&msrs).map_err(Error::kvm("set an MSR"))? == 1;
        vcpu.get_kvm_run().__bindgen_anon_1.msr.error = u8::from(!accepted);
        if index == MSR_LSTAR && accepted {
            let sregs = vcpu
                .get_sregs()
                .map_err(Error::kvm("tell its system registers"))?;
            let mode = mode(&sregs);
            let idt = DescriptorTable {
                base: sregs.idt.base,
                limit: sregs.idt.limit.into(),
            };
            if let Err(error) = syscall_gate::install(ram, mode, idt, self.stub_page, value)
                && !std::mem::replace(&mut self.told, true)
            {
                tracing::warn!("system calls of the guest's user programs will not work: {error}");
            }
        }
        Ok(())
    }
}

/// Puts the registers into the run page, from where KVM takes back those that are marked as changed when it next runs.
fn fetch_registers(vcpu: &mut VcpuFd) -> Result<(), Error> {
    let regs = vcpu.get_regs().map_err(Error::kvm("tell its registers"))?;
    let sregs = vcpu
        .get_sregs()
        .map_err(Error::kvm("tell its system registers"))?;
    let shared = vcpu.sync_regs_mut();
    (shared.regs, shared.sregs) = (regs, sregs);
    Ok(())
}

/// The instruction bytes that KVM saw before it gave up, none if it does not tell.
fn emulation_failure<'a>(
    vcpu: &mut VcpuFd,
    buffer: &'a mut [u8; MAX_INSTRUCTION],
) -> Result<&'a [u8], Error> {
    // SAFETY: the caller got a KVM_EXIT_INTERNAL_ERROR, for which `emulation_failure` overlays `internal`: both start with
    // `suberror` and `ndata`, and are plain old data within `kvm_run`.
    let failure = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.emulation_failure };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Err(Error::Internal {
            suberror: failure.suberror,
            rip: vcpu.sync_regs().regs.rip,
        });
    }
    let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    // The flags are one word of data, the size and bytes two more (Linux, include/uapi/linux/kvm.h).
    if failure.ndata < 3 || failure.flags & flag == 0 {
        return Ok(&[]);
    }
    // SAFETY: the flag says that this member is filled; it is plain old data.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    *buffer = instruction.insn_bytes;
    Ok(&buffer[..usize::from(instruction.insn_size).min(MAX_INSTRUCTION)])
}

/// Fills KVM's words from the image's bytes, as far as both go.
fn to_words(words: &mut [u32], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

fn mode(sregs: &kvm_sregs) -> Mode {
    Mode {
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        // The CPL is SS.DPL (Intel SDM Vol 3A §5.5); in 64-bit mode SS may be null, and its DPL still is the CPL.
        cpl: sregs.ss.dpl & 3,
        code64: sregs.cs.l != 0,
    }
}

/// A vCPU behind the fallback's interface: registers in the shared run page, the rest by ioctl.
struct KvmCpu<'a> {
    vcpu: &'a mut VcpuFd,
    kvm_xsave: &'a mut Xsave,
}

impl KvmCpu<'_> {
    fn regs(&mut self) -> &mut kvm_regs {
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        &mut self.vcpu.sync_regs_mut().regs
    }

    fn sregs(&mut self) -> &mut kvm_sregs {
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        &mut self.vcpu.sync_regs_mut().sregs
    }
}

/// KVM's name for a general purpose register.
fn gpr(regs: &mut kvm_regs, number: u8) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

impl Cpu for KvmCpu<'_> {
    fn gpr(&self, number: u8) -> u64 {
        *gpr(&mut self.vcpu.sync_regs().regs, number)
    }

    fn set_gpr(&mut self, number: u8, value: u64) {
        *gpr(self.regs(), number) = value;
    }

    fn rip(&self) -> u64 {
        self.vcpu.sync_regs().regs.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.regs().rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.vcpu.sync_regs().regs.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.regs().rflags = rflags;
    }

    fn mode(&self) -> Mode {
        mode(&self.vcpu.sync_regs().sregs)
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        let sregs = self.vcpu.sync_regs().sregs;
        match segment {
            Segment::Fs => sregs.fs.base,
            Segment::Gs => sregs.gs.base,
        }
    }

    fn set_segment_base(&mut self, segment: Segment, base: u64) {
        match segment {
            Segment::Fs => self.sregs().fs.base = base,
            Segment::Gs => self.sregs().gs.base = base,
        }
    }

    fn gdt(&self) -> DescriptorTable {
        let gdt = self.vcpu.sync_regs().sregs.gdt;
        DescriptorTable {
            base: gdt.base,
            limit: gdt.limit.into(),
        }
    }

    fn ldt(&self) -> DescriptorTable {
        let ldt = self.vcpu.sync_regs().sregs.ldt;
        if ldt.unusable != 0 || ldt.present == 0 {
            return DescriptorTable::default();
        }
        DescriptorTable {
            base: ldt.base,
            limit: ldt.limit,
        }
    }

    fn msr(&mut self, index: u32) -> io::Result<u64> {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(io::Error::other)?;
        self.vcpu.get_msrs(&mut msrs)?;
        Ok(msrs.as_slice().first().map_or(0, |entry| entry.data))
    }

    fn xcr0(&mut self) -> io::Result<u64> {
        let xcrs = self.vcpu.get_xcrs()?;
        let known = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
        // XCR0 is 1 after reset, x87 only (Intel SDM Vol 3A §2.6).
        Ok(known
            .filter(|xcr| xcr.xcr == 0)
            .map(|xcr| xcr.value)
            .next()
            .unwrap_or(1))
    }

    fn get_xsave(&mut self, image: &mut XsaveImage) -> io::Result<()> {
        // SAFETY: `kvm_xsave` was allocated with the size that KVM_CAP_XSAVE2 gave for this VM.
        unsafe { self.vcpu.get_xsave2(self.kvm_xsave)? };
        let words = self
            .kvm_xsave
            .as_fam_struct_ref()
            .xsave
            .region
            .iter()
            .chain(self.kvm_xsave.as_slice());
        for (bytes, word) in image.bytes_mut().chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Ok(())
    }

    fn set_xsave(&mut self, image: &XsaveImage) -> io::Result<()> {
        // KVM takes the x87's registers only with component 0, and MXCSR only with component 1. The image has right values for
        // both whether in use or not, so they may always count as in use.
        let (fixed, rest) = image
            .bytes()
            .split_at(image.bytes().len().min(size_of::<kvm_xsave>()));
        // SAFETY: the length field of the structure is not changed.
        let region = unsafe { &mut self.kvm_xsave.as_mut_fam_struct().xsave.region };
        to_words(region, fixed);
        region[XSTATE_BV / 4] |= 1 << X87 | 1 << SSE;
        to_words(self.kvm_xsave.as_mut_slice(), rest);
        // SAFETY: as for `get_xsave`.
        unsafe { self.vcpu.set_xsave2(self.kvm_xsave)? };
        Ok(())
    }

    fn flush_tlb(&mut self) -> io::Result<()> {
        // A change of CR4.PGE drops every translation (Intel SDM Vol 3A §4.10.4.1), in KVM as on a CPU.
        let mut sregs = self.vcpu.sync_regs().sregs;
        sregs.cr4 ^= control::CR4_PGE;
        self.vcpu.set_sregs(&sregs)?;
        sregs.cr4 ^= control::CR4_PGE;
        self.vcpu.set_sregs(&sregs)?;
        Ok(())
    }

    fn raise(&mut self, exception: Exception) -> io::Result<()> {
        if let Exception::PageFault { address, .. } = exception {
            self.sregs().cr2 = address;
        }
        let mut events = self.vcpu.get_vcpu_events()?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector();
        events.exception.has_error_code = u8::from(exception.error_code().is_some());
        events.exception.error_code = exception.error_code().unwrap_or(0);
        self.vcpu.set_vcpu_events(&events)?;
        Ok(())
    }
}

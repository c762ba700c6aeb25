//! A vCPU's first state: the numbers that the architecture gives, in KVM's own structs.

use arch_x86_64::cpuid::{self as arch_cpuid, CpuTopology, Leaf};
use arch_x86_64::msr::boot_msrs;
use arch_x86_64::registers::{DescriptorTable, Registers, Segment};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_dtable,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::config::cpu_template::MsrModifier;
use crate::error::{Doing, Error};
use crate::host::HostKind;
use crate::pvm;

/// What KVM can show a guest of the host's CPU.
pub fn supported_leaves(kvm: &Kvm) -> Result<Vec<Leaf>, kvm_ioctls::Error> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    Ok(supported.as_slice().iter().map(leaf).collect())
}

/// The CPUID of vCPU `index`.
pub fn cpuid(supported: &[Leaf], index: u32, topology: CpuTopology, host: HostKind) -> Result<CpuId, Error> {
    let mut leaves = supported.to_vec();
    arch_cpuid::adjust(&mut leaves, index, topology);
    let mut entries: Vec<_> = leaves.iter().map(entry).collect();
    if host == HostKind::Pvm {
        pvm::mask_cpuid(&mut entries);
    }
    CpuId::from_entries(&entries).map_err(|_| Error::CpuidTooLong(entries.len()))
}

/// Puts the boot CPU where the kernel is entered.
pub fn set_boot_state(vcpu: &VcpuFd, registers: &Registers) -> Result<(), Error> {
    let sregs = vcpu.get_sregs().doing("read a vCPU's system registers")?;
    vcpu.set_sregs(&system_registers(sregs, registers))
        .doing("set a vCPU's system registers")?;
    vcpu.set_regs(&general_registers(registers))
        .doing("set a vCPU's registers")
}

/// Gives a vCPU the MSRs that firmware would have set.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entries = boot_msrs().map(|msr| kvm_msr_entry {
        index: msr.index,
        data: msr.value,
        ..Default::default()
    });
    write_msrs(vcpu, &entries)
}

/// Makes a vCPU's MSRs what a template says.
pub fn change_msrs(vcpu: &VcpuFd, modifiers: &[MsrModifier]) -> Result<(), Error> {
    modifiers.iter().try_for_each(|modifier| {
        let mut entry = kvm_msr_entry {
            index: modifier.index(),
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::CpuidTooLong(1))?;
        if vcpu.get_msrs(&mut msrs).doing("read a vCPU's MSR")? != 1 {
            return Err(Error::Msr(entry.index));
        }
        entry.data = modifier.apply(msrs.as_slice()[0].data);
        write_msrs(vcpu, &[entry])
    })
}

fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), Error> {
    let msrs = Msrs::from_entries(entries).map_err(|_| Error::CpuidTooLong(entries.len()))?;
    let set = vcpu.set_msrs(&msrs).doing("set a vCPU's MSRs")?;
    match entries.get(set) {
        Some(refused) => Err(Error::Msr(refused.index)),
        None => Ok(()),
    }
}

fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    Leaf {
        function: entry.function,
        index: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// A leaf as KVM has it.
pub fn entry(leaf: &Leaf) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf.function,
        index: leaf.index,
        flags: if leaf.indexed {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Default::default()
    }
}

fn general_registers(registers: &Registers) -> kvm_regs {
    kvm_regs {
        rip: registers.rip,
        rsp: registers.rsp,
        rsi: registers.rsi,
        rbx: registers.rbx,
        rflags: registers.rflags,
        ..Default::default()
    }
}

fn system_registers(reset: kvm_sregs, registers: &Registers) -> kvm_sregs {
    kvm_sregs {
        cs: segment(&registers.cs),
        ds: segment(&registers.ds),
        es: segment(&registers.es),
        fs: segment(&registers.fs),
        gs: segment(&registers.gs),
        ss: segment(&registers.ss),
        tr: segment(&registers.tr),
        gdt: table(&registers.gdt),
        idt: table(&registers.idt),
        cr0: registers.cr0,
        cr3: registers.cr3,
        cr4: registers.cr4,
        efer: registers.efer,
        ..reset
    }
}

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.type_,
        present: segment.present.into(),
        dpl: segment.dpl,
        db: segment.db.into(),
        s: segment.s.into(),
        l: segment.l.into(),
        g: segment.g.into(),
        unusable: (!segment.present).into(),
        ..Default::default()
    }
}

fn table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}

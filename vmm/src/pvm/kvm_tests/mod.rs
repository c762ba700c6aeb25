//! Runs each instruction of the fallback in a real vCPU at CPL 0 and checks what it does.
//!
//! On a kvm-pvm host the fallback does the work; on one with VT-x or AMD-V the CPU itself does, and the tests hold all the same.

mod instructions;
mod syscall;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_regs, kvm_userspace_memory_region, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::fallback::cpu::control;
use super::{PvmVcpu, mask_cpuid, prepare_vm};
use crate::vcpu::testing;

const RAM: usize = 8 << 20;
const GDT: u64 = 0x500;
const IDT: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const DIRECTORY: u64 = 0xb000;
const STACK: u64 = 0x7000;
const CODE: u64 = 0x10_0000;
/// Where tests put their operands.
const DATA: u64 = 0x20_0000;
const STUB: u64 = 0x9_d000;
/// A write to this port ends a guest.
const DONE: u8 = 0x80;

/// How a guest ended.
struct Outcome {
    regs: kvm_regs,
    /// The exception that stopped it, or `None` if it got to its end.
    exception: Option<u8>,
    /// Instructions that the fallback completed.
    completed: usize,
}

struct Guest {
    ram: GuestMemoryMmap<()>,
    vcpu: VcpuFd,
    pvm: PvmVcpu,
    _vm: VmFd,
}

impl Guest {
    fn new() -> Self {
        let kvm = Kvm::new().expect("this test needs /dev/kvm; run `make test KVM=none` to leave it out");
        let vm = kvm.create_vm().unwrap();
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the region is mapped by `ram`, which lives as long as the VM: both are fields of `Guest`.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        prepare_vm(&vm).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        mask_cpuid(cpuid.as_mut_slice());
        vcpu.set_cpuid2(&cpuid).unwrap();
        let pvm = PvmVcpu::new(&vm, GuestAddress(STUB)).unwrap();
        let mut guest = Guest {
            ram,
            vcpu,
            pvm,
            _vm: vm,
        };
        guest.write_tables();
        guest.set_system_registers();
        guest
    }

    /// Identity-maps all RAM by 2 MiB pages; a GDT; handlers that write to the port of their vector's number.
    fn write_tables(&mut self) {
        let store = |value: u64, at: u64| self.ram.write_obj(value, GuestAddress(at)).unwrap();
        store(PDPT | 7, PML4);
        store(DIRECTORY | 7, PDPT);
        for page in 0..4 {
            store(page << 21 | 0x87, DIRECTORY + page * 8);
        }
        store(0x00af_9b00_0000_ffff, GDT + 0x10);
        store(0x00cf_9300_0000_ffff, GDT + 0x18);
        store(0x00cf_9100_0000_ffff, GDT + 0x20); // read-only data
        store(0x00cf_f300_0000_ffff, GDT + 0x28); // user data
        store(0x00af_fb00_0000_ffff, GDT + 0x30); // user code
        for vector in 0..32u64 {
            let handler = HANDLERS + vector * 16;
            store(
                handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | handler >> 16 << 48,
                IDT + vector * 16,
            );
            store(0, IDT + vector * 16 + 8);
            self.ram
                .write_slice(&[0xe6, vector as u8, 0xf4], GuestAddress(handler))
                .unwrap();
        }
    }

    fn set_system_registers(&mut self) {
        let reset = self.vcpu.get_sregs().unwrap();
        let mut sregs = testing::flat(reset, (GDT, 0x37), (IDT, 32 * 16 - 1), PML4);
        // PG, WP, NE, MP, PE; PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE; LME, LMA, NXE.
        sregs.cr0 = control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP | 1;
        sregs.cr4 = 1 << 5 | control::CR4_OSFXSR | 1 << 10 | control::CR4_FSGSBASE | control::CR4_OSXSAVE;
        sregs.efer = control::EFER_LMA | 1 << 8 | control::EFER_NXE;
        self.vcpu.set_sregs(&sregs).unwrap();
        // x87, SSE and AVX.
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = 7;
        self.vcpu.set_xcrs(&xcrs).unwrap();
    }

    /// Whether the guest's CPUID says something about its first sub-leaf of `function`.
    fn offers(&self, function: u32, says: impl Fn(&kvm_cpuid_entry2) -> bool) -> bool {
        let cpuid = self.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        cpuid
            .as_slice()
            .iter()
            .any(|leaf| leaf.function == function && leaf.index == 0 && says(leaf))
    }

    fn edit_sregs(&mut self, edit: impl FnOnce(&mut kvm_bindings::kvm_sregs)) {
        let mut sregs = self.vcpu.get_sregs().unwrap();
        edit(&mut sregs);
        self.vcpu.set_sregs(&sregs).unwrap();
    }

    /// Runs `code` until it is through or gets an exception.
    fn run(&mut self, code: &[u8], set: impl FnOnce(&mut kvm_regs)) -> Outcome {
        let whole = [code, &[0xe6, DONE, 0xf4]].concat();
        self.ram.write_slice(&whole, GuestAddress(CODE)).unwrap();
        let mut regs = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 2,
            ..Default::default()
        };
        set(&mut regs);
        self.vcpu.set_regs(&regs).unwrap();
        let mut completed = 0;
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(port, _) => {
                    let exception = (port < 32).then_some(port as u8);
                    return Outcome {
                        regs: self.vcpu.get_regs().unwrap(),
                        exception,
                        completed,
                    };
                }
                VcpuExit::InternalError => {
                    self.pvm.complete_instruction(&mut self.vcpu, &self.ram).unwrap();
                    completed += 1;
                }
                VcpuExit::X86Wrmsr(exit) => {
                    let (index, value) = (exit.index, exit.data);
                    self.pvm
                        .write_msr(&mut self.vcpu, &self.ram, index, value)
                        .unwrap();
                }
                other => panic!("unexpected exit {other:?}"),
            }
        }
    }

    /// Runs `code`, which must get to its end.
    fn finish(&mut self, code: &[u8], set: impl FnOnce(&mut kvm_regs)) -> Outcome {
        let outcome = self.run(code, set);
        let frame = self.frame(&outcome);
        assert_eq!(
            outcome.exception, None,
            "{code:02x?} at {CODE:#x} stopped with {frame:#x?}"
        );
        outcome
    }

    fn store<const N: usize>(&self, bytes: [u8; N], at: u64) {
        self.ram.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// The words that the CPU pushed for an exception, error code first where it has one.
    fn frame(&self, outcome: &Outcome) -> [u64; 6] {
        self.ram.read_obj(GuestAddress(outcome.regs.rsp)).unwrap()
    }
}

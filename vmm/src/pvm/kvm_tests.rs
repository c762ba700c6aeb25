//! Runs each instruction of the fallback in a real vCPU at CPL 0 and checks what it does.
//!
//! On a kvm-pvm host the fallback does the work; on one with VT-x or AMD-V the CPU itself does, and the tests hold all the same.

use std::time::Instant;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::fallback::cpu::control;
use super::*;

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
        let mut vcpu = vm.create_vcpu(0).unwrap();
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        mask_cpuid(cpuid.as_mut_slice());
        vcpu.set_cpuid2(&cpuid).unwrap();
        let pvm = PvmVcpu::new(&vm, &mut vcpu, GuestAddress(STUB)).unwrap();
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
        store(0x00cf_9100_0000_ffff, GDT + 0x20);
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
        let mut sregs = self.vcpu.get_sregs().unwrap();
        let code = kvm_segment {
            limit: u32::MAX,
            selector: 0x10,
            type_: 11,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: 0x18,
            type_: 3,
            l: 0,
            db: 1,
            ..code
        };
        sregs.cs = code;
        (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.gdt = kvm_dtable {
            base: GDT,
            limit: 0x27,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: IDT,
            limit: 32 * 16 - 1,
            ..Default::default()
        };
        sregs.cr3 = PML4;
        // PG, WP, NE, MP, PE; PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE; LME, LMA, NXE.
        sregs.cr0 = control::CR0_PG | control::CR0_WP | control::CR0_NE | control::CR0_MP | 1;
        sregs.cr4 = 1 << 5 | control::CR4_OSFXSR | 1 << 10 | control::CR4_FSGSBASE | control::CR4_OSXSAVE;
        sregs.efer = control::EFER_LMA | 1 << 8 | control::EFER_NXE;
        self.vcpu.set_sregs(&sregs).unwrap();
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
                        regs: self.vcpu.sync_regs().regs,
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
        assert_eq!(
            outcome.exception, None,
            "exception at rip {:#x}",
            outcome.regs.rip
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

#[test]
fn kvm_int3_is_a_trap() {
    let mut guest = Guest::new();
    let outcome = guest.run(&[0x90, 0xcc], |_| {});
    assert_eq!(outcome.exception, Some(3));
    assert_eq!(guest.frame(&outcome)[..2], [CODE + 2, 0x10]);
}

#[test]
fn kvm_ud2_is_a_fault() {
    let mut guest = Guest::new();
    let outcome = guest.run(&[0x90, 0x0f, 0x0b], |_| {});
    assert_eq!(outcome.exception, Some(6));
    assert_eq!(guest.frame(&outcome)[0], CODE + 1);
}

#[test]
fn kvm_clac_and_stac() {
    let mut guest = Guest::new();
    let outcome = guest.finish(&[0x0f, 0x01, 0xcb], |_| {});
    assert_eq!(outcome.regs.rflags, 1 << 18 | 2);
    let outcome = guest.finish(&[0x0f, 0x01, 0xca], |r| r.rflags = 1 << 18 | 1 | 2);
    assert_eq!(outcome.regs.rflags, 3);
}

#[test]
fn kvm_popcnt() {
    let mut guest = Guest::new();
    // popcnt rax, rdi; popcnt cx, [rsi].
    let code = [0xf3, 0x48, 0x0f, 0xb8, 0xc7, 0x66, 0xf3, 0x0f, 0xb8, 0x0e];
    guest.store([0x01, 0x80, 0xff, 0xff], DATA);
    let outcome = guest.finish(&code, |r| {
        (r.rdi, r.rsi, r.rcx) = (0xff00_0000_0000_0f0f, DATA, u64::MAX);
        r.rflags = 0x8d7;
    });
    assert_eq!((outcome.regs.rax, outcome.regs.rcx), (16, 0xffff_ffff_ffff_0002));
    assert_eq!(outcome.regs.rflags, 2);
    let outcome = guest.finish(&[0xf3, 0x0f, 0xb8, 0xc7], |r| {
        (r.rdi, r.rax) = (1 << 32, u64::MAX)
    });
    assert_eq!((outcome.regs.rax, outcome.regs.rflags), (0, 0x42));
}

#[test]
fn kvm_cmpxchg16b() {
    let mut guest = Guest::new();
    // lock cmpxchg16b [rsi]
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    let set = |r: &mut kvm_regs| (r.rsi, r.rax, r.rdx, r.rbx, r.rcx) = (DATA, 1, 2, 3, 4);
    guest.store((1u128 | 2 << 64).to_le_bytes(), DATA);
    let outcome = guest.finish(&code, set);
    assert_eq!(outcome.regs.rflags & 0x40, 0x40);
    assert_eq!(guest.load(DATA), (3u128 | 4 << 64).to_le_bytes());
    let outcome = guest.finish(&code, set);
    assert_eq!(
        (outcome.regs.rflags & 0x40, outcome.regs.rax, outcome.regs.rdx),
        (0, 3, 4)
    );
    let outcome = guest.run(&code, |r| r.rsi = DATA + 8);
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(13), vec![0, CODE])
    );
}

#[test]
fn kvm_a_page_fault_has_its_address_and_code() {
    let mut guest = Guest::new();
    // cmpxchg16b [rsi], beyond the page tables.
    let outcome = guest.run(&[0x48, 0x0f, 0xc7, 0x0e], |r| r.rsi = 0x4000_0000);
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(14), vec![2, CODE])
    );
    assert_eq!(guest.vcpu.get_sregs().unwrap().cr2, 0x4000_0000);
}

#[test]
fn kvm_waits_and_fences() {
    let mut guest = Guest::new();
    // fwait; fninit; fnclex; lfence; mfence; sfence
    let code = [
        0x9b, 0xdb, 0xe3, 0xdb, 0xe2, 0x0f, 0xae, 0xe8, 0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xf8,
    ];
    guest.finish(&code, |_| {});
    guest.edit_sregs(|s| s.cr0 |= control::CR0_TS);
    for code in [&[0x9b][..], &[0xdb, 0xe3]] {
        assert_eq!(guest.run(code, |_| {}).exception, Some(7), "{code:x?}");
    }
}

#[test]
fn kvm_fwait_reports_a_pending_x87_exception() {
    let mut guest = Guest::new();
    let mut xsave = guest.vcpu.get_xsave().unwrap();
    // FCW: division by zero is not masked. FSW: it has happened (ZE, ES, B).
    xsave.region[0] = 0x8084_037b;
    xsave.region[128] |= 1;
    // SAFETY: the guest has no state beyond the 4 KiB of this structure.
    unsafe { guest.vcpu.set_xsave(&xsave).unwrap() };
    assert_eq!(guest.run(&[0x9b], |_| {}).exception, Some(16));
    // fnclex; fwait
    guest.finish(&[0xdb, 0xe2, 0x9b], |_| {});
}

/// Not a check but a figure: what one completed instruction costs. Where the CPU does it all there is nothing to tell.
#[test]
fn kvm_cost_of_a_completed_instruction() {
    const ROUNDS: u64 = 5000;
    let mut guest = Guest::new();
    let cases: [(&str, &[u8]); 6] = [
        ("clac", &[0x0f, 0x01, 0xca]),
        ("popcnt rax, rdi", &[0xf3, 0x48, 0x0f, 0xb8, 0xc7]),
        ("lock cmpxchg16b [rsi]", &[0xf0, 0x48, 0x0f, 0xc7, 0x0e]),
        ("fwait", &[0x9b]),
        ("xsave64 [rsi]", &[0x48, 0x0f, 0xae, 0x26]),
        ("xrstor64 [rsi]", &[0x48, 0x0f, 0xae, 0x2e]),
    ];
    for (name, code) in cases {
        // dec rbp; jnz back to the start
        let back = -(code.len() as i8 + 5);
        let code = [code, &[0x48, 0xff, 0xcd, 0x75, back as u8]].concat();
        let start = Instant::now();
        let outcome = guest.finish(&code, |r| (r.rbp, r.rsi, r.rax) = (ROUNDS, DATA, 7));
        assert_eq!(outcome.regs.rbp, 0);
        assert!(outcome.completed == 0 || outcome.completed == ROUNDS as usize);
        if outcome.completed > 0 {
            println!(
                "{name}: {:.2} µs",
                start.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64
            );
        }
    }
}

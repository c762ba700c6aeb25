//! `syscall` from CPL 3, with and without page table isolation, in a guest laid out like Linux.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use super::super::syscall_gate::FIRST_ADDRESS;
use super::{CODE, DATA, DONE, Guest, HANDLERS, IDT, PML4, STACK};

/// Where the kernel's view of all RAM begins, and its tables.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
const KERNEL_PDPT: u64 = 0x1_0000;
const KERNEL_DIRECTORY: u64 = 0x1_1000;
const FIXMAP_DIRECTORY: u64 = 0x1_2000;
const FIXMAP_TABLE: u64 = 0x1_3000;
const TSS: u64 = 0x1_4000;
/// Where `syscall` goes.
const ENTRY: u64 = 0x1_8000;
/// User code, and a stack that only the user's RSP points to.
const USER: u64 = 0x30_0000;
const USER_STACK: u64 = 0x31_0000;
const USER_CODE_SELECTOR: u64 = 0x33;
const USER_DATA_SELECTOR: u64 = 0x2b;

/// `wrmsr` of ENTRY to LSTAR, then `iretq` to what is on the stack.
const TO_USER: [u8; 4] = [0x0f, 0x30, 0x48, 0xcf];

fn guest() -> Guest {
    let mut guest = Guest::new();
    let store = |value: u64, at: u64| guest.ram.write_obj(value, GuestAddress(at)).unwrap();
    // The top of the address space: all RAM at -2 GiB for the supervisor, and a fixmap.
    store(KERNEL_PDPT | 3, PML4 + 511 * 8);
    store(KERNEL_DIRECTORY | 3, KERNEL_PDPT + 510 * 8);
    (0..4).for_each(|page| store(page << 21 | 0x83, KERNEL_DIRECTORY + page * 8));
    store(FIXMAP_DIRECTORY | 3, KERNEL_PDPT + 511 * 8);
    store(
        FIXMAP_TABLE | 3,
        FIXMAP_DIRECTORY + (FIRST_ADDRESS >> 21 & 511) * 8,
    );
    // Handlers in the kernel's half.
    for vector in 0..32 {
        let handler = KERNEL + HANDLERS + vector * 16;
        store(
            handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48,
            IDT + vector * 16,
        );
        store(handler >> 32, IDT + vector * 16 + 8);
    }
    store(STACK, TSS + 4);
    guest.store([0xe6, DONE, 0xf4], ENTRY);
    guest.edit_sregs(|s| {
        s.efer |= 1;
        s.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: 0x38,
            type_: 11,
            present: 1,
            ..Default::default()
        };
    });
    let msrs = [(0xc000_0081, 0x0023_0010_0000_0000u64), (0xc000_0084, 0x4_7700)];
    let entries = msrs.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    assert_eq!(
        guest
            .vcpu
            .set_msrs(&Msrs::from_entries(&entries).unwrap())
            .unwrap(),
        2
    );
    guest
}

/// Registers for [`TO_USER`], and the frame for its `iretq`.
fn enter_user(guest: &Guest, regs: &mut kvm_regs, rip: u64) {
    let target = KERNEL + ENTRY;
    (regs.rcx, regs.rax, regs.rdx) = (0xc000_0082, target & 0xffff_ffff, target >> 32);
    regs.rsp = STACK - 0x400;
    let frame = [rip, USER_CODE_SELECTOR, 0x202, USER_STACK, USER_DATA_SELECTOR];
    guest.ram.write_obj(frame, GuestAddress(regs.rsp)).unwrap();
}

fn run(guest: &mut Guest, user: &[u8], rip: u64) -> super::Outcome {
    guest.ram.write_slice(user, GuestAddress(USER)).unwrap();
    let mut regs = kvm_regs::default();
    enter_user(guest, &mut regs, rip);
    let (rsp, rcx, rax, rdx) = (regs.rsp, regs.rcx, regs.rax, regs.rdx);
    guest.run(&TO_USER, |r| (r.rsp, r.rcx, r.rax, r.rdx) = (rsp, rcx, rax, rdx))
}

#[test]
fn kvm_syscall_reaches_the_kernel() {
    let mut guest = guest();
    for _ in 0..2 {
        // stc; syscall
        let outcome = run(&mut guest, &[0xf9, 0x0f, 0x05], USER);
        assert_eq!(outcome.exception, None);
        let regs = outcome.regs;
        assert_eq!(
            (regs.rip & !0xf, regs.rcx, regs.rsp),
            (KERNEL + ENTRY, USER + 3, USER_STACK)
        );
        assert_eq!((regs.r11 & 0x201, regs.rflags & 0x4_7700), (0x201, 0));
        let sregs = guest.vcpu.get_sregs().unwrap();
        assert_eq!((sregs.cs.selector, sregs.cs.dpl), (0x10, 0));
        assert_eq!(outcome.completed, 0);
    }
}

#[test]
fn kvm_a_jump_to_the_kernel_is_a_page_fault() {
    let mut guest = guest();
    let outcome = run(&mut guest, &[], KERNEL + ENTRY);
    assert_eq!(outcome.exception, Some(14));
    let frame = guest.frame(&outcome);
    assert_eq!(frame[1..3], [KERNEL + ENTRY, USER_CODE_SELECTOR]);
    assert_eq!((frame[0], frame[3] & 0x200, frame[4]), (0x15, 0x200, USER_STACK));
}

#[test]
fn kvm_other_page_faults_reach_the_guests_handler() {
    let mut guest = guest();
    // mov [0x40000000], al: nothing is there.
    let outcome = run(&mut guest, &[0x88, 0x04, 0x25, 0, 0, 0, 0x40], USER);
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(14), vec![6, USER])
    );
    let outcome = guest.run(&[0x88, 0x04, 0x25, 0, 0, 0, 0x40], |_| {});
    assert_eq!(
        (outcome.exception, guest.frame(&outcome)[..2].to_vec()),
        (Some(14), vec![2, CODE])
    );
}

/// User tables of their own, which have the kernel's entry but no more of its half than that.
#[test]
fn kvm_syscall_with_page_table_isolation() {
    let mut guest = guest();
    let root = 0x2_0000;
    let user_root = root + 0x1000;
    let copy = |from: u64, to: u64| {
        let page: [u8; 4096] = guest.load(from);
        guest.store(page, to);
    };
    copy(PML4, root);
    copy(PML4, user_root);
    copy(KERNEL_PDPT, 0x2_2000);
    copy(FIXMAP_DIRECTORY, 0x2_3000);
    let store = |value: u64, at: u64| guest.ram.write_obj(value, GuestAddress(at)).unwrap();
    store(0x2_2000 | 3, user_root + 511 * 8);
    store(0x2_3000 | 3, 0x2_2000 + 511 * 8);
    store(0x2_4000 | 3, 0x2_3000 + (FIRST_ADDRESS >> 21 & 511) * 8);
    guest.edit_sregs(|s| s.cr3 = root);
    // The kernel changes to the user's tables on its way out: mov cr3, rdi (in the first 2 MiB, which both have).
    guest.store([0; 8], DATA);
    let mut regs = kvm_regs::default();
    enter_user(&guest, &mut regs, USER);
    guest.store([0x0f, 0x05], USER);
    let (rsp, rcx, rax, rdx) = (regs.rsp, regs.rcx, regs.rax, regs.rdx);
    let code = [0x0f, 0x30, 0x0f, 0x22, 0xdf, 0x48, 0xcf];
    let outcome = guest.run(&code, |r| {
        (r.rsp, r.rcx, r.rax, r.rdx) = (rsp, rcx, rax, rdx);
        r.rdi = user_root;
    });
    assert_eq!(
        (outcome.exception, outcome.regs.rip & !0xf),
        (None, KERNEL + ENTRY)
    );
    assert_eq!((outcome.regs.rcx, outcome.regs.rsp), (USER + 2, USER_STACK));
    assert_eq!(guest.vcpu.get_sregs().unwrap().cr3, user_root);
}

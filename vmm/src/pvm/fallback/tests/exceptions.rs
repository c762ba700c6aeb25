//! Exceptions, privilege, and system instructions that user mode cannot run for comparison.

use super::super::cpu::{RAX, RBX, RCX, RDX, rflags};
use super::super::{Error, Unsupported};
use super::*;

const RSI: u8 = 6;

#[test]
fn int3_is_a_trap_behind_itself() {
    let mut guest = Guest::new();
    guest.run(&[0xcc]).unwrap();
    assert_eq!(
        (guest.cpu.raised, guest.cpu.rip),
        (Some(Exception::Breakpoint), CODE + 1)
    );
}

#[test]
fn undefined_instructions_are_faults() {
    let mut guest = Guest::new();
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0xb9, 0xc0], &[0x0f, 0xff, 0xc0]] {
        assert_eq!(guest.fault(code), Exception::InvalidOpcode);
    }
}

#[test]
fn unknown_instructions_are_errors_with_address_and_bytes() {
    let mut guest = Guest::new();
    // aesenc xmm0, xmm1; vzeroupper; and an encoding that means nothing.
    for code in [
        &[0x66, 0x0f, 0x38, 0xdc, 0xc1][..],
        &[0xc5, 0xf8, 0x77],
        &[0x0f, 0x04],
    ] {
        let error = guest.run(code).unwrap_err();
        let Error::UnknownInstruction { rip: CODE, bytes } = error else {
            panic!("{error}")
        };
        assert!(bytes.as_slice().starts_with(code) || code.starts_with(bytes.as_slice()));
        assert_eq!((guest.cpu.rip, guest.cpu.raised), (CODE, None));
    }
    let text = guest
        .run(&[0x66, 0x0f, 0x38, 0xdc, 0xc1])
        .unwrap_err()
        .to_string();
    assert!(text.contains("66 0f 38 dc c1 at 0x10000"), "{text}");
}

#[test]
fn what_the_hypervisor_saw_counts_more_than_memory() {
    let mut guest = Guest::new();
    guest.store(CODE, &[0x90; 15]);
    complete(&mut guest.cpu, &guest.ram, &[0xcc], &mut guest.scratch).unwrap();
    assert_eq!(guest.cpu.raised, Some(Exception::Breakpoint));
    // The beginning of a popcnt; the rest comes from memory.
    guest.cpu.rip = CODE;
    guest.cpu.raised = None;
    guest.store(CODE, &[0x90, 0x48, 0x0f, 0xb8, 0xc7]);
    complete(&mut guest.cpu, &guest.ram, &[0xf3], &mut guest.scratch).unwrap();
    assert_eq!((guest.cpu.raised, guest.cpu.rip), (None, CODE + 5));
}

#[test]
fn an_instruction_across_pages_faults_in_the_second() {
    let mut guest = Guest::new();
    let end = CODE + 4096;
    guest.store(end - 2, &[0xf3, 0x48]);
    guest.set_entry(end, 0);
    guest.cpu.rip = end - 2;
    complete(&mut guest.cpu, &guest.ram, &[], &mut guest.scratch).unwrap();
    assert_eq!(
        guest.cpu.raised,
        Some(Exception::PageFault {
            address: end,
            code: 1 << 4
        })
    );
}

#[test]
fn completion_clears_the_resume_flag() {
    let mut guest = Guest::new();
    guest.cpu.rflags |= rflags::RF;
    guest.finish(&[0x0f, 0x01, 0xcb]);
    assert_eq!(guest.cpu.rflags, 2 | rflags::AC);
    guest.finish(&[0x0f, 0x01, 0xca]);
    assert_eq!(guest.cpu.rflags, 2);
}

#[test]
fn user_mode_gets_the_exceptions_that_privilege_demands() {
    let mut guest = Guest::new();
    guest.cpu.mode.cpl = 3;
    guest.set_entry(CODE, CODE | 7);
    guest.set_entry(DATA, DATA | 7);
    guest.cpu.set_gpr(RSI, DATA);
    let cases: [(&[u8], Exception); 5] = [
        (&[0x0f, 0x01, 0xca], Exception::InvalidOpcode), // clac
        (&[0x0f, 0x01, 0xcb], Exception::InvalidOpcode), // stac
        (&[0x66, 0x0f, 0x38, 0x82, 0x06], Exception::GeneralProtection), // invpcid rax, [rsi]
        (&[0x48, 0x0f, 0xc7, 0x2e], Exception::GeneralProtection), // xsaves64 [rsi]
        (&[0x48, 0x0f, 0xc7, 0x1e], Exception::GeneralProtection), // xrstors64 [rsi]
    ];
    for (code, exception) in cases {
        assert_eq!(guest.fault(code), exception, "{code:02x?}");
    }
    guest.finish(&[0x0f, 0x01, 0xf9]);
    guest.cpu.mode.cr4 |= control::CR4_TSD;
    assert_eq!(guest.fault(&[0x0f, 0x01, 0xf9]), Exception::GeneralProtection);
}

#[test]
fn rdtscp_fills_three_registers() {
    let mut guest = Guest::new();
    guest.cpu.gprs = [u64::MAX; 16];
    guest.finish(&[0x0f, 0x01, 0xf9]);
    assert_eq!([RAX, RDX, RCX].map(|r| guest.cpu.gpr(r)), [0x2345_6789, 1, 7]);
}

#[test]
fn segment_bases_are_read_and_written() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RAX, 0xffff_8000_0000_0001);
    guest.finish(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]); // wrfsbase rax
    guest.finish(&[0xf3, 0x0f, 0xae, 0xd8]); // wrgsbase eax
    assert_eq!(guest.cpu.bases, [0xffff_8000_0000_0001, 1]);
    guest.cpu.set_gpr(RBX, u64::MAX);
    guest.finish(&[0xf3, 0x0f, 0xae, 0xc3]); // rdfsbase ebx
    assert_eq!(guest.cpu.gpr(RBX), 1);
    guest.finish(&[0xf3, 0x48, 0x0f, 0xae, 0xc3]); // rdfsbase rbx
    assert_eq!(guest.cpu.gpr(RBX), 0xffff_8000_0000_0001);
    guest.cpu.set_gpr(RAX, 1 << 47);
    assert_eq!(
        guest.fault(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
        Exception::GeneralProtection
    );
    guest.cpu.mode.cr4 = 0;
    assert_eq!(
        guest.fault(&[0xf3, 0x48, 0x0f, 0xae, 0xc3]),
        Exception::InvalidOpcode
    );
}

#[test]
fn invpcid_checks_its_operands() {
    const INVPCID: [u8; 5] = [0x66, 0x0f, 0x38, 0x82, 0x06]; // rax, [rsi]
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RSI, DATA);
    for kind in 0..4 {
        guest.cpu.set_gpr(RAX, kind);
        guest.finish(&INVPCID);
    }
    assert_eq!(guest.cpu.flushes, 4);
    let bad: [(u64, u64, u64); 4] = [(4, 0, 0), (0, 1 << 12, 0), (0, 0, 1 << 47), (1, 5, 0)];
    for (kind, pcid, address) in bad {
        guest.cpu.set_gpr(RAX, kind);
        guest.store(DATA, &[pcid.to_le_bytes(), address.to_le_bytes()].concat());
        assert_eq!(
            guest.fault(&INVPCID),
            Exception::GeneralProtection,
            "{kind} {pcid:x} {address:x}"
        );
    }
    guest.cpu.mode.cr4 |= control::CR4_PCIDE;
    guest.finish(&INVPCID);
    assert_eq!(guest.cpu.flushes, 5);
}

#[test]
fn verw_and_verr_look_at_the_descriptor() {
    let mut guest = Guest::new();
    let code_or_data = |kind: u64, dpl: u64| (kind << 40) | (dpl << 45) | (1 << 44) | (1 << 47);
    let descriptors = [
        0,
        code_or_data(2, 0),      // 0x08: writable data
        code_or_data(0, 0),      // 0x10: read-only data
        code_or_data(0xa, 0),    // 0x18: readable code
        code_or_data(0x8, 0),    // 0x20: execute-only code
        code_or_data(0xe, 0),    // 0x28: readable, conforming code
        (0xb << 40) | (1 << 47), // 0x30: a system segment
    ];
    guest.store(DATA, &descriptors.map(u64::to_le_bytes).concat());
    guest.cpu.gdt = DescriptorTable {
        base: DATA,
        limit: 7 * 8 - 1,
    };
    let mut verify = |write: bool, selector: u64| {
        guest.cpu.set_gpr(RAX, selector | 0xabcd_0000);
        guest.cpu.rflags = 2 | rflags::CF;
        guest.finish(&[0x0f, 0x00, if write { 0xe8 } else { 0xe0 }]);
        assert_eq!(guest.cpu.rflags & !rflags::ZF, 2 | rflags::CF);
        guest.cpu.rflags & rflags::ZF != 0
    };
    let writable: Vec<u64> = (0..9).map(|n| n * 8).filter(|s| verify(true, *s)).collect();
    let readable: Vec<u64> = (0..9).map(|n| n * 8).filter(|s| verify(false, *s)).collect();
    assert_eq!((writable, readable), (vec![0x08], vec![0x08, 0x10, 0x18, 0x28]));
    // Privilege: RPL 3 is too weak for DPL 0, except for conforming code. There is no LDT.
    assert!(!verify(true, 0x0b) && !verify(false, 0x1b) && verify(false, 0x2b) && !verify(true, 0x0c));
}

#[test]
fn x87_control_instructions() {
    let mut guest = Guest::new();
    let set_status = |guest: &mut Guest, fsw: u16| {
        guest.cpu.xsave.set_fsw(fsw);
        guest.cpu.xsave.mark_in_use(0);
    };
    set_status(&mut guest, 0xb8ff);
    assert_eq!(guest.fault(&[0x9b]), Exception::FloatingPoint);
    guest.finish(&[0xdb, 0xe2]);
    assert_eq!(guest.cpu.xsave.fsw(), 0x3800);
    guest.finish(&[0x9b]);
    guest.cpu.xsave.bytes_mut()[32] = 0x5a;
    guest.finish(&[0xdb, 0xe3]);
    assert_eq!(guest.cpu.xsave.bytes()[..8], [0x7f, 0x03, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        (guest.cpu.xsave.bytes()[32], guest.cpu.xsave.xstate_bv()),
        (0x5a, 1)
    );
    guest.cpu.mode.cr0 |= control::CR0_TS;
    for code in [&[0x9b][..], &[0xdb, 0xe2], &[0xdb, 0xe3], &[0x0f, 0xae, 0x16]] {
        assert_eq!(guest.fault(code), Exception::DeviceNotAvailable, "{code:02x?}");
    }
    // Without MP, fwait does not care about TS.
    guest.cpu.mode.cr0 &= !control::CR0_MP;
    guest.finish(&[0x9b]);
    guest.cpu.mode.cr0 = control::CR0_PG | control::CR0_EM;
    assert_eq!(guest.fault(&[0x0f, 0xae, 0x16]), Exception::InvalidOpcode);
    assert_eq!(guest.fault(&[0xdb, 0xe3]), Exception::DeviceNotAvailable);
}

#[test]
fn reserved_mxcsr_bits_are_a_protection_fault() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RSI, DATA);
    guest.store(DATA, &0x1_1f80u32.to_le_bytes());
    assert_eq!(guest.fault(&[0x0f, 0xae, 0x16]), Exception::GeneralProtection);
    assert_eq!(guest.cpu.xsave.mxcsr(), 0x1f80);
}

#[test]
fn pkru_is_read_and_written() {
    let mut guest = Guest::new();
    if guest.cpu.xsave.component(9).is_none() {
        let error = guest.run(&[0x0f, 0x01, 0xee]).unwrap_err();
        assert!(matches!(
            error,
            Error::Unsupported {
                reason: Unsupported::StateComponent(9),
                ..
            }
        ));
        return;
    }
    guest.cpu.set_gpr(RAX, 0x5555_5554);
    guest.finish(&[0x0f, 0x01, 0xef]);
    guest.cpu.set_gpr(RDX, 9);
    guest.finish(&[0x0f, 0x01, 0xee]);
    assert_eq!((guest.cpu.gpr(RAX), guest.cpu.gpr(RDX)), (0x5555_5554, 0));
    assert_eq!(guest.cpu.xsave.xstate_bv(), 1 << 9);
    guest.cpu.set_gpr(RCX, 1);
    assert_eq!(guest.fault(&[0x0f, 0x01, 0xef]), Exception::GeneralProtection);
    guest.cpu.mode.cr4 = 0;
    assert_eq!(guest.fault(&[0x0f, 0x01, 0xee]), Exception::InvalidOpcode);
}

#[test]
fn other_modes_are_refused() {
    let mut guest = Guest::new();
    guest.cpu.mode.code64 = false;
    let error = guest.run(&[0xcc]).unwrap_err();
    assert!(matches!(
        error,
        Error::Unsupported {
            reason: Unsupported::Mode,
            ..
        }
    ));
    guest.cpu.mode.code64 = true;
    guest.cpu.mode.cr4 |= control::CR4_LA57;
    let error = guest.run(&[0xcc]).unwrap_err();
    assert!(matches!(
        error,
        Error::Unsupported {
            reason: Unsupported::FiveLevelPaging,
            ..
        }
    ));
}

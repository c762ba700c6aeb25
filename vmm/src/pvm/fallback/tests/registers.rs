//! Effective addresses and register operands.

use super::super::cpu::{RAX, RBX};
use super::*;

const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const R12: u8 = 12;

/// Runs `popcnt eax, <operand>` and tells whether it read the one word at `DATA` that is not zero.
fn reads_data(guest: &mut Guest, code: &[u8]) -> bool {
    guest.store(DATA, &u32::MAX.to_le_bytes());
    guest.finish(code);
    guest.cpu.gpr(RAX) == 32
}

#[test]
fn every_form_of_address() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RSI, DATA);
    assert!(reads_data(&mut guest, &[0xf3, 0x0f, 0xb8, 0x06])); // [rsi]
    guest.cpu.set_gpr(RSI, DATA + 8);
    assert!(reads_data(&mut guest, &[0xf3, 0x0f, 0xb8, 0x46, 0xf8])); // [rsi-8]
    guest.cpu.set_gpr(RSI, DATA - 0x1000);
    assert!(reads_data(&mut guest, &[0xf3, 0x0f, 0xb8, 0x86, 0, 0x10, 0, 0])); // [rsi+0x1000]
    guest.cpu.set_gpr(RBX, 0x100);
    guest.cpu.set_gpr(R12, DATA - 0x800 - 4);
    assert!(reads_data(&mut guest, &[0xf3, 0x41, 0x0f, 0xb8, 0x44, 0xdc, 4])); // [r12+rbx*8+4]
    assert!(reads_data(
        &mut guest,
        &[0xf3, 0x0f, 0xb8, 0x04, 0x25, 0, 0, 2, 0]
    )); // [0x20000]
    let relative = ((DATA - CODE - 8) as u32).to_le_bytes();
    assert!(reads_data(
        &mut guest,
        &[&[0xf3, 0x0f, 0xb8, 0x05], &relative[..]].concat()
    )); // [rip+...]
    guest.cpu.bases = [DATA - 0x10, DATA - 0x20];
    guest.cpu.set_gpr(RSI, 0x10);
    assert!(reads_data(&mut guest, &[0x64, 0xf3, 0x0f, 0xb8, 0x06])); // fs:[rsi]
    guest.cpu.set_gpr(RSI, 0x20);
    assert!(reads_data(&mut guest, &[0x65, 0xf3, 0x0f, 0xb8, 0x06])); // gs:[rsi]
}

#[test]
fn address_size_32_wraps_before_the_segment_base_is_added() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RSI, 0xdead_beef_ffff_fff0);
    guest.cpu.bases[1] = DATA;
    assert!(reads_data(
        &mut guest,
        &[0x65, 0x67, 0xf3, 0x0f, 0xb8, 0x46, 0x10]
    )); // gs:[esi+0x10]
    // An absolute address of 32 bits is zero-extended here, and sign-extended with address size 64.
    guest.cpu.bases[1] = DATA.wrapping_sub(0xffff_fff0);
    assert!(reads_data(
        &mut guest,
        &[0x65, 0x67, 0xf3, 0x0f, 0xb8, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff]
    ));
    guest.cpu.bases[1] = DATA + 0x10;
    assert!(reads_data(
        &mut guest,
        &[0x65, 0xf3, 0x0f, 0xb8, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff]
    ));
}

#[test]
fn operands_have_their_size() {
    let mut guest = Guest::new();
    guest.cpu.set_gpr(RBX, u64::MAX);
    for (code, expected) in [
        (&[0xf3, 0x48, 0x0f, 0xb8, 0xc3][..], 64), // popcnt rax, rbx
        (&[0xf3, 0x0f, 0xb8, 0xc3], 32),           // popcnt eax, ebx
        (&[0x66, 0xf3, 0x0f, 0xb8, 0xc3], 0xffff_ffff_ffff_0010), // popcnt ax, bx
    ] {
        guest.cpu.set_gpr(RAX, u64::MAX);
        guest.finish(code);
        assert_eq!(guest.cpu.gpr(RAX), expected);
    }
}

#[test]
fn non_canonical_addresses_fault_by_segment() {
    let mut guest = Guest::new();
    for (register, modrm, exception) in [
        (RSI, &[0x06][..], Exception::GeneralProtection),
        (RBP, &[0x45, 0], Exception::StackFault),
        (RSP, &[0x04, 0x24], Exception::StackFault),
    ] {
        let code = [&[0xf3, 0x48, 0x0f, 0xb8], modrm].concat();
        // The second starts in the canonical half and ends beyond it.
        for address in [1 << 63, (1 << 47) - 4] {
            guest.cpu.set_gpr(register, address);
            assert_eq!(guest.fault(&code), exception, "{address:#x}");
        }
    }
}

//! What the tests that run a few instructions in a vCPU share.

use kvm_bindings::{kvm_dtable, kvm_segment, kvm_sregs};

/// System registers with flat segments, 64-bit code at selector 0x10 and data at 0x18, with tables that end at these limits,
/// and with this root of page tables. The control registers stay as they are.
pub fn flat(sregs: kvm_sregs, gdt: (u64, u16), idt: (u64, u16), cr3: u64) -> kvm_sregs {
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
    let table = |(base, limit)| kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    kvm_sregs {
        cs: code,
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        gdt: table(gdt),
        idt: table(idt),
        cr3,
        ..sregs
    }
}

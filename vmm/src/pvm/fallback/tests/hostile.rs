//! Hostile guests: random instructions, registers and page tables. Nothing may panic, hang, or be done to memory that the page
//! tables do not map.

use proptest::prelude::*;

use super::*;

/// Instruction bytes: prefixes, then an opcode that the fallback knows or any other, then anything.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![0x66u8, 0xf2, 0xf3, 0xf0, 0x64, 0x65, 0x67, 0x48, 0x4d, 0x2e]);
    let known = prop::sample::select(vec![
        vec![0xcc],
        vec![0x9b],
        vec![0xdb],
        vec![0x0f, 0x01],
        vec![0x0f, 0x00],
        vec![0x0f, 0xae],
        vec![0x0f, 0xb8],
        vec![0x0f, 0xc7],
        vec![0x0f, 0x38, 0x82],
        vec![0x0f],
        vec![],
    ]);
    (
        prop::collection::vec(prefix, 0..5),
        known,
        prop::collection::vec(any::<u8>(), 0..12),
    )
        .prop_map(|(prefixes, opcode, rest)| [prefixes, opcode, rest].concat())
}

/// Addresses and numbers that are likely to matter.
fn value() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![0, CODE, DATA, LARGE, HUGE, 1 << 47, 1 << 63, u64::MAX, RAM]);
    prop_oneof![
        (near, -70i64..70).prop_map(|(base, by)| base.wrapping_add_signed(by)),
        any::<u64>()
    ]
}

/// A page table entry: often one that leads somewhere in or near RAM.
fn table_entry() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        Just(7u64),
        Just(0x87),
        0u64..0x1000,
        any::<u64>().prop_map(|v| v & NOT_ADDRESS)
    ];
    let page = prop_oneof![0u64..RAM + 0x3000, any::<u64>()];
    (page, flags).prop_map(|(page, flags)| (page & entry::ADDRESS) | flags)
}

const NOT_ADDRESS: u64 = !entry::ADDRESS;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_instruction_with_any_registers(
        code in code(), gprs in prop::array::uniform16(value()), flags in any::<u64>(), cpl in prop::sample::select(vec![0u8, 3]),
        cr0 in any::<u64>(), cr4 in any::<u64>(), bases in prop::array::uniform2(value()), operand in prop::array::uniform32(any::<u8>()),
        xstate in prop::array::uniform3(value()),
    ) {
        let mut guest = Guest::new();
        guest.cpu.gprs = gprs;
        guest.cpu.rflags = flags;
        guest.cpu.bases = bases;
        guest.cpu.mode.cr0 = cr0 | control::CR0_PG;
        guest.cpu.mode.cr4 = cr4 & !control::CR4_LA57;
        guest.cpu.mode.cpl = cpl;
        guest.cpu.gdt = DescriptorTable { base: bases[0], limit: u32::MAX };
        guest.store(DATA, &operand);
        guest.store(DATA + 512, &xstate.map(u64::to_le_bytes).concat());
        let before = guest.cpu.rip;
        if guest.run(&code).is_err() || guest.cpu.raised.is_some_and(|e| e != Exception::Breakpoint) {
            prop_assert_eq!(guest.cpu.rip, before);
        } else {
            prop_assert!(guest.cpu.rip > before && guest.cpu.rip <= before + 15);
        }
    }

    #[test]
    fn any_page_tables(
        tables in prop::collection::vec((0u64..5 * 512, table_entry()), 1..200), cr3 in table_entry(),
        keep_root: bool, rip in value(), rsi in value(), code in code(), efer in any::<u64>(),
    ) {
        let mut guest = Guest::new();
        for (index, value) in tables {
            guest.store(PML4 + index * 8, &value.to_le_bytes());
        }
        if !keep_root {
            guest.cpu.mode.cr3 = cr3;
        }
        guest.cpu.mode.efer = efer | control::EFER_LMA;
        guest.cpu.gprs = [rsi; 16];
        guest.cpu.rip = rip;
        // Whatever comes of it; that it comes, and to registers and RAM only, is the point.
        let _ = complete(&mut guest.cpu, &guest.ram, &code, &mut guest.scratch);
        let _ = complete(&mut guest.cpu, &guest.ram, &[], &mut guest.scratch);
    }

    /// Pages that are read-only for the instruction stay as they were.
    #[test]
    fn read_only_memory_is_not_written(code in code(), gprs in prop::array::uniform16(value())) {
        let mut guest = Guest::new();
        for page in (0..512).filter(|page| page << 12 != CODE) {
            guest.set_entry(page << 12, page << 12 | entry::PRESENT | entry::ACCESSED);
        }
        guest.store(DIRECTORY + 8, &[0; 8]);
        guest.store(PDPT + 8, &[0; 8]);
        guest.store(DATA, &[0x5a; 4096]);
        guest.cpu.gprs = gprs;
        let _ = guest.run(&code);
        prop_assert!(guest.load::<4096>(DATA) == [0x5a; 4096]);
    }
}

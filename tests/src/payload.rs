//! Guests of a page: programs in machine code, and the ELF files that posada boots them from.
//!
//! A payload is entered as a Linux kernel would be (64-bit boot protocol, or PVH in 32-bit mode), reports by
//! single characters on the first serial port and switches the machine off through ACPI's sleep register.

/// Where a payload is loaded and entered: 1 MiB, the first address above the BIOS area.
pub const LOAD_ADDRESS: u64 = 0x10_0000;

/// Defines a function that returns the machine code of an assembler program.
///
/// `.macro`s at hand: `say 'c'` prints a character, `power_off` ends the guest.
#[macro_export]
macro_rules! payload {
    ($(#[$doc:meta])* $name:ident, $($line:expr),+ $(,)?) => {
        core::arch::global_asm!(
            ".pushsection .rodata.payload, \"a\"",
            ".macro say character",
            "mov dx, 0x3f8",
            "mov al, \\character",
            "out dx, al",
            ".endm",
            ".macro power_off",
            "mov dx, 0x600",
            "mov al, 0x34",
            "out dx, al",
            ".endm",
            concat!("posada_payload_", stringify!($name), "_start:"),
            $($line,)+
            concat!("posada_payload_", stringify!($name), "_end:"),
            ".purgem say",
            ".purgem power_off",
            ".popsection",
        );

        $(#[$doc])*
        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("posada_payload_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("posada_payload_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both symbols are defined above, in this order and in one section, with nothing but the
            // program's bytes between them; read-only data lives as long as the process.
            unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
        }
    };
}

payload! {
    /// Says hello and switches off.
    hello,
    "say 'h'", "say 'i'", "say 10",
    "power_off",
}

payload! {
    /// Says so, and keeps its CPU busy from then on.
    spins,
    "say 's'", "say 10",
    "2:", "jmp 2b",
}

payload! {
    /// Prints lines without end.
    chatter,
    "2:", "say 'x'", "say 10",
    "jmp 2b",
}

/// An ELF executable for x86-64 that holds `code` at [`LOAD_ADDRESS`] and is entered at its first byte, by PVH
/// if `pvh`, else by the 64-bit boot protocol.
pub fn elf(code: &[u8], pvh: bool) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let headers = if pvh { 2 } else { 1 };
    let note_at = HEADER + headers * PROGRAM_HEADER;
    let note = pvh_note();
    let code_at = note_at + if pvh { note.len() as u64 } else { 0 };

    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let (executable, x86_64, version) = (2u16, 62u16, 1u32);
    file.extend(executable.to_le_bytes());
    file.extend(x86_64.to_le_bytes());
    file.extend(version.to_le_bytes());
    for word in [LOAD_ADDRESS, HEADER, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM_HEADER as u16, headers as u16, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let (load, note_type) = (1, 4);
    file.extend(program_header(load, code_at, LOAD_ADDRESS, code.len() as u64));
    if pvh {
        file.extend(program_header(note_type, note_at, 0, note.len() as u64));
        file.extend(&note);
    }
    file.extend(code);
    file
}

/// A bzImage that holds `code` at its 64-bit entry point and takes itself for unpacked (Linux,
/// Documentation/arch/x86/boot.rst, whose names the fields have).
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    const SETUP: usize = 1024;
    const ENTRY_64: usize = 0x200;
    let mut file = vec![0; SETUP + ENTRY_64];
    file.extend(code);
    let kernel = (file.len() - SETUP) as u32;
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let (setup_sects, load_high, kernel_64) = (1u8, 1u8, 1u16);
    put(0x1f1, &[setup_sects]);
    put(0x1f4, &kernel.div_ceil(16).to_le_bytes()); // syssize
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes()); // version
    put(0x211, &[load_high]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x236, &kernel_64.to_le_bytes()); // xloadflags
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &LOAD_ADDRESS.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000u32.to_le_bytes()); // init_size
    file
}

fn program_header(kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let all_permissions = 7u32;
    let mut header = [kind.to_le_bytes(), all_permissions.to_le_bytes()].concat();
    for word in [offset, address, address, size, size, 4] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// XEN_ELFNOTE_PHYS32_ENTRY, 18, with a 4-byte address (Xen's public/elfnote.h).
fn pvh_note() -> Vec<u8> {
    let mut note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend(b"Xen\0");
    note.extend((LOAD_ADDRESS as u32).to_le_bytes());
    note
}

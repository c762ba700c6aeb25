//! The guests that are measured: programs of a page, entered at [`posada_tests::payload::LOAD_ADDRESS`].

use posada_tests::payload;

/// The port that is written to in [`port_exits`], and on which a device answers that does nothing.
pub const PORT: u16 = 0x10;
/// The address that is written to in [`memory_exits`], likewise.
pub const ADDRESS: u64 = 0xd000_0000;
/// How often either is written to.
pub const EXITS: u32 = 20_000;
/// What [`touch`] touches: from 16 MiB on, all that lies below.
pub const TOUCHED_FROM: u64 = 16 << 20;
/// See [`TOUCHED_FROM`].
pub const TOUCHED_TO: u64 = 112 << 20;

payload! {
    /// Leaves the guest 20,000 times by a write to port 0x10, then switches off.
    port_exits,
    "mov ecx, 20000",
    "2: out 0x10, al",
    "dec ecx",
    "jnz 2b",
    "power_off",
}

payload! {
    /// Leaves the guest 20,000 times by a write to memory where there is none, then switches off.
    memory_exits,
    "mov ecx, 20000",
    "mov ebx, 0xd0000000",
    "2: mov [rbx], eax",
    "dec ecx",
    "jnz 2b",
    "power_off",
}

payload! {
    /// Writes to each page from 16 MiB to 112 MiB, says so, does it again, says so and switches off.
    touch,
    "say 's'",
    "mov ebp, 2",
    "1: mov ebx, 0x1000000",
    "2: mov [rbx], eax",
    "add ebx, 0x1000",
    "cmp ebx, 0x7000000",
    "jb 2b",
    "say 't'",
    "dec ebp",
    "jnz 1b",
    "power_off",
}

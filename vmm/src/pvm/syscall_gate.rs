//! Repairs `syscall` on kvm-pvm from inside the guest, so that system calls cost no exit.
//!
//! # The defect
//! `syscall` at CPL 3 loads RIP from LSTAR, fills RCX and R11 and masks RFLAGS, but stays at CPL 3. The fetch at LSTAR, a
//! supervisor page, then faults; and that #PF is delivered as it should be: at CPL 0, through the guest's IDT.
//!
//! # The repair
//! When the guest writes LSTAR, gate 14 of its IDT is redirected to a stub of ours. The stub sends on to LSTAR what is a
//! `syscall` in disguise, with the user's stack pointer back in RSP, and all else to the guest's own handler. A disguised
//! `syscall` is a fault with error code 15h (a fetch at CPL 3 from a present page) at RIP = LSTAR with IF and IOPL clear in the
//! saved flags. The flags matter: `syscall` clears what IA32_FMASK names, and Linux names both; a user program that jumps to LSTAR
//! with flags and registers of its own has IF set, which it cannot clear without IOPL 3, and with IOPL 3 it has IOPL set.
//!
//! # Where things go
//! - The stub lies in a page of RAM that the guest's memory map reserves, in a slot of 64 bytes for each pair of LSTAR and
//!   handler seen so far: kexec brings new ones.
//! - It is mapped read-only for the supervisor by one entry of a page table that the guest has: in Linux, of the fixmap, whose
//!   top 511 pages below FFFFFFFFFF7FF000h no one uses beside the vsyscall page (arch/x86/include/asm/fixmap.h). That table is
//!   shared by all of its address spaces. Where the first choice is taken, 31 others in the same table are tried.
//! - With page table isolation the user's tables differ from the kernel's and lie in the page behind the root
//!   (arch/x86/include/asm/pgtable.h, PTI_PGTABLE_SWITCH_BIT). If the IDT shows in them at the same place, the stub is mapped there too.
//!
//! # Limits
//! A guest that rewrites gate 14 after its last write to LSTAR loses the repair (Linux has its final gate before). The guest's
//! kernel must lie in the top 2 GiB of the address space, which Linux does with and without KASLR.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::fallback::compare_exchange_16;
use super::fallback::cpu::{DescriptorTable, Mode, control};
use super::fallback::paging::{Access, LinearMemory, entry};

/// Where the stub's page is mapped by preference; the others follow downwards.
pub const FIRST_ADDRESS: u64 = 0xffff_ffff_ff7f_0000;
/// Number of places to try.
const PLACES: u64 = 32;
const PAGE: u64 = 4096;
/// Bytes of one stub's slot.
const SLOT: usize = 64;
/// Page fault vector.
const VECTOR: u64 = 14;
/// Bytes of a 64-bit gate.
const GATE: u64 = 16;

/// Why `syscall` could not be repaired.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GateError {
    /// No IDT, or too short.
    #[error(
        "the guest has no interrupt descriptor table with a page fault gate in RAM when it sets MSR LSTAR"
    )]
    NoIdt,
    /// Gate 14 is something else than a 64-bit interrupt gate.
    #[error("the guest's page fault gate is no present 64-bit interrupt gate when it sets MSR LSTAR")]
    NotAnInterruptGate,
    /// LSTAR or the page fault handler is too far from the stub for a jump.
    #[error(
        "the guest kernel's entry at {0:#x} is not in the top 2 GiB of its address space, where Linux has it"
    )]
    OutOfReach(u64),
    /// No page table for the stub's address.
    #[error("the guest has no page table for {address:#x}, where Linux has its fixmap{hint}")]
    NoTable {
        /// Where the stub was to go.
        address: u64,
        /// What can be done about it.
        hint: &'static str,
    },
    /// Every place for the stub's mapping is in use.
    #[error(
        "the guest uses all of the {PLACES} pages below {FIRST_ADDRESS:#x} that Linux leaves free in its fixmap"
    )]
    NoPlace,
    /// The stub page is not RAM.
    #[error("guest-physical page {0:#x}, reserved for the system call stub, is not RAM")]
    NoStubPage(u64),
    /// The stub page is full.
    #[error("the guest has set MSR LSTAR to more than {} different values; restart the guest", PAGE as usize / SLOT)]
    Full,
    /// The gate kept changing.
    #[error("the guest changes its page fault gate while it sets MSR LSTAR")]
    Busy,
}

/// Two vCPUs may set LSTAR at the same time; a process has one guest.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Redirects the guest's page fault gate for `lstar`. Does nothing if that has been done, by whichever vCPU.
///
/// `mode` and `idt` are those of the vCPU that sets LSTAR. `stub_page` is the guest-physical address of a page of RAM that the
/// guest leaves alone.
///
/// # Errors
/// The guest is not laid out as expected; nothing that it uses has been changed.
pub fn install<M: GuestMemoryBackend>(
    ram: &M,
    mode: Mode,
    idt: DescriptorTable,
    stub_page: GuestAddress,
    lstar: u64,
) -> Result<(), GateError> {
    let _turn = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if u64::from(idt.limit) < (VECTOR + 1) * GATE - 1 {
        return Err(GateError::NoIdt);
    }
    let gate_address = idt.base.wrapping_add(VECTOR * GATE);
    let memory = LinearMemory::system(ram, mode);
    let gate_at = memory
        .translate(gate_address, Access::Read)
        .map_err(|_| GateError::NoIdt)?;
    for _ in 0..16 {
        let gate = Gate::load(ram, gate_at)?;
        let place = find_place(ram, mode, stub_page)?;
        // A gate that has been redirected already leads to a stub that knows the guest's own handler.
        let stub = stub_at(ram, stub_page, place.address, gate.offset());
        let handler = stub.map_or(gate.offset(), |stub| stub.handler);
        let stub = Stub { lstar, handler };
        let target = write_stub(ram, stub_page, place.address, stub)?;
        map(ram, mode, gate_address, place, stub_page)?;
        if gate.offset() == target || gate.redirect(ram, gate_at, target)? {
            return Ok(());
        }
    }
    Err(GateError::Busy)
}

/// A 64-bit interrupt gate (Intel SDM Vol 3A §6.14.1, figure 6-8).
#[derive(Clone, Copy)]
struct Gate(u128);

impl Gate {
    fn load<M: GuestMemoryBackend>(ram: &M, at: GuestAddress) -> Result<Self, GateError> {
        let mut bytes = [0; GATE as usize];
        ram.read_slice(&mut bytes, at).map_err(|_| GateError::NoIdt)?;
        let gate = Gate(u128::from_le_bytes(bytes));
        // Bit 47 is P, bits 44 to 40 are the type: 01110b is an interrupt gate. A trap gate would leave IF set.
        let attributes = (gate.0 >> 40) as u8;
        if attributes & 0x9f != 0x8e {
            Err(GateError::NotAnInterruptGate)
        } else {
            Ok(gate)
        }
    }

    /// Where it leads.
    fn offset(self) -> u64 {
        let low = self.0 as u64;
        let high = (self.0 >> 64) as u64;
        (low & 0xffff) | (low >> 32 & 0xffff_0000) | (high << 32)
    }

    fn with_offset(self, offset: u64) -> Self {
        let fields = (0xffff_ffff_u128 << 64) | (0xffff << 48) | 0xffff;
        let offset = u128::from(offset);
        let spread = (offset & 0xffff) | (offset >> 16 & 0xffff) << 48 | (offset >> 32) << 64;
        Gate((self.0 & !fields) | spread)
    }

    /// Leads the gate to `target`, in one step, since another vCPU may fault at any time; false if it has changed meanwhile.
    fn redirect<M: GuestMemoryBackend>(
        self,
        ram: &M,
        at: GuestAddress,
        target: u64,
    ) -> Result<bool, GateError> {
        let slice = ram.get_slice(at, GATE as usize).map_err(|_| GateError::NoIdt)?;
        let seen = compare_exchange_16(&slice, self.0, self.with_offset(target).0).ok_or(GateError::NoIdt)?;
        Ok(seen == self.0)
    }
}

/// What a stub does: it sends `syscall` to `lstar`, and page faults to `handler`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stub {
    lstar: u64,
    handler: u64,
}

/// Offsets within a stub: of LSTAR, of the displacement of the jump there, and of that to the handler.
const LSTAR_AT: usize = 11;
const TO_LSTAR_AT: usize = 30;
const TO_HANDLER_AT: usize = 35;
/// Bytes of a stub.
const STUB: usize = 39;

impl Stub {
    /// Machine code for a stub at `address`. On entry, as after any page fault in 64-bit mode, RSP points to the error code, and
    /// RIP, CS, RFLAGS, RSP and SS follow, 8 bytes each (Intel SDM Vol 3A §6.14.2). No register but RSP is touched.
    fn code(self, address: u64) -> Result<[u8; STUB], GateError> {
        // The comparison sign-extends its 32 bits, which reaches the top 2 GiB of the address space.
        let lstar = i32::try_from(self.lstar as i64).ok().filter(|value| *value < 0);
        let lstar = lstar.ok_or(GateError::OutOfReach(self.lstar))?;
        let jump = |target: u64, end: usize| {
            let distance = target.wrapping_sub(address.wrapping_add(end as u64)) as i64;
            i32::try_from(distance).map_err(|_| GateError::OutOfReach(target))
        };
        let mut code = [
            0x80, 0x3c, 0x24, 0x15, //                    0: cmp byte [rsp], 0x15
            0x75, 28, //                                  4: jne 34
            0x48, 0x81, 0x7c, 0x24, 0x08, 0, 0, 0, 0, //  6: cmp qword [rsp+8], LSTAR
            0x75, 17, //                                 15: jne 34
            0xf6, 0x44, 0x24, 0x19,
            0x32, //             17: test byte [rsp+25], 0x32: bits 9 (IF), 12 and 13 (IOPL)
            0x75, 10, //                                 22: jne 34
            0x48, 0x8b, 0x64, 0x24, 0x20, //             24: mov rsp, [rsp+32]
            0xe9, 0, 0, 0, 0, //                         29: jmp LSTAR
            0xe9, 0, 0, 0, 0, //                         34: jmp handler
        ];
        let fields = [
            (LSTAR_AT, lstar),
            (TO_LSTAR_AT, jump(self.lstar, TO_LSTAR_AT + 4)?),
            (TO_HANDLER_AT, jump(self.handler, TO_HANDLER_AT + 4)?),
        ];
        for (at, value) in fields {
            code[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Ok(code)
    }

    /// What the code at `address` does, if it is a stub.
    fn parse(code: &[u8; STUB], address: u64) -> Option<Self> {
        let field = |at: usize| {
            let bytes = code[at..].first_chunk().copied().unwrap_or_default();
            i64::from(i32::from_le_bytes(bytes)) as u64
        };
        let handler = address
            .wrapping_add(STUB as u64)
            .wrapping_add(field(TO_HANDLER_AT));
        let stub = Stub {
            lstar: field(LSTAR_AT),
            handler,
        };
        (stub.code(address).ok()? == *code).then_some(stub)
    }
}

/// The stub that a gate with this offset leads to, if it is one of ours in the page mapped at `mapped`.
fn stub_at<M: GuestMemoryBackend>(ram: &M, page: GuestAddress, mapped: u64, offset: u64) -> Option<Stub> {
    let within = offset
        .checked_sub(mapped)
        .filter(|w| *w < PAGE && w.is_multiple_of(SLOT as u64))?;
    let mut code = [0; STUB];
    ram.read_slice(&mut code, page.checked_add(within)?).ok()?;
    Stub::parse(&code, offset)
}

/// Puts `stub` into a slot of the page, unless it is there; returns its linear address.
fn write_stub<M: GuestMemoryBackend>(
    ram: &M,
    page: GuestAddress,
    mapped: u64,
    stub: Stub,
) -> Result<u64, GateError> {
    let no_page = |_| GateError::NoStubPage(page.0);
    for offset in (0..PAGE).step_by(SLOT) {
        let at = page.checked_add(offset).ok_or(GateError::NoStubPage(page.0))?;
        let address = mapped + offset;
        let code = stub.code(address)?;
        let mut there = [0; STUB];
        ram.read_slice(&mut there, at).map_err(no_page)?;
        if there == [0; STUB] {
            ram.write_slice(&code, at).map_err(no_page)?;
        } else if there != code {
            continue;
        }
        return Ok(address);
    }
    Err(GateError::Full)
}

/// Where the stub page is or will be mapped.
#[derive(Clone, Copy)]
struct Place {
    /// Linear address of the page.
    address: u64,
    /// Guest-physical address of its page table entry.
    entry_at: GuestAddress,
}

/// Finds where the stub page is mapped, else a free entry for it.
fn find_place<M: GuestMemoryBackend>(ram: &M, mode: Mode, page: GuestAddress) -> Result<Place, GateError> {
    if mode.cr4 & control::CR4_LA57 != 0 {
        return Err(GateError::NoTable {
            address: FIRST_ADDRESS,
            hint: "; boot it with no5lvl",
        });
    }
    let mut free = None;
    for address in (0..PLACES).map(|n| FIRST_ADDRESS - n * PAGE) {
        let no_table = GateError::NoTable { address, hint: "" };
        let entry_at = entry_of(ram, mode.cr3, address, 0).ok_or(no_table)?;
        let value: u64 = ram
            .load(entry_at, Ordering::Acquire)
            .map_err(|_| GateError::NoPlace)?;
        let place = Place { address, entry_at };
        if maps(value, page) {
            return Ok(place);
        }
        if value == 0 && free.is_none() {
            free = Some(place);
        }
    }
    free.ok_or(GateError::NoPlace)
}

fn maps(value: u64, page: GuestAddress) -> bool {
    value & entry::PRESENT != 0 && value & entry::ADDRESS == page.0
}

/// Maps the stub page in the kernel's tables and, with page table isolation, in the user's.
fn map<M: GuestMemoryBackend>(
    ram: &M,
    mode: Mode,
    gate_address: u64,
    place: Place,
    page: GuestAddress,
) -> Result<(), GateError> {
    let mut user_entry = None;
    let user_root = (mode.cr3 & entry::ADDRESS) | PAGE;
    let idt_page = |root| leaf(ram, root, gate_address);
    if mode.cr3 & PAGE == 0 && idt_page(user_root).is_some() && idt_page(user_root) == idt_page(mode.cr3) {
        let no_table = GateError::NoTable {
            address: place.address,
            hint: " with page table isolation; boot it with nopti",
        };
        user_entry = Some(entry_of(ram, user_root, place.address, 0).ok_or(no_table)?);
    }
    for at in [Some(place.entry_at), user_entry].into_iter().flatten() {
        plant(ram, at, page)?;
    }
    Ok(())
}

/// Sets a page table entry that is free.
fn plant<M: GuestMemoryBackend>(ram: &M, at: GuestAddress, page: GuestAddress) -> Result<(), GateError> {
    let value = page.0 | entry::PRESENT | entry::ACCESSED | entry::DIRTY | entry::GLOBAL;
    let slice = ram.get_slice(at, 8).map_err(|_| GateError::NoPlace)?;
    let cell = slice
        .get_atomic_ref::<AtomicU64>(0)
        .map_err(|_| GateError::NoPlace)?;
    let result = cell.compare_exchange(0, value, Ordering::AcqRel, Ordering::Acquire);
    slice.bitmap().mark_dirty(0, 8);
    match result {
        Err(other) if !maps(other, page) => Err(GateError::NoPlace),
        _ => Ok(()),
    }
}

/// Guest-physical address of the entry that maps `address` at `level` (0: 4 KiB pages, 3: the root), if the tables above it are
/// there. Unlike a translation, this leaves the tables untouched: they may turn out to be something else.
fn entry_of<M: GuestMemoryBackend>(ram: &M, root: u64, address: u64, level: u32) -> Option<GuestAddress> {
    let mut table = root & entry::ADDRESS;
    for above in (level + 1..=3).rev() {
        let value: u64 = ram
            .load(GuestAddress(table + index(address, above)), Ordering::Acquire)
            .ok()?;
        if value & entry::PRESENT == 0 || value & entry::LARGE != 0 {
            return None;
        }
        table = value & entry::ADDRESS;
    }
    Some(GuestAddress(table + index(address, level)))
}

/// Byte offset of an address's entry in its table.
fn index(address: u64, level: u32) -> u64 {
    (address >> (12 + 9 * level) & 511) * 8
}

/// Level and physical address of the page that maps `address`.
fn leaf<M: GuestMemoryBackend>(ram: &M, root: u64, address: u64) -> Option<(u32, u64)> {
    (0..3).find_map(|level| {
        let value: u64 = ram
            .load(entry_of(ram, root, address, level)?, Ordering::Acquire)
            .ok()?;
        let maps_page = value & entry::PRESENT != 0 && (level == 0 || value & entry::LARGE != 0);
        maps_page.then_some((level, value & entry::ADDRESS))
    })
}

#[cfg(test)]
mod tests;

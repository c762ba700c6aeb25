//! What a kernel is told when it is entered, and the registers it is entered with, by the protocol it asks for.

mod linux64;
pub mod memory_map;
mod pvh;
#[cfg(test)]
mod tests;

use std::ffi::CStr;

use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::initrd::InitrdRange;
use crate::kernel::{EntryProtocol, LoadedKernel};
use crate::layout;
use crate::registers::{DescriptorTable, Registers, Segment};

/// What to tell the kernel. Its memory map comes from guest memory itself.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo<'a> {
    /// The kernel in guest memory.
    pub kernel: &'a LoadedKernel,
    /// The initrd in guest memory.
    pub initrd: Option<InitrdRange>,
    /// The kernel's command line, passed on byte by byte.
    pub cmdline: &'a CStr,
    /// Where [`crate::acpi::write`] put the RSDP. Without it the kernel searches for one, and for an MP table.
    pub rsdp: Option<GuestAddress>,
}

/// Why the boot data was not written.
#[derive(Debug, Error)]
pub enum BootError {
    /// The command line exceeds the kernel's limit.
    #[error("the kernel command line has {length} bytes, but this kernel takes {limit} at most; shorten it")]
    CmdlineTooLong {
        /// Its length in bytes, without the NUL.
        length: usize,
        /// The kernel's limit, without the NUL.
        limit: usize,
    },
    /// Guest memory in more pieces than a memory map has entries.
    #[error("the memory map has {entries} entries, but the boot protocol has room for {limit}")]
    TooManyRanges {
        /// Entries needed.
        entries: usize,
        /// Entries possible.
        limit: usize,
    },
    /// The low memory that boot data goes to is not there.
    #[error(
        "the {what} cannot be written at {address:#x}: {source}; the guest needs at least 1 MiB of memory"
    )]
    Write {
        /// The part of the boot data.
        what: &'static str,
        /// Where it goes.
        address: u64,
        /// Why not.
        source: GuestMemoryError,
    },
}

/// Writes the boot data and returns the boot CPU's registers.
///
/// Guest memory must be zero where the kernel and the initrd are not, as a fresh mapping is.
///
/// # Errors
/// [`BootError`].
pub fn write<M: GuestMemoryBackend>(mem: &M, info: &BootInfo<'_>) -> Result<Registers, BootError> {
    let (length, limit) = (
        info.cmdline.count_bytes(),
        info.kernel.cmdline_max.min(layout::CMDLINE_SIZE - 1),
    );
    if length > limit {
        return Err(BootError::CmdlineTooLong { length, limit });
    }
    put_slice(
        mem,
        "command line",
        info.cmdline.to_bytes_with_nul(),
        layout::CMDLINE,
    )?;
    match info.kernel.protocol {
        EntryProtocol::Linux64 => linux64::write(mem, info),
        EntryProtocol::Pvh => pvh::write(mem, info),
    }
}

/// Selectors __BOOT_CS and __BOOT_DS, which the 64-bit boot protocol fixes.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Writes the GDT with `code` and a flat data segment.
fn write_gdt<M: GuestMemoryBackend>(mem: &M, code: Segment) -> Result<DescriptorTable, BootError> {
    let mut table = [0; 32];
    let entries = [0, 0, code.descriptor(), Segment::data(BOOT_DS).descriptor()];
    for (bytes, entry) in table.chunks_exact_mut(8).zip(entries) {
        bytes.copy_from_slice(&entry.to_le_bytes());
    }
    put_slice(mem, "GDT", &table, layout::BOOT_GDT)?;
    Ok(DescriptorTable {
        base: layout::BOOT_GDT.0,
        limit: table.len() as u16 - 1,
    })
}

/// The registers that both protocols set alike.
fn flat_registers(code: Segment, gdt: DescriptorTable) -> Registers {
    let data = Segment::data(BOOT_DS);
    Registers {
        rsp: layout::BOOT_STACK_TOP.0,
        // Bit 1 is always set (Intel SDM Vol 1 §3.4.3); interrupts are off.
        rflags: 2,
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment::empty_tss(),
        gdt,
        ..Registers::default()
    }
}

fn put_slice<M: GuestMemoryBackend>(
    mem: &M,
    what: &'static str,
    bytes: &[u8],
    at: GuestAddress,
) -> Result<(), BootError> {
    mem.write_slice(bytes, at).map_err(|source| BootError::Write {
        what,
        address: at.0,
        source,
    })
}

fn put<M: GuestMemoryBackend, T: ByteValued>(
    mem: &M,
    what: &'static str,
    value: &T,
    at: GuestAddress,
) -> Result<(), BootError> {
    put_slice(mem, what, value.as_slice(), at)
}

//! Guest linear memory: four-level page tables walked in guest RAM (Intel SDM Vol 3A §4.5), and access to what they map.
//!
//! Does what the CPU does on an access: permissions with SMAP and SMEP, accessed and dirty flags, faults with their error
//! code. Left out: protection keys, which Linux's kernel does not use for memory that it touches with these instructions.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

use super::atomic;
use super::cpu::{Exception, Mode, control, rflags};
use super::{Stop, Unsupported};

/// Page fault error code (Intel SDM Vol 3A §4.7): the page is present.
pub const FAULT_PRESENT: u32 = 1 << 0;
/// Page fault error code: the access was a write.
pub const FAULT_WRITE: u32 = 1 << 1;
/// Page fault error code: the access was made at CPL 3.
pub const FAULT_USER: u32 = 1 << 2;
/// Page fault error code: a reserved bit is set in an entry.
pub const FAULT_RESERVED: u32 = 1 << 3;
/// Page fault error code: the access was an instruction fetch.
pub const FAULT_FETCH: u32 = 1 << 4;

/// Bits of a page table entry (Intel SDM Vol 3A §4.5.4, tables 4-15 to 4-20).
pub mod entry {
    /// The entry is in use.
    pub const PRESENT: u64 = 1 << 0;
    /// Writes are allowed.
    pub const WRITE: u64 = 1 << 1;
    /// CPL 3 may use it.
    pub const USER: u64 = 1 << 2;
    /// The entry has been used for a translation.
    pub const ACCESSED: u64 = 1 << 5;
    /// The page has been written.
    pub const DIRTY: u64 = 1 << 6;
    /// Maps a page rather than a table (in the levels where that is allowed).
    pub const LARGE: u64 = 1 << 7;
    /// The translation survives a change of CR3.
    pub const GLOBAL: u64 = 1 << 8;
    /// Instruction fetches are forbidden, where IA32_EFER.NXE is set.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The physical address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

const PAGE: u64 = 4096;

/// Another vCPU can change an entry between our load and our update of its flags. The CPU walks again, and so do we, but not
/// for ever: then the guest gets a fault for a page that is there, which it has to bear with anyway.
const WALKS: usize = 64;

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Guest memory as the guest's own instructions see it at one moment: through its page tables and with its privilege.
pub struct LinearMemory<'a, M> {
    ram: &'a M,
    mode: Mode,
    user: bool,
    smap: bool,
}

/// The permissions that the levels of a walk leave over.
struct Rights {
    write: bool,
    user: bool,
    execute: bool,
}

impl<'a, M: GuestMemoryBackend> LinearMemory<'a, M> {
    /// Memory as an instruction sees it that runs in `mode` with these `flags` (RFLAGS).
    pub fn new(ram: &'a M, mode: Mode, flags: u64) -> Self {
        let smap = mode.cr4 & control::CR4_SMAP != 0 && flags & rflags::AC == 0;
        LinearMemory {
            ram,
            mode,
            user: mode.cpl == 3,
            smap,
        }
    }

    /// Memory as the CPU itself sees it when it reads a descriptor table: with supervisor rights whatever the CPL.
    pub fn system(ram: &'a M, mode: Mode) -> Self {
        let smap = mode.cr4 & control::CR4_SMAP != 0;
        LinearMemory {
            ram,
            mode,
            user: false,
            smap,
        }
    }

    /// Finds the guest-physical address of `address`, and sets accessed and dirty flags on the way.
    pub fn translate(&self, address: u64, access: Access) -> Result<GuestAddress, Stop> {
        if self.mode.cr4 & control::CR4_LA57 != 0 {
            return Err(Stop::Unsupported(Unsupported::FiveLevelPaging));
        }
        if self.mode.cr0 & control::CR0_PG == 0 || self.mode.efer & control::EFER_LMA == 0 {
            return Err(Stop::Unsupported(Unsupported::Mode));
        }
        if !is_canonical(address) {
            return Err(Stop::Exception(Exception::GeneralProtection));
        }
        for _ in 0..WALKS {
            if let Some(physical) = self.walk(address, access)? {
                return Ok(physical);
            }
        }
        Err(self.fault(address, access, 0))
    }

    /// One walk; `None` if an entry changed under it.
    fn walk(&self, address: u64, access: Access) -> Result<Option<GuestAddress>, Stop> {
        let mut rights = Rights {
            write: true,
            user: true,
            execute: true,
        };
        let mut table = self.mode.cr3 & entry::ADDRESS;
        for level in (0..4u32).rev() {
            let shift = 12 + 9 * level;
            let at = GuestAddress(table + ((address >> shift) & 511) * 8);
            let old: u64 = self
                .ram
                .load(at, Ordering::Acquire)
                .map_err(|_| Stop::OutsideRam(at.0))?;
            if old & entry::PRESENT == 0 {
                return Err(self.fault(address, access, 0));
            }
            let leaf = level == 0 || old & entry::LARGE != 0;
            if self.has_reserved_bits(old, level) {
                return Err(self.fault(address, access, FAULT_PRESENT | FAULT_RESERVED));
            }
            rights.write &= old & entry::WRITE != 0;
            rights.user &= old & entry::USER != 0;
            rights.execute &= old & entry::NO_EXECUTE == 0;
            if leaf && !self.allows(&rights, access) {
                return Err(self.fault(address, access, FAULT_PRESENT));
            }
            if !self.mark(at, old, leaf && access == Access::Write)? {
                return Ok(None);
            }
            if leaf {
                let offset = (1u64 << shift) - 1;
                return Ok(Some(GuestAddress(
                    (old & entry::ADDRESS & !offset) | (address & offset),
                )));
            }
            table = old & entry::ADDRESS;
        }
        Ok(None)
    }

    /// Bits that must be zero whatever the width of physical addresses; wider ones lead outside RAM and are found there.
    fn has_reserved_bits(&self, value: u64, level: u32) -> bool {
        let large = value & entry::LARGE != 0 && level > 0;
        let no_execute = value & entry::NO_EXECUTE != 0 && self.mode.efer & control::EFER_NXE == 0;
        // A large page's address field starts at its own size; bit 12 is PAT.
        let low = if large {
            ((1u64 << (12 + 9 * level)) - 1) & entry::ADDRESS & !PAGE
        } else {
            0
        };
        no_execute || (level == 3 && large) || value & low != 0
    }

    fn allows(&self, rights: &Rights, access: Access) -> bool {
        let data = |writes: bool| {
            let may_use = if self.user {
                rights.user
            } else {
                !(self.smap && rights.user)
            };
            let write_protect = self.user || self.mode.cr0 & control::CR0_WP != 0;
            may_use && !(writes && write_protect && !rights.write)
        };
        match access {
            Access::Read => data(false),
            Access::Write => data(true),
            Access::Fetch if self.user => rights.user && rights.execute,
            Access::Fetch => rights.execute && !(rights.user && self.mode.cr4 & control::CR4_SMEP != 0),
        }
    }

    /// Sets the accessed flag, and the dirty flag if asked, unless they are set; false if the entry is no longer `old`.
    fn mark(&self, at: GuestAddress, old: u64, dirty: bool) -> Result<bool, Stop> {
        let new = old | entry::ACCESSED | if dirty { entry::DIRTY } else { 0 };
        if new == old {
            return Ok(true);
        }
        let outside = |_| Stop::OutsideRam(at.0);
        let slice = self.ram.get_slice(at, 8).map_err(outside)?;
        let cell = slice
            .get_atomic_ref::<AtomicU64>(0)
            .map_err(|_| Stop::OutsideRam(at.0))?;
        let done = cell
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        slice.bitmap().mark_dirty(0, 8);
        Ok(done)
    }

    fn fault(&self, address: u64, access: Access, code: u32) -> Stop {
        let write = if access == Access::Write { FAULT_WRITE } else { 0 };
        let user = if self.user { FAULT_USER } else { 0 };
        // Bit 4 is only defined where fetches can be forbidden (§4.7).
        let fetches_matter =
            self.mode.efer & control::EFER_NXE != 0 || self.mode.cr4 & control::CR4_SMEP != 0;
        let fetch = if access == Access::Fetch && fetches_matter {
            FAULT_FETCH
        } else {
            0
        };
        Stop::Exception(Exception::PageFault {
            address,
            code: code | write | user | fetch,
        })
    }

    /// Reads `into.len()` bytes, which may cross pages.
    pub fn read(&self, address: u64, into: &mut [u8], access: Access) -> Result<(), Stop> {
        let mut rest = into;
        let mut address = address;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_mut(bytes_in_page(address, rest.len()));
            let physical = self.translate(address, access)?;
            self.ram
                .read_slice(now, physical)
                .map_err(|_| Stop::OutsideRam(physical.0))?;
            address = address.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Writes `from`, which may cross pages; nothing is written if any of its pages faults.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Stop> {
        if bytes_in_page(address, from.len()) < from.len() {
            self.probe_write(address, from.len())?;
        }
        let mut rest = from;
        let mut address = address;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(bytes_in_page(address, rest.len()));
            let physical = self.translate(address, Access::Write)?;
            self.ram
                .write_slice(now, physical)
                .map_err(|_| Stop::OutsideRam(physical.0))?;
            address = address.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    fn probe_write(&self, address: u64, len: usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            self.translate(at, Access::Write)?;
            done += bytes_in_page(at, len - done);
        }
        Ok(())
    }

    /// Compares and exchanges the 16 bytes at `address`, which must be a multiple of 16; returns what was there.
    pub fn compare_exchange_16(&self, address: u64, old: u128, new: u128) -> Result<u128, Stop> {
        // The CPU writes in any case, the old value back where they differ: the page must be writable (Vol 2A, CMPXCHG16B).
        let physical = self.translate(address, Access::Write)?;
        let slice = self
            .ram
            .get_slice(physical, 16)
            .map_err(|_| Stop::OutsideRam(physical.0))?;
        atomic::compare_exchange_16(&slice, old, new).ok_or(Stop::OutsideRam(physical.0))
    }
}

/// True if bits 63 to 47 are all the same (Intel SDM Vol 1 §3.3.7.1).
pub fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

fn bytes_in_page(address: u64, len: usize) -> usize {
    len.min((PAGE - address % PAGE) as usize)
}

//! Brings a kernel image (ELF vmlinux or bzImage) into guest memory and says how it wants to be entered.
//!
//! What the kernel is told when it is entered is [`crate::boot`]'s business.

mod bzimage;
mod elf;
mod error;
#[cfg(test)]
pub(crate) mod images;
#[cfg(test)]
mod tests;
mod unpack;

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};

pub use error::KernelError;
pub use unpack::Codec;

use crate::layout;

/// Where a bzImage's compressed kernel is unpacked. An ELF image is loaded as it is either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack {
    /// On the host, by this crate, where it knows the compression; else in the guest.
    OnHost,
    /// By the bzImage's own code.
    InGuest,
}

/// The boot protocol that the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootProtocol {
    /// PVH for an ELF image with a PVH note, else the 64-bit Linux protocol.
    #[default]
    Auto,
    /// PVH; an error for an image without a PVH note.
    Pvh,
    /// The 64-bit Linux boot protocol.
    Linux64,
}

/// The boot protocol that a loaded kernel is entered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryProtocol {
    /// Xen's PVH: 32-bit protected mode without paging, EBX points to `hvm_start_info`.
    Pvh,
    /// Linux's 64-bit boot protocol: long mode, RSI points to the zero page.
    Linux64,
}

/// What kind of file the kernel came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// An ELF vmlinux.
    Elf,
    /// A bzImage, whose payload was unpacked on the host.
    Unpacked(Codec),
    /// A bzImage that unpacks itself in the guest.
    BzImage,
}

/// A kernel in guest memory.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    /// First instruction.
    pub entry: GuestAddress,
    /// How to enter it.
    pub protocol: EntryProtocol,
    /// What it was loaded from.
    pub format: ImageFormat,
    /// First byte that it uses.
    pub start: GuestAddress,
    /// First byte after it, counting its BSS and, for a bzImage, the room it unpacks itself in (`init_size`).
    pub end: GuestAddress,
    /// A bzImage's setup header as it stands in the file; none for ELF.
    pub setup_header: Option<setup_header>,
    /// Longest command line it takes in bytes, without the NUL.
    pub cmdline_max: usize,
    /// Highest address that the initrd's last byte may have.
    pub initrd_max: u64,
}

/// x86 Linux's COMMAND_LINE_SIZE less the NUL: the limit of a kernel whose image does not say one.
const LINUX_CMDLINE_MAX: usize = 2047;

/// Loads the kernel in `image` into guest memory.
///
/// All of the guest's memory must be zero, as a fresh mapping is: bytes that an image leaves to be zeroed are not
/// written. The image's segments are read from the file straight into guest memory; of a bzImage unpacked on the host
/// one unpacked copy is held meanwhile, never larger than guest memory.
///
/// # Errors
/// Whatever is wrong with the file, or does not fit the guest, as a sentence to which the caller adds the file's name.
pub fn load<M, F>(
    mem: &M,
    image: &mut F,
    unpack: Unpack,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    let mut image = Image::open(image)?;
    match image.kind()? {
        Kind::Elf => elf::load(mem, &mut image, protocol),
        Kind::BzImage => bzimage::load(mem, &mut image, unpack, protocol),
    }
}

/// Size of the part of an image that is read at once: it holds all headers of every real kernel.
const HEAD_SIZE: u64 = 4096;

enum Kind {
    Elf,
    BzImage,
}

/// An image file of known length with its first bytes at hand.
pub(super) struct Image<'a, F> {
    file: &'a mut F,
    len: u64,
    head: Vec<u8>,
}

impl<'a, F: Read + Seek + ReadVolatile> Image<'a, F> {
    fn open(file: &'a mut F) -> Result<Self, KernelError> {
        let len = file
            .seek(SeekFrom::End(0))
            .map_err(KernelError::reading("length"))?;
        if len == 0 {
            return Err(KernelError::Empty);
        }
        file.rewind().map_err(KernelError::reading("header"))?;
        let mut head = Vec::new();
        file.by_ref()
            .take(HEAD_SIZE)
            .read_to_end(&mut head)
            .map_err(KernelError::reading("header"))?;
        Ok(Image { file, len, head })
    }

    fn kind(&self) -> Result<Kind, KernelError> {
        if self.head.starts_with(elf::MAGIC) {
            return Ok(Kind::Elf);
        }
        if bzimage::is_bzimage(&self.head) {
            return Ok(Kind::BzImage);
        }
        match Codec::of(&self.head) {
            Some(codec) => Err(KernelError::CompressedFile { codec }),
            None => Err(KernelError::NotAKernel { bytes: self.len }),
        }
    }

    /// Moves to `offset`, after a check that `bytes` from there on are in the file.
    fn seek_to(&mut self, what: &'static str, offset: u64, bytes: u64) -> Result<&mut F, KernelError> {
        let end = offset.saturating_add(bytes);
        if end > self.len {
            return Err(KernelError::Truncated {
                what,
                end,
                len: self.len,
            });
        }
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(KernelError::reading(what))?;
        Ok(self.file)
    }

    /// The `bytes` at `offset`, from the head where they lie in it. `bytes` must be bounded by the caller.
    fn bytes(&mut self, what: &'static str, offset: u64, bytes: usize) -> Result<Vec<u8>, KernelError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(found) = self.head.get(start..start.saturating_add(bytes)) {
            return Ok(found.to_vec());
        }
        let mut buffer = vec![0; bytes];
        let file = self.seek_to(what, offset, bytes as u64)?;
        file.read_exact(&mut buffer).map_err(KernelError::reading(what))?;
        Ok(buffer)
    }

    /// Reads part of the file into guest memory.
    fn copy_to<M: GuestMemoryBackend>(
        &mut self,
        mem: &M,
        what: &'static str,
        offset: u64,
        bytes: u64,
        address: GuestAddress,
    ) -> Result<(), KernelError> {
        let file = self.seek_to(what, offset, bytes)?;
        let count = usize::try_from(bytes).unwrap_or(usize::MAX);
        mem.read_exact_volatile_from(address, file, count)
            .map_err(|source| KernelError::reading(what)(io::Error::other(source)))
    }
}

/// First byte without RAM at or after guest-physical 0, at most the start of the MMIO hole.
pub(crate) fn low_ram_end<M: GuestMemoryBackend>(mem: &M) -> u64 {
    let mut end = 0;
    // Regions are sorted by address.
    for region in mem.iter() {
        if region.start_addr().0 > end {
            break;
        }
        end = end.max(region.start_addr().0.saturating_add(region.len()));
    }
    end.min(layout::MMIO_HOLE_START.0)
}

/// Checks that the kernel may use `bytes` bytes from `start` on: RAM above the boot data and below the MMIO hole.
fn check_place<M: GuestMemoryBackend>(mem: &M, start: u64, bytes: u64) -> Result<(), KernelError> {
    if start < layout::HIGH_RAM_START.0 {
        return Err(KernelError::TooLow { start });
    }
    let end = start.saturating_add(bytes);
    if end > layout::MMIO_HOLE_START.0 {
        return Err(KernelError::TooHigh { start, end });
    }
    let ram = low_ram_end(mem);
    if end > ram {
        return Err(KernelError::NeedsMemory { needs: end, has: ram });
    }
    Ok(())
}

//! bzImage: reads the setup header, then either loads the image for its own code to unpack it in the guest, or unpacks
//! its payload here and loads the ELF kernel that comes out.
//!
//! "Boot protocol" is Documentation/arch/x86/boot.rst of Linux.

use std::io::{BufReader, Cursor, Read, Seek};

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, ReadVolatile};

use super::{
    BootProtocol, Codec, EntryProtocol, Image, ImageFormat, KernelError, LoadedKernel, Unpack, check_place,
    elf, low_ram_end, unpack,
};
use crate::layout;

/// Offset of the setup header (boot protocol, "The Real-Mode Kernel Header").
const SETUP_HEADER: usize = 0x1f1;
/// The header field: "HdrS" at 0x202.
const HDRS: &[u8] = b"HdrS";
const HDRS_OFFSET: usize = 0x202;
/// Protocol version that brought xloadflags, and with them a 64-bit entry point one can rely on.
const VERSION_WITH_XLOADFLAGS: u16 = 0x20c;
/// xloadflags bit 0: the image has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// "the 64-bit entry point is at the load address plus 0x200" (boot protocol, "64-bit Boot Protocol").
const ENTRY_64_OFFSET: u64 = 0x200;
/// Unit of setup_sects.
const SECTOR: u64 = 512;
/// Unit of syssize.
const PARAGRAPH: u64 = 16;
/// The kernel's length, uncompressed, stands in the payload's last four bytes; gzip's own format does that as well.
const SIZE_BYTES: u64 = 4;

/// Whether `head`, the file's start, is a bzImage's (or an old zImage's).
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(HDRS_OFFSET..).is_some_and(|tail| tail.starts_with(HDRS))
}

/// Loads a bzImage.
pub(super) fn load<M, F>(
    mem: &M,
    image: &mut Image<'_, F>,
    unpack: Unpack,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    let header = read_header(image)?;
    if unpack == Unpack::OnHost
        && let Some(payload) = Payload::find(image, &header)?
    {
        return load_payload(mem, image, &header, &payload, protocol);
    }
    if protocol == BootProtocol::Pvh {
        return Err(KernelError::PvhNeedsElf);
    }
    load_whole(mem, image, &header)
}

/// The setup header, once it is clear that the image has the 64-bit entry point.
fn read_header<F: Read + Seek + ReadVolatile>(image: &mut Image<'_, F>) -> Result<setup_header, KernelError> {
    let mut header = setup_header::default();
    let raw = image.bytes("setup header", SETUP_HEADER as u64, size_of::<setup_header>())?;
    header.as_mut_slice().copy_from_slice(&raw);
    if header.version < VERSION_WITH_XLOADFLAGS {
        return Err(KernelError::TooOld {
            version: header.version,
        });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::ThirtyTwoBit);
    }
    Ok(header)
}

/// Length of the real-mode part, boot sector and setup code, before the protected-mode kernel.
fn setup_bytes(header: &setup_header) -> u64 {
    // "the real value is 4 if the field contains 0" (boot protocol, setup_sects).
    let sectors = if header.setup_sects == 0 {
        4
    } else {
        header.setup_sects.into()
    };
    (1 + sectors) * SECTOR
}

fn cmdline_max(header: &setup_header) -> usize {
    (header.cmdline_size as usize).min(layout::CMDLINE_SIZE - 1)
}

fn bad(what: impl Into<String>) -> KernelError {
    KernelError::BadSetupHeader { what: what.into() }
}

/// Loads the protected-mode part for it to unpack itself.
fn load_whole<M, F>(
    mem: &M,
    image: &mut Image<'_, F>,
    header: &setup_header,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    let setup = setup_bytes(header);
    // The last paragraph need not be full.
    let stated = u64::from(header.syssize).saturating_sub(1) * PARAGRAPH;
    let bytes = image.len.saturating_sub(setup);
    if bytes == 0 || bytes < stated {
        return Err(KernelError::Truncated {
            what: "kernel",
            end: setup + stated.max(1),
            len: image.len,
        });
    }
    // Loading it where it wants to run spares it moving itself there first; a kernel that is not relocatable can be
    // nowhere else (boot protocol, pref_address). init_size is counted from there and includes the kernel itself.
    let (start, init_size) = (header.pref_address, u64::from(header.init_size));
    if init_size < bytes {
        return Err(bad(format!(
            "it says that {init_size} bytes hold a kernel of {bytes} bytes"
        )));
    }
    if bytes <= ENTRY_64_OFFSET {
        return Err(bad(format!(
            "a kernel of {bytes} bytes ends before its entry point"
        )));
    }
    check_place(mem, start, init_size)?;
    image.copy_to(mem, "kernel", setup, bytes, GuestAddress(start))?;
    Ok(LoadedKernel {
        entry: GuestAddress(start + ENTRY_64_OFFSET),
        protocol: EntryProtocol::Linux64,
        format: ImageFormat::BzImage,
        start: GuestAddress(start),
        end: GuestAddress(start + init_size),
        setup_header: Some(*header),
        cmdline_max: cmdline_max(header),
        initrd_max: header.initrd_addr_max.into(),
    })
}

/// The compressed kernel inside the image.
struct Payload {
    offset: u64,
    length: u64,
    codec: Codec,
}

impl Payload {
    /// The payload, if it is compressed in a way that [`unpack`] knows.
    fn find<F: Read + Seek + ReadVolatile>(
        image: &mut Image<'_, F>,
        header: &setup_header,
    ) -> Result<Option<Self>, KernelError> {
        let offset = setup_bytes(header) + u64::from(header.payload_offset);
        let length = u64::from(header.payload_length);
        if length <= SIZE_BYTES + Codec::MAGIC_BYTES as u64 {
            return Err(bad(format!(
                "it says that {length} bytes hold the compressed kernel"
            )));
        }
        image.seek_to("compressed kernel", offset, length)?;
        let magic = image.bytes("compressed kernel", offset, Codec::MAGIC_BYTES)?;
        Ok(Codec::of(&magic).map(|codec| Payload {
            offset,
            length,
            codec,
        }))
    }

    /// Decompresses it; never to more than `limit` bytes.
    fn unpack<F: Read + Seek + ReadVolatile>(
        &self,
        image: &mut Image<'_, F>,
        limit: u64,
    ) -> Result<Vec<u8>, KernelError> {
        let tail = image.bytes(
            "compressed kernel",
            self.offset + self.length - SIZE_BYTES,
            SIZE_BYTES as usize,
        )?;
        let size = tail.first_chunk().map_or(0, |size| u32::from_le_bytes(*size));
        if u64::from(size) > limit {
            return Err(KernelError::NeedsMemory {
                needs: size.into(),
                has: limit,
            });
        }
        // The size is gzip's own; the kernel's build appends it to every other format.
        let stream = if self.codec == Codec::Gzip {
            self.length
        } else {
            self.length - SIZE_BYTES
        };
        let file = image.seek_to("compressed kernel", self.offset, self.length)?;
        let source = BufReader::with_capacity(64 << 10, file.by_ref().take(stream));
        unpack::unpack(self.codec, source, size as usize).map_err(|reason| KernelError::Unpack {
            codec: self.codec,
            reason,
        })
    }
}

/// Unpacks the payload and loads the ELF kernel in it.
fn load_payload<M, F>(
    mem: &M,
    image: &mut Image<'_, F>,
    header: &setup_header,
    payload: &Payload,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    // A stripped kernel is no larger than the memory that it is loaded into.
    let kernel = payload.unpack(image, low_ram_end(mem))?;
    if !kernel.starts_with(elf::MAGIC) {
        return Err(KernelError::PayloadNotElf);
    }
    let mut file = Cursor::new(kernel);
    let loaded = elf::load(mem, &mut Image::open(&mut file)?, protocol)?;
    Ok(LoadedKernel {
        format: ImageFormat::Unpacked(payload.codec),
        setup_header: Some(*header),
        cmdline_max: cmdline_max(header),
        initrd_max: header.initrd_addr_max.into(),
        ..loaded
    })
}

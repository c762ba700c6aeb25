//! ELF vmlinux: checks the headers, loads the segments, finds the PVH entry point.
//!
//! linux-loader's ELF loader is not used: it accepts 32-bit and foreign images, does not check a segment's BSS against
//! guest memory, and hostile note sizes overflow in it.

use std::io::{Read, Seek};

use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile};

use super::{
    BootProtocol, EntryProtocol, Image, ImageFormat, KernelError, LINUX_CMDLINE_MAX, LoadedKernel,
    check_place,
};
use crate::layout;

/// ELF's e_ident[0..4].
pub(super) const MAGIC: &[u8] = b"\x7fELF";

// Values and offsets of the System V gABI, chapters 4 (ELF header, note section) and 5 (program header).
const EHDR_SIZE: usize = 64;
const PHDR_SIZE: usize = 56;
const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen's public/elfnote.h): the PVH entry point.
const PVH_NOTE_TYPE: u32 = 18;
const PVH_NOTE_NAME: &[u8] = b"Xen\0";

/// More program headers than any kernel has (Linux: five), few enough to bound the work.
const MAX_PROGRAM_HEADERS: usize = 128;
/// As much of a note segment as is searched; Linux's are below 1 KiB.
const MAX_NOTE_BYTES: u64 = 64 << 10;

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl Segment {
    fn parse(header: &[u8; PHDR_SIZE]) -> Self {
        Segment {
            kind: u32_at(header, 0),
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            file_size: u64_at(header, 32),
            memory_size: u64_at(header, 40),
            align: u64_at(header, 48),
        }
    }

    fn contains(&self, address: u64) -> bool {
        address
            .checked_sub(self.address)
            .is_some_and(|offset| offset < self.memory_size)
    }

    fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_size)
    }
}

/// The N bytes at `offset` of fixed-size data. Callers pass constants that lie inside, so the copy is always whole.
fn field<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut value = [0; N];
    if let Some(found) = data.get(offset..offset + N) {
        value.copy_from_slice(found);
    }
    value
}

fn u16_at(data: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(data, offset))
}

fn u32_at(data: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(data, offset))
}

fn u64_at(data: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(data, offset))
}

/// Loads an ELF kernel.
pub(super) fn load<M, F>(
    mem: &M,
    image: &mut Image<'_, F>,
    protocol: BootProtocol,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Read + Seek + ReadVolatile,
{
    let (entry, segments) = headers(image)?;
    let loads = loadable(&segments)?;
    for segment in &loads {
        check_place(mem, segment.address, segment.memory_size)?;
    }
    let pvh = match protocol {
        BootProtocol::Linux64 => None,
        BootProtocol::Auto => pvh_entry(image, &segments)?,
        BootProtocol::Pvh => Some(pvh_entry(image, &segments)?.ok_or(KernelError::NoPvhNote)?),
    };
    let entry_point = pvh.unwrap_or(entry);
    if !loads.iter().any(|segment| segment.contains(entry_point)) {
        return Err(bad(format!(
            "the entry point {entry_point:#x} is in none of its segments"
        )));
    }
    for segment in loads.iter().filter(|segment| segment.file_size > 0) {
        image.copy_to(
            mem,
            "segment",
            segment.offset,
            segment.file_size,
            GuestAddress(segment.address),
        )?;
    }
    Ok(LoadedKernel {
        entry: GuestAddress(entry_point),
        protocol: if pvh.is_some() {
            EntryProtocol::Pvh
        } else {
            EntryProtocol::Linux64
        },
        format: ImageFormat::Elf,
        start: GuestAddress(loads.first().map_or(0, |first| first.address)),
        end: GuestAddress(loads.last().map_or(0, Segment::end)),
        setup_header: None,
        cmdline_max: LINUX_CMDLINE_MAX,
        initrd_max: layout::MMIO_HOLE_START.0 - 1,
    })
}

fn bad(what: impl Into<String>) -> KernelError {
    KernelError::BadElf { what: what.into() }
}

/// The entry point and all program headers.
fn headers<F: Read + Seek + ReadVolatile>(
    image: &mut Image<'_, F>,
) -> Result<(u64, Vec<Segment>), KernelError> {
    // The file's kind is told before its length, so that a short wrong file is called wrong and not short.
    let class = image.head.get(4).copied();
    if class == Some(ELFCLASS32) && image.len >= 20 && u16_at(&image.head, 18) == EM_386 {
        return Err(KernelError::ThirtyTwoBit);
    }
    let header = image.bytes("ELF header", 0, EHDR_SIZE)?;
    let machine = u16_at(&header, 18);
    if header[5] != ELFDATA2LSB || machine != EM_X86_64 {
        let machine = if header[5] == ELFDATA2LSB {
            machine
        } else {
            machine.swap_bytes()
        };
        return Err(KernelError::WrongMachine { machine });
    }
    if class != Some(ELFCLASS64) {
        return Err(KernelError::ThirtyTwoBit);
    }
    match u16_at(&header, 16) {
        ET_EXEC | ET_DYN => {}
        1 => {
            return Err(KernelError::NotExecutable {
                found: "an object file or module",
            });
        }
        4 => return Err(KernelError::NotExecutable { found: "a core dump" }),
        _ => {
            return Err(KernelError::NotExecutable {
                found: "of an unknown type",
            });
        }
    }
    let count = usize::from(u16_at(&header, 56));
    if usize::from(u16_at(&header, 54)) != PHDR_SIZE || count > MAX_PROGRAM_HEADERS {
        return Err(bad(format!(
            "{count} program headers of {} bytes each",
            u16_at(&header, 54)
        )));
    }
    let table = image.bytes("program header table", u64_at(&header, 32), count * PHDR_SIZE)?;
    let (table, _) = table.as_chunks::<PHDR_SIZE>();
    Ok((u64_at(&header, 24), table.iter().map(Segment::parse).collect()))
}

/// The segments that take memory, in the order of their addresses, none overlapping another.
///
/// Overlaps are refused because 128 headers could otherwise have a large file copied 128 times over.
fn loadable(segments: &[Segment]) -> Result<Vec<Segment>, KernelError> {
    let mut loads: Vec<Segment> = segments
        .iter()
        .filter(|s| s.kind == PT_LOAD && s.memory_size > 0)
        .copied()
        .collect();
    loads.sort_by_key(|segment| segment.address);
    if loads.is_empty() {
        return Err(bad("it has no segment to load"));
    }
    if let Some(segment) = loads.iter().find(|s| s.file_size > s.memory_size) {
        return Err(bad(format!(
            "the segment at {:#x} is larger in the file than in memory",
            segment.address
        )));
    }
    for pair in loads.windows(2) {
        if pair[0].end() > pair[1].address {
            let (first, second) = (pair[0].address, pair[1].address);
            return Err(bad(format!("the segments at {first:#x} and {second:#x} overlap")));
        }
    }
    Ok(loads)
}

/// The PVH entry point, from the first note segment that has one.
fn pvh_entry<F: Read + Seek + ReadVolatile>(
    image: &mut Image<'_, F>,
    segments: &[Segment],
) -> Result<Option<u64>, KernelError> {
    for segment in segments.iter().filter(|s| s.kind == PT_NOTE) {
        let bytes = segment.file_size.min(MAX_NOTE_BYTES) as usize;
        let notes = image.bytes("note segment", segment.offset, bytes)?;
        // gABI: notes are aligned to 4 bytes; GNU property notes, which say so in p_align, to 8.
        if let Some(entry) = pvh_note(&notes, if segment.align == 8 { 8 } else { 4 }) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// The PVH entry point in a note segment. A note that reaches past the segment's end ends the search.
fn pvh_note(notes: &[u8], align: usize) -> Option<u64> {
    let mut rest = notes;
    loop {
        let name_size = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        let desc_size = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?) as usize;
        let kind = u32::from_le_bytes(*rest.get(8..)?.first_chunk()?);
        let name = rest.get(12..12 + name_size)?;
        let desc_start = (12 + name_size).next_multiple_of(align);
        let desc = rest.get(desc_start..desc_start + desc_size)?;
        if kind == PVH_NOTE_TYPE && name == PVH_NOTE_NAME {
            // The entry point is a 32-bit physical address; 64-bit Linux before 4.21 wrote it as 8 bytes.
            return desc
                .first_chunk()
                .map(|address| u32::from_le_bytes(*address).into());
        }
        rest = rest.get((desc_start + desc_size).next_multiple_of(align)..)?;
    }
}

//! Kernel images for tests, built by hand.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Codec, EntryProtocol, ImageFormat, LoadedKernel};

pub(crate) const MIB: u64 = 1 << 20;

/// Guest memory of `bytes` bytes from 0 on.
pub(crate) fn guest(bytes: u64) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

/// What guest memory has at `address`.
pub(crate) fn bytes_at(mem: &GuestMemoryMmap<()>, address: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    mem.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// A kernel as if loaded from ELF at `start..end`.
pub(crate) fn loaded(start: u64, end: u64) -> LoadedKernel {
    LoadedKernel {
        entry: GuestAddress(start),
        protocol: EntryProtocol::Linux64,
        format: ImageFormat::Elf,
        start: GuestAddress(start),
        end: GuestAddress(end),
        setup_header: None,
        cmdline_max: 2047,
        initrd_max: u64::MAX,
    }
}

/// A program header to be.
#[derive(Clone)]
pub(crate) struct Segment {
    pub kind: u32,
    pub address: u64,
    pub data: Vec<u8>,
    pub memory_size: u64,
    pub align: u64,
}

/// An ELF file; the defaults are those of an x86-64 kernel at 1 MiB with 64 bytes of code.
#[derive(Clone)]
pub(crate) struct Elf {
    pub class: u8,
    pub endian: u8,
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub header_size: u16,
    pub segments: Vec<Segment>,
}

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;

impl Default for Elf {
    fn default() -> Self {
        let code = (1..=64).collect();
        Elf {
            class: 2,
            endian: 1,
            kind: 2,
            machine: 62,
            entry: MIB,
            header_size: 56,
            segments: vec![],
        }
        .with(MIB, code, 4096)
    }
}

impl Elf {
    pub(crate) fn with(mut self, address: u64, data: Vec<u8>, memory_size: u64) -> Self {
        self.segments.push(Segment {
            kind: PT_LOAD,
            address,
            data,
            memory_size,
            align: 4096,
        });
        self
    }

    pub(crate) fn with_note(mut self, data: Vec<u8>, align: u64) -> Self {
        self.segments.push(Segment {
            kind: PT_NOTE,
            address: 0,
            memory_size: data.len() as u64,
            data,
            align,
        });
        self
    }

    /// The default kernel with a PVH note that names `entry`.
    pub(crate) fn pvh(entry: u32) -> Self {
        Elf::default().with_note(note(b"Xen\0", 18, &entry.to_le_bytes(), 4), 4)
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = b"\x7fELF".to_vec();
        file.extend_from_slice(&[self.class, self.endian, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend_from_slice(&self.kind.to_le_bytes());
        file.extend_from_slice(&self.machine.to_le_bytes());
        file.extend_from_slice(&1u32.to_le_bytes());
        file.extend_from_slice(&self.entry.to_le_bytes());
        file.extend_from_slice(&64u64.to_le_bytes());
        file.extend_from_slice(&[0; 12]); // no sections, no flags
        for value in [64, self.header_size, self.segments.len() as u16, 64, 0, 0] {
            file.extend_from_slice(&value.to_le_bytes());
        }
        let mut offset = 64 + 56 * self.segments.len() as u64;
        for segment in &self.segments {
            file.extend_from_slice(&segment.kind.to_le_bytes());
            file.extend_from_slice(&7u32.to_le_bytes());
            let size = segment.data.len() as u64;
            // The virtual address, where Linux has its kernel, must not matter.
            let virtual_address = segment.address.wrapping_add(0xffff_ffff_8000_0000);
            for value in [
                offset,
                virtual_address,
                segment.address,
                size,
                segment.memory_size,
                segment.align,
            ] {
                file.extend_from_slice(&value.to_le_bytes());
            }
            offset += size;
        }
        for segment in &self.segments {
            file.extend_from_slice(&segment.data);
        }
        file
    }
}

/// One ELF note.
pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8], align: usize) -> Vec<u8> {
    let mut note = Vec::new();
    for value in [name.len() as u32, desc.len() as u32, kind] {
        note.extend_from_slice(&value.to_le_bytes());
    }
    note.extend_from_slice(name);
    note.resize(note.len().next_multiple_of(align), 0);
    note.extend_from_slice(desc);
    note.resize(note.len().next_multiple_of(align), 0);
    note
}

/// `data` compressed, with its length appended as the kernel's build does (gzip ends with it anyway).
pub(crate) fn compress(codec: Codec, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match codec {
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            return encoder.finish().unwrap();
        }
        Codec::Xz => {
            let mut options = lzma_rust2::XzOptions::with_preset(0);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut encoder = lzma_rust2::XzWriter::new(out, options).unwrap();
            encoder.write_all(data).unwrap();
            out = encoder.finish().unwrap();
        }
        Codec::Lz4 => {
            out.extend_from_slice(&[0x02, 0x21, 0x4c, 0x18]);
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                out.extend_from_slice(&(block.len() as u32).to_le_bytes());
                out.extend_from_slice(&block);
            }
        }
        Codec::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            out = ruzstd::encoding::compress_to_vec(data, level);
        }
    }
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out
}

/// A bzImage; the defaults are those of protocol 2.15, to be run at 2 MiB.
#[derive(Clone)]
pub(crate) struct BzImage {
    pub setup_sects: u8,
    pub version: u16,
    pub xloadflags: u16,
    pub pref_address: u64,
    pub init_size: u32,
    pub payload: Vec<u8>,
    pub payload_length: u32,
}

/// Where the payload lies in the protected-mode part; before it there is this much code.
pub(crate) const PAYLOAD_OFFSET: usize = 0x400;

impl BzImage {
    pub(crate) fn new(payload: Vec<u8>) -> Self {
        let payload_length = payload.len() as u32;
        BzImage {
            setup_sects: 1,
            version: 0x20f,
            xloadflags: 1,
            pref_address: 2 * MIB,
            init_size: MIB as u32,
            payload,
            payload_length,
        }
    }

    /// The part that is loaded when it unpacks itself.
    pub(crate) fn protected_mode(&self) -> Vec<u8> {
        let mut part: Vec<u8> = (0..PAYLOAD_OFFSET).map(|i| (i % 251) as u8).collect();
        part.extend_from_slice(&self.payload);
        part
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let sectors = if self.setup_sects == 0 {
            4
        } else {
            usize::from(self.setup_sects)
        };
        let mut file = vec![0; (1 + sectors) * 512];
        let kernel = self.protected_mode();
        let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[self.setup_sects]);
        put(0x1f4, &(kernel.len().div_ceil(16) as u32).to_le_bytes());
        put(0x1fe, &0xaa55u16.to_le_bytes());
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x234, &[1]);
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &2000u32.to_le_bytes());
        put(0x248, &(PAYLOAD_OFFSET as u32).to_le_bytes());
        put(0x24c, &self.payload_length.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        file.extend_from_slice(&kernel);
        file
    }
}

//! Decompression of a bzImage's payload: the formats, how each is told, and a decoder that never yields more than stated.

use std::fmt;
use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// A compression of Linux kernels that can be undone here (lib/decompress.c of Linux knows some more).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// CONFIG_KERNEL_GZIP.
    Gzip,
    /// CONFIG_KERNEL_XZ.
    Xz,
    /// CONFIG_KERNEL_LZ4: the "legacy" frame format of the lz4 tool.
    Lz4,
    /// CONFIG_KERNEL_ZSTD.
    Zstd,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Gzip => "gzip",
            Codec::Xz => "xz",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        })
    }
}

/// Magic number of the lz4 tool's legacy frames (lz4_Frame_format.md, "Legacy frame").
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// Every legacy block but the last decompresses to this many bytes, and none to more.
const LZ4_BLOCK: usize = 8 << 20;
/// LZ4_compressBound of a block: no block is longer.
const LZ4_COMPRESSED_BLOCK: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

/// Memory the xz decoder may take, in KiB: the kernel's build uses a 32 MiB dictionary (scripts/xz_wrap.sh), 128 MiB
/// allows others.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// Largest zstd window that Linux itself decompresses: ZSTD_WINDOWSIZE_MAX in lib/decompress_unzstd.c.
const ZSTD_WINDOW: u64 = 128 << 20;

impl Codec {
    /// How many first bytes tell the format.
    pub(super) const MAGIC_BYTES: usize = 6;

    /// The format of data that starts with `head`.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        // RFC 1952 §2.3.1 (method 8 follows the magic), xz file format §2.1.1.1, RFC 8878 §3.1.1.
        if head.starts_with(&[0x1f, 0x8b, 8]) {
            Some(Codec::Gzip)
        } else if head.starts_with(b"\xfd7zXZ\0") {
            Some(Codec::Xz)
        } else if head.starts_with(&LZ4_LEGACY_MAGIC) {
            Some(Codec::Lz4)
        } else if head.starts_with(&0xfd2f_b528u32.to_le_bytes()) {
            Some(Codec::Zstd)
        } else {
            None
        }
    }
}

/// Decompresses `source` to exactly `size` bytes; less or more is an error, and no more memory than `size` and the
/// decoder's window is taken. The caller bounds `size`.
///
/// # Errors
/// What the decoder, or the stated size, has against the data.
pub(super) fn unpack<R: Read>(codec: Codec, mut source: R, size: usize) -> Result<Vec<u8>, String> {
    let mut output = Vec::new();
    output
        .try_reserve_exact(size)
        .map_err(|_| format!("there is no memory for its {size} bytes"))?;
    match codec {
        Codec::Gzip => fill(&mut output, GzDecoder::new(source), size)?,
        Codec::Xz => fill(
            &mut output,
            XzReader::new_mem_limit(source, false, XZ_MEMORY_KIB),
            size,
        )?,
        Codec::Zstd => {
            let decoder = StreamingDecoder::new_with_max_window_size(source, ZSTD_WINDOW);
            fill(&mut output, decoder.map_err(|error| error.to_string())?, size)?;
        }
        Codec::Lz4 => {
            output.resize(size, 0);
            lz4_legacy(&mut source, &mut output).map_err(|error| error.to_string())?;
        }
    }
    Ok(output)
}

/// Reads `decoder` to its end, which must come after `size` bytes. Reading on past them makes it check its checksums.
fn fill(output: &mut Vec<u8>, decoder: impl Read, size: usize) -> Result<(), String> {
    let limit = size as u64 + 1;
    decoder
        .take(limit)
        .read_to_end(output)
        .map_err(|error| error.to_string())?;
    match output.len() {
        len if len == size => Ok(()),
        len if len < size => Err(format!("it ends after {len} of the {size} bytes that it states")),
        _ => Err(format!("it holds more than the {size} bytes that it states")),
    }
}

/// Decodes lz4's legacy format: the magic, then blocks, each a 32-bit length and that many compressed bytes.
fn lz4_legacy(source: &mut impl Read, output: &mut [u8]) -> io::Result<()> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut done = 0;
    let mut block = Vec::new();
    while let Some(word) = next_word(source)? {
        // The magic stands at the start, and again where the tool's outputs were joined.
        if word == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(word) as usize;
        if length == 0 || length > LZ4_COMPRESSED_BLOCK {
            return Err(invalid(format!("it has a block of {length} bytes")));
        }
        block.resize(length, 0);
        source.read_exact(&mut block)?;
        let end = output.len().min(done + LZ4_BLOCK);
        let room = output.get_mut(done..end).unwrap_or_default();
        done += lz4_flex::block::decompress_into(&block, room).map_err(|error| invalid(error.to_string()))?;
    }
    match output.len() - done {
        0 => Ok(()),
        missing => Err(invalid(format!(
            "it ends {missing} bytes before the size that it states"
        ))),
    }
}

/// The next four bytes, or nothing at the end of the data.
fn next_word(source: &mut impl Read) -> io::Result<Option<[u8; 4]>> {
    let mut word = Vec::with_capacity(4);
    source.take(4).read_to_end(&mut word)?;
    if word.is_empty() {
        return Ok(None);
    }
    word.try_into()
        .map(Some)
        .map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

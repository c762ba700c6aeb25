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
            let mut decoder = decoder.map_err(|error| error.to_string())?;
            fill(&mut output, &mut decoder, size)?;
            // ruzstd computes the checksum but leaves it to its user to compare. A frame need not have one.
            let stated = decoder.decoder.get_checksum_from_data();
            if stated.is_some() && stated != decoder.decoder.get_calculated_checksum() {
                return Err("its checksum is wrong".into());
            }
        }
        Codec::Lz4 => {
            output.resize(size, 0);
            lz4_legacy(&mut source, &mut output).map_err(|error| error.to_string())?;
        }
    }
    Ok(output)
}

/// Reads `decoder` to its end, which must come after `size` bytes. Reading on past them makes decoders check
/// their checksums.
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

#[cfg(test)]
mod tests {
    use super::super::images::compress;
    use super::*;

    const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Xz, Codec::Lz4, Codec::Zstd];

    /// `data` compressed, without the length that the kernel's build appends.
    fn stream(codec: Codec, data: &[u8]) -> Vec<u8> {
        let mut stream = compress(codec, data);
        if codec != Codec::Gzip {
            stream.truncate(stream.len() - 4);
        }
        stream
    }

    /// The fixtures were made by the tools and options of the kernel's build (scripts/Makefile.lib, scripts/xz_wrap.sh),
    /// `gzip -n -9`, `xz --check=crc32 --x86 --lzma2=dict=32MiB`, `lz4 -l -9` and `zstd -22 --ultra`, from standard input.
    #[test]
    fn the_output_of_the_real_tools_is_unpacked() {
        // 500 instructions `call`, all of the same function.
        let calls: Vec<u8> = (1..=500i32)
            .flat_map(|i| std::iter::once(0xe8).chain((0x10000 - 5 * i).to_le_bytes()))
            .collect();
        let fixtures: [&[u8]; 4] = [
            include_bytes!("fixtures/calls.gz"),
            include_bytes!("fixtures/calls.xz"),
            include_bytes!("fixtures/calls.lz4"),
            include_bytes!("fixtures/calls.zst"),
        ];
        for (codec, fixture) in CODECS.into_iter().zip(fixtures) {
            assert_eq!(Codec::of(fixture), Some(codec));
            assert!(unpack(codec, fixture, calls.len()).unwrap() == calls, "{codec}");
        }
    }

    #[test]
    fn more_or_less_than_stated_is_an_error() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i / 300) as u8).collect();
        for codec in CODECS {
            let stream = stream(codec, &data);
            assert!(unpack(codec, &stream[..], data.len()).unwrap() == data, "{codec}");
            for size in [0, 1, data.len() - 1, data.len() + 1, 2 * data.len()] {
                assert!(
                    unpack(codec, &stream[..], size).is_err(),
                    "{codec} to {size} bytes"
                );
            }
        }
    }

    #[test]
    fn a_stream_that_is_cut_short_is_an_error() {
        let data: Vec<u8> = (0..3000u32).map(|i| (i % 251) as u8).collect();
        for codec in CODECS {
            let stream = stream(codec, &data);
            for length in (0..stream.len()).step_by(7) {
                assert!(
                    unpack(codec, &stream[..length], data.len()).is_err(),
                    "{codec}, {length} bytes"
                );
            }
        }
    }

    #[test]
    fn a_checksum_that_is_wrong_is_an_error() {
        let data = vec![7; 3000];
        // The legacy lz4 format has none, and neither has ruzstd's encoder.
        for codec in [Codec::Gzip, Codec::Xz] {
            let mut stream = stream(codec, &data);
            // gzip's CRC is 8 bytes before the end; xz's check lies before its index and 12-byte footer.
            let at = if codec == Codec::Gzip {
                stream.len() - 8
            } else {
                stream.len() - 12 - 16
            };
            stream[at] ^= 1;
            assert!(unpack(codec, &stream[..], data.len()).is_err(), "{codec}");
        }
        let mut zstd = include_bytes!("fixtures/calls.zst").to_vec();
        *zstd.last_mut().unwrap() ^= 1;
        assert!(unpack(Codec::Zstd, &zstd[..], 2500).is_err());
    }

    #[test]
    fn lz4_has_blocks_of_8_mib() {
        let mut data = vec![0; LZ4_BLOCK + 1000];
        data[LZ4_BLOCK - 1..LZ4_BLOCK + 3].copy_from_slice(b"edge");
        let mut stream = stream(Codec::Lz4, &data);
        assert!(unpack(Codec::Lz4, &stream[..], data.len()).unwrap() == data);
        // A second frame, as `cat a.lz4 b.lz4` makes it.
        stream.extend(self::stream(Codec::Lz4, b"more"));
        data.extend_from_slice(b"more");
        assert!(unpack(Codec::Lz4, &stream[..], data.len()).unwrap() == data);
    }

    #[test]
    fn lz4_blocks_have_a_bounded_length() {
        for length in [0u32, LZ4_COMPRESSED_BLOCK as u32 + 1, u32::MAX] {
            let stream = [LZ4_LEGACY_MAGIC, length.to_le_bytes()].concat();
            let error = unpack(Codec::Lz4, &stream[..], 100).unwrap_err();
            assert_eq!(error, format!("it has a block of {length} bytes"));
        }
    }

    #[test]
    fn windows_are_bounded() {
        // A zstd frame header with a window of 2 GiB (RFC 8878 §3.1.1.1.2: exponent 21), and an xz stream that names
        // a dictionary of 4 GiB - 1 (xz format §5.3.1: property 40).
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0, 0];
        assert!(unpack(Codec::Zstd, &zstd[..], 100).is_err());
        let mut xz = stream(Codec::Xz, &[1; 100]);
        // Block header: size, flags, BCJ filter (id, size 0), LZMA2 filter (id, size 1, property), padding, CRC32.
        assert_eq!(xz[12..19], [xz[12], 1, 4, 0, 0x21, 1, xz[18]]);
        xz[18] = 40;
        let end = 12 + (usize::from(xz[12]) + 1) * 4;
        let crc = crc32(&xz[12..end - 4]);
        xz[end - 4..end].copy_from_slice(&crc.to_le_bytes());
        let error = unpack(Codec::Xz, &xz[..], 100).unwrap_err();
        assert!(error.contains("memory"), "{error}");
    }

    fn crc32(data: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        crc.sum()
    }
}

//! The file `state` of a snapshot: a header that says what it is, and one CBOR map (docs/snapshots.md).
//!
//! ```text
//!   0  magic           8 bytes
//!   8  format version  u32    ┐
//!  12  CRC-32          u32    │ little-endian; the CRC is of version, length and body
//!  16  body length     u64    ┘
//!  24  body            CBOR: field names are the tags, so fields can be added
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Like PNG's: a byte that is no text, and a line end that a transfer as text would change.
const MAGIC: [u8; 8] = *b"\x89POSADA\n";
/// The version that this posada writes. It reads this one and all before.
pub const VERSION: u32 = 1;
const HEADER: usize = 24;
/// Far more than the largest machine's state: a file given by mistake does not fill the host's memory.
const MAX_BODY: u64 = 256 << 20;

/// Why a state file cannot be read.
#[derive(Debug, Error)]
pub enum FormatError {
    /// The file cannot be read.
    #[error("cannot read '{path}': {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else.
    #[error("'{path}' is no snapshot of posada's", path = .0.display())]
    Foreign(PathBuf),
    /// From the future.
    #[error(
        "the snapshot '{path}' has format {found}, and this posada ({posada}) reads formats up to {VERSION}: restore it with \
         a newer one", path = path.display(), posada = env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Cut short, longer than it says, or with bits that have changed.
    #[error("the snapshot '{path}' is damaged: {what}; take it from a backup, or take a new one", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How one sees it.
        what: String,
    },
}

/// Writes a state file, and returns when it is on the disk.
pub fn write<T: Serialize>(path: &Path, state: &T) -> io::Result<()> {
    let body = cbor4ii::serde::to_vec(Vec::new(), state).map_err(io::Error::other)?;
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(checksum(VERSION, &body).to_le_bytes());
    header.extend((body.len() as u64).to_le_bytes());
    let mut file = File::create_new(path)?;
    file.write_all(&header)?;
    file.write_all(&body)?;
    file.sync_all()
}

/// Reads a state file.
///
/// # Errors
/// See [`FormatError`]: nothing of a file that is not whole is used.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, FormatError> {
    let unreadable = |source| FormatError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let damaged = |what: String| FormatError::Damaged {
        path: path.to_owned(),
        what,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut header = [0; HEADER];
    let got = read_up_to(&mut file, &mut header).map_err(unreadable)?;
    if got < MAGIC.len() || header[..MAGIC.len()] != MAGIC {
        return Err(FormatError::Foreign(path.to_owned()));
    }
    if got < HEADER {
        return Err(damaged("it ends within its header".to_owned()));
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (version, crc) = (word(8), word(12));
    if version > VERSION {
        return Err(FormatError::Newer {
            path: path.to_owned(),
            found: version,
        });
    }
    let length = u64::from(word(16)) | u64::from(word(20)) << 32;
    let mut body = Vec::new();
    file.take(MAX_BODY + 1)
        .read_to_end(&mut body)
        .map_err(unreadable)?;
    if body.len() as u64 != length {
        return Err(damaged(format!(
            "it has {} bytes where it says {length}",
            body.len()
        )));
    }
    if checksum(version, &body) != crc {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    cbor4ii::serde::from_slice(&body).map_err(|error| damaged(format!("it cannot be understood ({error})")))
}

fn checksum(version: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&version.to_le_bytes());
    hasher.update(&(body.len() as u64).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde::Deserialize;

    use super::*;
    use crate::config::VmConfig;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Then {
        name: String,
        bytes: Vec<u8>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        name: String,
        bytes: Vec<u8>,
        #[serde(default)]
        added: Option<u64>,
    }

    fn written() -> (tempfile::TempDir, PathBuf, Then) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let state = Then {
            name: "web".to_owned(),
            bytes: (0..=255).collect(),
        };
        write(&path, &state).unwrap();
        (directory, path, state)
    }

    #[test]
    fn what_is_written_is_read_and_a_newer_posada_reads_it_too() {
        let (_directory, path, state) = written();
        assert_eq!(read::<Then>(&path).unwrap(), state);
        let now: Now = read(&path).unwrap();
        assert_eq!((now.name, now.bytes, now.added), (state.name, state.bytes, None));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let (_directory, path, _) = written();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            let error = read::<Then>(&path).unwrap_err();
            assert!(
                !matches!(error, FormatError::Unreadable { .. }),
                "byte {at}: {error}"
            );
        }
    }

    #[test]
    fn a_file_cut_short_or_lengthened_is_found() {
        let (_directory, path, _) = written();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read::<Then>(&path).is_err(), "{length} bytes");
        }
        fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
        assert!(matches!(read::<Then>(&path), Err(FormatError::Damaged { .. })));
    }

    #[test]
    fn a_newer_format_is_refused_with_both_versions() {
        let (_directory, path, _) = written();
        let mut bytes = fs::read(&path).unwrap();
        bytes[8..12].copy_from_slice(&(VERSION + 1).to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let error = read::<Then>(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("format {}", VERSION + 1)), "{error}");
        assert!(error.contains(env!("CARGO_PKG_VERSION")), "{error}");
    }

    #[test]
    fn a_configuration_with_everything_comes_back_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let config: VmConfig = toml::from_str(
            r#"
            name = "web"
            cpus = 2
            memory = "512M"
            append = "quiet"
            boot = "pvh"
            rng = true
            host-kind = "pvm"
            vsock = { path = "v.sock", cid = 7 }
            balloon = { size = "64M", stats = 5 }
            [[disk]]
            path = "a,b.img"
            format = "raw"
            id = "root"
            engine = "sync"
            cache = "direct"
            bandwidth = "100M/s"
            iops = 7
            [[net]]
            user = true
            mac = "02:00:00:00:00:01"
            forward = ["tcp:8080:80", "udp:[::1]:53:5353"]
            "#,
        )
        .unwrap();
        write(&path, &config).unwrap();
        assert_eq!(read::<VmConfig>(&path).unwrap(), config);
    }
}

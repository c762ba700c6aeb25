//! A disk as its user describes it: `--disk PATH,key=value,...` or a `[[disk]]` table.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use devices::disk::{EngineKind, ImageOptions};
use devices::rate_limit::Rates;
use devices::virtio::block::MAX_QUEUES;
use devices::virtio::block::request::ID_BYTES;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::rate::{self, RateError};
use super::words::{self, WordError};
use super::{ByteRate, ByteSize};

/// For the help text.
pub const SYNTAX: &str = "PATH[,key=value,flag...]";
const WORDS: &str = "readonly, overlay, format, id, engine, cache, queues, iothread, bandwidth, \
    bandwidth-burst, bandwidth-once, iops, iops-burst and iops-once";

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest must not write.
    #[serde(default)]
    pub readonly: bool,
    /// A file of this guest's own for what it writes: the image is only read, and other guests may have it too.
    pub overlay: Option<PathBuf>,
    /// The image's format, instead of looking.
    pub format: Option<Format>,
    /// The serial number that the guest sees.
    pub id: Option<String>,
    /// How the image is read and written.
    pub engine: Option<EngineName>,
    /// What stands between guest and disk.
    pub cache: Option<Cache>,
    /// Request queues.
    pub queues: Option<u16>,
    /// Threads of its own instead of the one that all devices share.
    #[serde(default)]
    pub iothread: bool,
    /// Bytes in a second.
    pub bandwidth: Option<ByteRate>,
    /// Bytes at once.
    pub bandwidth_burst: Option<ByteSize>,
    /// Bytes beside these, once.
    pub bandwidth_once: Option<ByteSize>,
    /// Requests in a second.
    pub iops: Option<u64>,
    /// Requests at once.
    pub iops_burst: Option<u64>,
    /// Requests beside these, once.
    pub iops_once: Option<u64>,
}

/// A format of images. (That there is one is what a user can rely on: a raw image may begin like any other.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Format {
    /// Byte for byte what the guest sees.
    Raw,
}

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EngineName(pub EngineKind);

/// What stands between guest and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cache {
    /// The host's page cache; the guest's flushes reach the disk.
    #[default]
    Writeback,
    /// Nothing (O_DIRECT).
    Direct,
}

/// What is wrong with a disk's description.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DiskConfigError {
    /// A format that posada does not read.
    #[error(
        "the format '{0}' is not supported: posada reads raw images; convert it with 'qemu-img convert -O raw'"
    )]
    Format(String),
    /// An engine that there is not.
    #[error("there is no engine '{0}': it is io_uring or sync")]
    Engine(String),
    /// A cache that there is not.
    #[error("there is no cache '{0}': it is writeback or direct")]
    Cache(String),
    /// An id that does not fit in a serial number, or is hard to read.
    #[error("the id '{0}' is not one: use 1 to {ID_BYTES} printable ASCII characters without blanks")]
    Id(String),
    /// No queue, or more than there can be.
    #[error("{0} queues: a disk has 1 to {MAX_QUEUES}")]
    Queues(u16),
    /// What cannot be written needs no file for it.
    #[error("readonly and overlay are two ways to leave the image as it is: leave one of them out")]
    ReadonlyOverlay,
    /// A rate or burst that cannot be.
    #[error(transparent)]
    Rate(#[from] RateError),
}

impl FromStr for DiskConfig {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, words) = words::split(text, "the path of a disk image")?;
        let mut disk = Self {
            path: path.into(),
            ..Default::default()
        };
        for word in words {
            match word.key() {
                "readonly" => disk.readonly = word.flag()?,
                "overlay" => disk.overlay = Some(word.value()?),
                "format" => disk.format = Some(word.value()?),
                "id" => disk.id = Some(word.value()?),
                "engine" => disk.engine = Some(word.value()?),
                "cache" => disk.cache = Some(word.value()?),
                "queues" => disk.queues = Some(word.value()?),
                "iothread" => disk.iothread = word.flag()?,
                "bandwidth" => disk.bandwidth = Some(word.value()?),
                "bandwidth-burst" => disk.bandwidth_burst = Some(word.value()?),
                "bandwidth-once" => disk.bandwidth_once = Some(word.value()?),
                "iops" => disk.iops = Some(word.value()?),
                "iops-burst" => disk.iops_burst = Some(word.value()?),
                "iops-once" => disk.iops_once = Some(word.value()?),
                _ => return Err(word.unknown(WORDS)),
            }
        }
        Ok(disk)
    }
}

impl DiskConfig {
    /// What it is called: its id, or the number that it has among those of its guest.
    pub fn label(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("disk{index}"))
    }

    /// Checks all that can be checked without the host.
    pub fn check(&self) -> Result<(), DiskConfigError> {
        if let Some(id) = &self.id
            && !((1..=ID_BYTES).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_graphic()))
        {
            return Err(DiskConfigError::Id(id.clone()));
        }
        if !(1..=MAX_QUEUES).contains(&self.queues()) {
            return Err(DiskConfigError::Queues(self.queues()));
        }
        if self.readonly && self.overlay.is_some() {
            return Err(DiskConfigError::ReadonlyOverlay);
        }
        rate::check(
            ("bandwidth", self.bandwidth.map(|rate| rate.0)),
            ("bandwidth-burst", self.bandwidth_burst.map(|size| size.0)),
            ("bandwidth-once", self.bandwidth_once.map(|size| size.0)),
        )?;
        Ok(rate::check(
            ("iops", self.iops),
            ("iops-burst", self.iops_burst),
            ("iops-once", self.iops_once),
        )?)
    }

    /// Request queues.
    pub fn queues(&self) -> u16 {
        self.queues.unwrap_or(1)
    }

    /// The file that the guest's writes go to, if it can write.
    pub fn written(&self) -> Option<&Path> {
        let file = self.overlay.as_ref().unwrap_or(&self.path);
        (!self.readonly).then_some(file)
    }

    /// Its files.
    pub fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        std::iter::once(&mut self.path).chain(&mut self.overlay)
    }

    /// How the image is to be opened.
    pub fn image_options(&self) -> ImageOptions {
        ImageOptions {
            readonly: self.readonly,
            direct: self.cache == Some(Cache::Direct),
            raw: self.format.is_some(),
        }
    }

    /// The limit on what passes.
    pub fn limit(&self) -> Rates {
        Rates {
            bytes: rate::rate(
                self.bandwidth.map(|rate| rate.0),
                self.bandwidth_burst.map(|size| size.0),
                self.bandwidth_once.map(|size| size.0),
            ),
            operations: rate::rate(self.iops, self.iops_burst, self.iops_once),
        }
    }

    /// The same with this limit.
    #[must_use]
    pub fn limited(self, rates: Rates) -> Self {
        let (bandwidth, bandwidth_burst, bandwidth_once) = rate::written(rates.bytes);
        let (iops, iops_burst, iops_once) = rate::written(rates.operations);
        Self {
            bandwidth: bandwidth.map(ByteRate),
            bandwidth_burst: bandwidth_burst.map(ByteSize),
            bandwidth_once: bandwidth_once.map(ByteSize),
            iops,
            iops_burst,
            iops_once,
            ..self
        }
    }
}

impl FromStr for Format {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            _ => Err(DiskConfigError::Format(text.to_owned())),
        }
    }
}

impl FromStr for EngineName {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "io_uring" => Ok(Self(EngineKind::Uring)),
            "sync" => Ok(Self(EngineKind::Sync)),
            _ => Err(DiskConfigError::Engine(text.to_owned())),
        }
    }
}

impl FromStr for Cache {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "writeback" => Ok(Self::Writeback),
            "direct" => Ok(Self::Direct),
            _ => Err(DiskConfigError::Cache(text.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
        })
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            EngineKind::Uring => "io_uring",
            EngineKind::Sync => "sync",
        })
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writeback => "writeback",
            Self::Direct => "direct",
        })
    }
}

words::is_text!(Format, DiskConfigError);
words::is_text!(EngineName, DiskConfigError);
words::is_text!(Cache, DiskConfigError);

#[cfg(test)]
mod tests {
    use devices::rate_limit::Rate;

    use super::*;

    fn disk(text: &str) -> DiskConfig {
        text.parse().unwrap()
    }

    const ALL: &str = "/d.img,readonly,format=raw,id=root,engine=sync,cache=direct,queues=2,iothread,\
        bandwidth=10M/s,bandwidth-burst=1M,bandwidth-once=64M,iops=100,iops-burst=5,iops-once=500";

    #[test]
    fn flag_and_table_say_the_same_things() {
        let table = "path = '/d.img'\nreadonly = true\nformat = 'raw'\nid = 'root'\nengine = 'sync'\ncache = 'direct'\n\
            queues = 2\niothread = true\nbandwidth = '10M/s'\nbandwidth-burst = '1M'\nbandwidth-once = '64M'\n\
            iops = 100\niops-burst = 5\niops-once = 500\n";
        let disk = disk(ALL);
        assert_eq!(toml::from_str::<DiskConfig>(table).unwrap(), disk);
        disk.check().unwrap();
        let options = disk.image_options();
        assert!(options.readonly && options.direct && options.raw);
        let limit = Rates {
            bytes: Some(Rate {
                per_second: 10 << 20,
                burst: 1 << 20,
                once: 64 << 20,
            }),
            operations: Some(Rate {
                per_second: 100,
                burst: 5,
                once: 500,
            }),
        };
        assert_eq!(disk.limit(), limit);
        assert_eq!(disk.clone().limited(limit), disk);
    }

    #[test]
    fn a_path_is_enough() {
        let disk = disk("/d.img");
        disk.check().unwrap();
        assert_eq!(disk.queues(), 1);
        assert_eq!(disk.image_options(), ImageOptions::default());
        assert_eq!(disk.limit(), Rates::default());
        assert_eq!(disk.clone().limited(Rates::default()), disk);
    }

    #[test]
    fn an_overlay_is_a_path() {
        let disk = disk("/d.img,overlay=/o,,1");
        assert_eq!(disk.overlay.as_deref(), Some(Path::new("/o,1")));
        disk.check().unwrap();
        let table = "path = '/d.img'\noverlay = '/o,1'\n";
        assert_eq!(toml::from_str::<DiskConfig>(table).unwrap(), disk);
    }

    #[test]
    fn what_is_written_wrongly_is_named() {
        for (text, named) in [
            ("", "the path of a disk image"),
            ("p,read-only", "'read-only'"),
            ("p,readonly=yes", "'readonly' takes no value"),
            ("p,engine", "engine=..."),
            ("p,overlay", "overlay=..."),
            ("p,engine=aio", "io_uring or sync"),
            ("p,cache=none", "writeback or direct"),
            ("p,format=qcow2", "qemu-img convert"),
            ("p,queues=many", "queues: "),
            ("p,queues=65536", "queues: "),
            ("p,bandwidth=10M", "100M/s"),
            ("p,iops=-1", "iops: "),
            ("p,id=a,id=b", "'id' is there twice"),
        ] {
            let error = text.parse::<DiskConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, named) in [
            ("p,id=", "the id ''"),
            ("p,id=123456789012345678901", "1 to 20"),
            ("p,id=a b", "without blanks"),
            ("p,id=ü", "printable"),
            ("p,queues=0", "0 queues"),
            ("p,queues=17", "1 to 16"),
            ("p,bandwidth=0/s", "bandwidth of 0"),
            ("p,iops=0", "iops of 0"),
            ("p,iops=1,iops-burst=0", "iops-burst of 0"),
            ("p,iops-burst=5", "give iops too"),
            ("p,iops-once=5", "give iops too"),
            ("p,readonly,overlay=o", "leave one of them out"),
            ("p,bandwidth-burst=1M", "give bandwidth too"),
        ] {
            let error = disk(text).check().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}

//! What a user asks of a guest: one model, filled from command-line flags, a TOML file, or both.
//!
//! A field is `None` where the user said nothing; the default is in the method that has the field's name.

mod as_toml;
pub mod balloon;
pub mod cpu_template;
pub mod disk;
mod error;
mod kernel_line;
pub mod mmds;
pub mod net;
mod overrides;
mod rate;
mod size;
#[cfg(test)]
mod tests;
pub mod vsock;
mod words;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Not;
use std::path::{self, Path, PathBuf};

use arch_x86_64::cpuid::CpuTopology;
use arch_x86_64::layout;
use serde::{Deserialize, Serialize};

use crate::host::HostKind;

pub use balloon::{BalloonConfig, BalloonConfigError};
pub use cpu_template::CpuTemplate;
pub use disk::{Cache, DiskConfig};
pub use error::ConfigError;
pub use mmds::{MmdsConfig, MmdsConfigError, MmdsVersion};
pub use net::NetConfig;
pub use overrides::{Overrides, Replacement};
pub use rate::{ByteRate, ByteRateError, RateError};
pub use size::{ByteSize, ByteSizeError};
pub use vsock::{VsockConfig, VsockConfigError};
pub use words::WordError;

/// The page size of x86-64 in bytes; guest memory is a multiple of it.
pub const PAGE_SIZE: u64 = 4096;
/// What is below is less than any kernel needs for itself and the tables in low memory.
const MIN_MEMORY: ByteSize = ByteSize(2 << 20);
const DEFAULT_MEMORY: ByteSize = ByteSize(128 << 20);
const DEFAULT_NAME: &str = "guest";
const MAX_NAME: usize = 64;
/// Far more than all settings take; a device or a disk image given by mistake does not fill the host's memory.
const MAX_FILE: u64 = 1 << 20;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// PVH where the kernel has a PVH entry point, else the Linux 64-bit boot protocol.
    #[default]
    Auto,
    /// The PVH entry point of an ELF kernel.
    Pvh,
    /// The 64-bit entry point of the Linux boot protocol.
    Linux64,
}

/// A guest as its user described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::Args)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct VmConfig {
    /// Kernel: an ELF vmlinux or a bzImage [default: the tiny guest that `make guest` builds]
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM file system, handed to the kernel as it is
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line; replaces the default one
    #[arg(long, value_name = "STR", conflicts_with = "append")]
    pub cmdline: Option<String>,

    /// Kernel options to add to the default command line
    #[arg(long, value_name = "STR")]
    pub append: Option<String>,

    /// Number of virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,

    /// Have the CPUs be cores' threads, two of each
    #[arg(long)]
    #[serde(skip_serializing_if = "Not::not")]
    pub smt: bool,

    /// Guest memory, such as 512M or 2G [default: 128M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Name of the guest, for messages [default: guest]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// How the kernel is entered [default: auto]
    #[arg(long, value_name = "PROTOCOL", hide_default_value = true)]
    pub boot: Option<Boot>,

    /// Give the guest a source of random numbers (virtio-rng)
    #[arg(long)]
    pub rng: bool,

    /// Give the guest a disk: a raw image or a block device; as often as needed. Keys and flags: readonly, overlay=FILE,
    /// format=raw, id=NAME, engine=io_uring|sync, cache=writeback|direct, queues=N, iothread, bandwidth=SIZE/s,
    /// bandwidth-burst=SIZE, bandwidth-once=SIZE, iops=N, iops-burst=N, iops-once=N
    #[arg(long = "disk", value_name = disk::SYNTAX)]
    #[serde(rename = "disk")]
    pub disks: Vec<DiskConfig>,

    /// Streams to and from the guest, by a Unix socket at PATH, or in the guest's own directory; the tiny guest has it by default
    /// [default: cid=3]
    #[arg(long, value_name = vsock::SYNTAX, num_args = 0..=1, default_missing_value = "")]
    pub vsock: Option<VsockConfig>,

    /// A memory balloon: pages that the guest does without go back to the host
    #[arg(long, value_name = balloon::SYNTAX)]
    pub balloon: Option<BalloonConfig>,

    /// Connect the guest to a network: a tap, or user for a network without privileges; as often as needed. Keys: id=NAME, mac=MAC,
    /// mtu=N, queues=N, forward=tcp:HOSTPORT:GUESTPORT, bandwidth=SIZE/s, bandwidth-burst=SIZE, bandwidth-once=SIZE,
    /// pps=N, pps-burst=N, pps-once=N, and for what is sent tx-bandwidth=SIZE/s, ...
    #[arg(long = "net", value_name = net::SYNTAX)]
    #[serde(rename = "net")]
    pub nets: Vec<NetConfig>,

    /// Tell the guest on a network what is put for it. Keys and flags: net=ID, version=V1|V2, address=ADDRESS, imds-compat
    #[arg(long, value_name = mmds::SYNTAX)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmds: Option<MmdsConfig>,

    /// Say when the guest writes 123 to the byte at 0xc0000000, as Firecracker's guests do when they have booted
    #[arg(long)]
    #[serde(skip_serializing_if = "Not::not")]
    pub boot_timer: bool,

    /// The kernel is told of its virtio devices on its command line, whether or not it finds them in ACPI.
    #[arg(skip)]
    #[serde(skip)]
    pub lists_devices: bool,

    /// What kind of KVM the host has, instead of finding out
    #[arg(long, value_name = "KIND")]
    pub host_kind: Option<HostKind>,

    /// What the guest's CPUs show of the host's, in a file: a custom CPU template of Firecracker's
    #[arg(long, value_name = "FILE.json", value_parser = CpuTemplate::from_file)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

impl VmConfig {
    /// Reads a TOML file. Relative paths in it are relative to the file's own directory.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
            .map_err(|source| ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
        if text.len() as u64 > MAX_FILE {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(&text, span.start)),
            message: explain(error.message()),
        })?;
        if config.cmdline.is_some() && config.append.is_some() {
            return Err(ConfigError::CmdlineAndAppend);
        }
        if let Some(directory) = path.parent() {
            for path in config.paths() {
                *path = directory.join(&*path);
            }
        }
        Ok(config)
    }

    /// The same, with paths that mean the same whatever the working directory is.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn with_absolute_paths(mut self) -> io::Result<Self> {
        for path in self.paths() {
            *path = path::absolute(&*path)?;
        }
        Ok(self)
    }

    fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = [&mut self.kernel, &mut self.initrd].into_iter().flatten();
        let disks = self.disks.iter_mut().flat_map(DiskConfig::paths);
        let vsock = self.vsock.iter_mut().filter_map(|vsock| vsock.path.as_mut());
        files.chain(disks).chain(vsock)
    }

    /// These settings, and where they say nothing, those of `base`.
    pub fn or(self, base: Self) -> Self {
        let (cmdline, append) = match (self.cmdline, self.append) {
            (None, None) => (base.cmdline, base.append),
            said => said,
        };
        let initrd = match (&self.kernel, self.initrd) {
            (Some(_), initrd) => initrd,
            (None, initrd) => initrd.or(base.initrd),
        };
        Self {
            kernel: self.kernel.or(base.kernel),
            initrd,
            cmdline,
            append,
            cpus: self.cpus.or(base.cpus),
            smt: self.smt || base.smt,
            memory: self.memory.or(base.memory),
            name: self.name.or(base.name),
            boot: self.boot.or(base.boot),
            rng: self.rng || base.rng,
            boot_timer: self.boot_timer || base.boot_timer,
            lists_devices: self.lists_devices || base.lists_devices,
            disks: if self.disks.is_empty() {
                base.disks
            } else {
                self.disks
            },
            vsock: self.vsock.or(base.vsock),
            balloon: self.balloon.or(base.balloon),
            nets: if self.nets.is_empty() {
                base.nets
            } else {
                self.nets
            },
            mmds: self.mmds.or(base.mmds),
            host_kind: self.host_kind.or(base.host_kind),
            cpu_template: self.cpu_template.or(base.cpu_template),
        }
    }

    /// Checks all that can be checked without the host: ranges, names, texts.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.cmdline.is_some() && self.append.is_some() {
            return Err(ConfigError::CmdlineAndAppend);
        }
        if self.cpus() == 0 || self.cpus() > layout::MAX_CPUS {
            return Err(ConfigError::Cpus(self.cpus()));
        }
        if self.smt && self.cpus() > 1 && !self.cpus().is_multiple_of(2) {
            return Err(ConfigError::HalfCore(self.cpus()));
        }
        let memory = self.memory();
        if !memory.0.is_multiple_of(PAGE_SIZE) {
            return Err(ConfigError::MemoryNotPages(memory));
        }
        if memory < MIN_MEMORY {
            return Err(ConfigError::MemoryTooSmall(memory));
        }
        for (field, text) in [("cmdline", &self.cmdline), ("append", &self.append)] {
            if text.as_ref().is_some_and(|text| text.contains('\0')) {
                return Err(ConfigError::Nul(field));
            }
        }
        if let Some(vsock) = &self.vsock {
            vsock.check()?;
        }
        if let Some(balloon) = &self.balloon {
            balloon.check(memory)?;
        }
        check_name(self.name())?;
        self.check_disks()?;
        self.check_nets()?;
        Ok(self.mmds.as_ref().map_or(Ok(()), |mmds| mmds.check(&self.nets))?)
    }

    fn check_disks(&self) -> Result<(), ConfigError> {
        for (index, disk) in self.disks.iter().enumerate() {
            disk.check().map_err(|source| ConfigError::Disk {
                path: disk.path.clone(),
                source,
            })?;
            if let Some(id) = &disk.id
                && self.disks[..index].iter().any(|other| other.id == disk.id)
            {
                return Err(ConfigError::DiskIdTwice(id.clone()));
            }
        }
        Ok(())
    }

    fn check_nets(&self) -> Result<(), ConfigError> {
        for (index, net) in self.nets.iter().enumerate() {
            net.check().map_err(|source| ConfigError::Net {
                net: net.to_string(),
                source,
            })?;
            let mac = self.mac(index);
            if (0..index).any(|other| self.mac(other) == mac) {
                return Err(ConfigError::MacTwice(mac));
            }
            if let Some(tap) = &net.tap
                && self.nets[..index].iter().any(|other| other.tap == net.tap)
            {
                return Err(ConfigError::TapTwice(tap.clone()));
            }
        }
        Ok(())
    }

    /// The guest's address in network number `index`: given, or the same each time for a guest of this name.
    pub fn mac(&self, index: usize) -> net::MacAddress {
        let given = self.nets.get(index).and_then(|net| net.mac);
        given.unwrap_or_else(|| net::MacAddress::derived(self.name(), index))
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.cpus.unwrap_or(1)
    }

    /// How the vCPUs are arranged.
    pub fn cpu_topology(&self) -> CpuTopology {
        CpuTopology {
            cpus: self.cpus(),
            smt: self.smt,
        }
    }

    /// Guest memory in bytes.
    pub fn memory(&self) -> ByteSize {
        self.memory.unwrap_or(DEFAULT_MEMORY)
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(DEFAULT_NAME)
    }

    /// How the kernel is entered.
    pub fn boot(&self) -> Boot {
        self.boot.unwrap_or_default()
    }

    /// Number of virtio devices.
    pub fn virtio_devices(&self) -> usize {
        let single = [self.vsock.is_some(), self.balloon.is_some(), self.rng];
        self.disks.len() + self.nets.len() + single.into_iter().filter(|there| *there).count()
    }
}

/// A name is used in file and socket names, and by people in shells.
fn check_name(name: &str) -> Result<(), ConfigError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    if fits {
        Ok(())
    } else {
        Err(ConfigError::Name(name.to_owned()))
    }
}

/// What the parser says, in words of this file's.
fn explain(message: &str) -> String {
    match message {
        "invalid type: map, expected a sequence" => {
            "each disk and each network has a table of its own: write [[disk]] or [[net]], with two brackets"
                .to_owned()
        }
        other => other.replace('\n', " "),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

//! What can be wrong with a configuration, each a sentence for its user.

use std::io;
use std::path::PathBuf;

use arch_x86_64::layout;
use thiserror::Error;

use super::{
    BalloonConfigError, ByteSize, MAX_FILE, MAX_NAME, MIN_MEMORY, MmdsConfigError, PAGE_SIZE,
    VsockConfigError, WordError, disk, net,
};

/// What is wrong with a configuration. Each message names the setting, the cause and the remedy.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config file '{path}': {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long to be what it should.
    #[error("the config file '{path}' is longer than {max} KiB: it must be a TOML file of settings", path = .0.display(), max = MAX_FILE >> 10)]
    TooLong(PathBuf),
    /// The file is no TOML, or names a key that does not exist, or gives one a value of the wrong type.
    #[error("{path}:{line}: {message}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// Both ways to say what the command line is.
    #[error("cmdline replaces the default command line and append adds to it: give one of the two")]
    CmdlineAndAppend,
    /// No CPU, or more than posada can describe to a guest.
    #[error("{0} CPUs: a guest has 1 to {max}", max = layout::MAX_CPUS)]
    Cpus(u32),
    /// A core with one thread among those with two.
    #[error("{0} CPUs: with smt, a guest has one or an even number, two for each core")]
    HalfCore(u32),
    /// Memory that is no whole number of pages.
    #[error("memory of {0}: it must be a multiple of the page size, {PAGE_SIZE} bytes")]
    MemoryNotPages(ByteSize),
    /// Too little memory for any guest.
    #[error("memory of {0}: a guest needs at least {MIN_MEMORY}")]
    MemoryTooSmall(ByteSize),
    /// More virtio devices than there are interrupt lines.
    #[error("{0} virtio devices: a guest has at most {max}", max = layout::VIRTIO_IRQS.len())]
    TooManyDevices(usize),
    /// A disk that cannot be.
    #[error("the disk '{path}': {source}", path = path.display())]
    Disk {
        /// Its image.
        path: PathBuf,
        /// What is wrong with it.
        source: disk::DiskConfigError,
    },
    /// Two disks of one name.
    #[error("two disks have the id '{0}': give each its own")]
    DiskIdTwice(String),
    /// A vsock device that cannot be.
    #[error("vsock: {0}")]
    Vsock(#[from] VsockConfigError),
    /// A balloon that cannot be.
    #[error("balloon: {0}")]
    Balloon(#[from] BalloonConfigError),
    /// A network that cannot be.
    #[error("the network '{net}': {source}")]
    Net {
        /// Its tap, or "user".
        net: String,
        /// What is wrong with it.
        source: net::NetConfigError,
    },
    /// A metadata service that cannot be.
    #[error("mmds: {0}")]
    Mmds(#[from] MmdsConfigError),
    /// Two networks on one tap.
    #[error("two networks are on the tap '{0}': give each its own")]
    TapTwice(String),
    /// Two networks of one address.
    #[error("two networks have the MAC address {0}: give each its own")]
    MacTwice(net::MacAddress),
    /// Something of a snapshot's is replaced that there is not.
    #[error("the snapshot's guest has no {what} '{which}': `posada restore --help` says how they are named")]
    NothingToReplace {
        /// A disk, a network, ...
        what: &'static str,
        /// What it was called.
        which: String,
    },
    /// What replaces a disk is not described as it should be.
    #[error("the disk '{which}': {source}")]
    Replacement {
        /// Which disk.
        which: String,
        /// What is wrong.
        source: WordError,
    },
    /// A NUL would end the command line where the user did not.
    #[error("{0} has a NUL character, which a kernel command line cannot have")]
    Nul(&'static str),
    /// A name that could not be part of a file name.
    #[error(
        "'{0}' is not a name: use 1 to {MAX_NAME} letters, digits, '.', '_' or '-', the first no '.' or '-'"
    )]
    Name(String),
}

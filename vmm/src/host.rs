//! The host's KVM: opening it, and telling which kind it is.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_ioctls::Kvm;
use nix::unistd::{Gid, Group};
use serde::Deserialize;
use thiserror::Error;

use crate::pvm;

const DEVICE: &str = "/dev/kvm";
/// The only version of the API there has been since Linux 2.6.22; KVM's documentation asks to refuse others.
const API_VERSION: i32 = 12;

/// What runs the guest's kernel code. Chosen once, when the machine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// VT-x or AMD-V: the CPU itself.
    Hardware,
    /// kvm-pvm: KVM's instruction emulator, with help from posada.
    Pvm,
}

impl HostKind {
    /// The kind of this host.
    pub fn detect() -> Self {
        if pvm::is_pvm_host() {
            Self::Pvm
        } else {
            Self::Hardware
        }
    }
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware (VT-x or AMD-V)",
            Self::Pvm => "pvm (kvm-pvm: the guest's kernel is interpreted)",
        })
    }
}

/// Why the host's KVM cannot be used.
#[derive(Debug, Error)]
pub enum HostError {
    /// There is no device file.
    #[error(
        "there is no {DEVICE}: load the kernel module kvm_intel or kvm_amd, and enable virtualization \
         in the firmware (in a virtual machine: nested virtualization on its host)"
    )]
    Missing,
    /// The user may not open it.
    #[error(
        "no permission to open {DEVICE}: it belongs to the group '{group}'; \
         run 'sudo usermod -aG {group} $USER' and log in again"
    )]
    Permission {
        /// The group that may.
        group: String,
    },
    /// Opening it failed otherwise.
    #[error("cannot open {DEVICE}: {0}")]
    Open(io::Error),
    /// A KVM of another age.
    #[error("{DEVICE} speaks version {0} of the KVM API, posada {API_VERSION}: another kernel is needed")]
    ApiVersion(i32),
}

/// Opens the host's KVM.
pub fn open() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Missing,
        libc::EACCES | libc::EPERM => HostError::Permission {
            group: group_of(Path::new(DEVICE)),
        },
        errno => HostError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(HostError::ApiVersion(other)),
    }
}

fn group_of(path: &Path) -> String {
    let gid = path.metadata().map(|metadata| metadata.gid());
    let group = gid
        .ok()
        .and_then(|gid| Group::from_gid(Gid::from_raw(gid)).ok().flatten());
    group.map_or_else(|| "kvm".to_owned(), |group| group.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_group_of_a_file() {
        assert_eq!(group_of(Path::new("/proc/version")), "root");
        assert_eq!(group_of(Path::new("/nonexistent")), "kvm");
    }
}

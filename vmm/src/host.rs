//! The host's KVM: opening it, and telling which kind it is.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pvm;

const DEVICE: &str = "/dev/kvm";
/// The only version of the API there has been since Linux 2.6.22; KVM's documentation asks to refuse others.
const API_VERSION: i32 = 12;

/// What runs the guest's kernel code. Chosen once, when the machine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
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
    /// Only root may open it. To join root's group would be too much, and without the group's permissions no help.
    #[error(
        "no permission to open {DEVICE}: only root has it; give it to the group kvm with \
         'sudo chgrp kvm {DEVICE} && sudo chmod g+rw {DEVICE}', run 'sudo usermod -aG kvm $USER' and log in again"
    )]
    RootOnly,
    /// Opening it failed otherwise.
    #[error("cannot open {DEVICE}: {0}")]
    Open(io::Error),
    /// Something else is there.
    #[error(
        "{DEVICE} is not KVM's: it does not answer as KVM does; run 'modprobe kvm' and look at {DEVICE} again"
    )]
    NotKvm,
    /// A KVM of another age.
    #[error("{DEVICE} speaks version {0} of the KVM API, posada {API_VERSION}: another kernel is needed")]
    ApiVersion(i32),
}

/// Opens the host's KVM.
pub fn open() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => HostError::Missing,
        libc::EACCES | libc::EPERM => no_permission(Path::new(DEVICE)),
        errno => HostError::Open(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        ..0 => Err(HostError::NotKvm),
        other => Err(HostError::ApiVersion(other)),
    }
}

fn no_permission(device: &Path) -> HostError {
    const ROOT: u32 = 0;
    const GROUP_READ_WRITE: u32 = 0o060;
    let group = match device.metadata() {
        Ok(metadata) if metadata.gid() == ROOT || metadata.mode() & GROUP_READ_WRITE != GROUP_READ_WRITE => {
            return HostError::RootOnly;
        }
        Ok(metadata) => group_in(Path::new("/etc/group"), metadata.gid()),
        Err(_) => "kvm".to_owned(),
    };
    HostError::Permission { group }
}

/// The name of a group, or its number, which does as well, where this file does not have it: group(5). Not by the C library, which
/// would load what only a dynamically linked program has.
fn group_in(file: &Path, number: u32) -> String {
    let number = number.to_string();
    let groups = fs::read_to_string(file).unwrap_or_default();
    let mut groups = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let group = groups.find(|group| group.get(2) == Some(&number.as_str()));
    group.map_or_else(|| number.clone(), |group| group[0].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_open_it_is_told_the_group_to_join() {
        let told = no_permission(Path::new("/nonexistent")).to_string();
        assert!(told.contains("usermod -aG kvm $USER"), "{told}");
    }

    #[test]
    fn a_group_is_named_as_the_file_of_groups_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("group");
        fs::write(&file, "root:x:0:\n# 104\nkvm:x:104:ada,bob\nlong:x:1040:\n").unwrap();
        assert_eq!(group_in(&file, 104), "kvm");
        assert_eq!(group_in(&file, 7), "7");
        assert_eq!(group_in(&directory.path().join("none"), 104), "104");
    }

    #[test]
    fn nobody_is_told_to_join_roots_group() {
        let told = no_permission(Path::new("/proc/version")).to_string();
        assert!(
            told.contains("chgrp kvm") && told.contains("usermod -aG kvm $USER"),
            "{told}"
        );
    }
}

//! What a running guest tells of itself.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ByteSize, VmConfig};
use crate::console::End;
use crate::error::{Doing, Error};
use crate::host::HostKind;
use crate::lifecycle::Phase;
use crate::runtime::remains::Ending;
use crate::vm::RunningVm;

/// A guest that this host runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestInfo {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Whether it runs.
    pub state: Phase,
    /// Seconds since it was started or restored.
    pub uptime: u64,
    /// What runs its kernel code.
    pub host_kind: HostKind,
    /// Number of its virtual CPUs.
    pub cpus: u32,
    /// How much memory it has.
    pub memory: ByteSize,
    /// What it was built from, with absolute paths.
    pub config: VmConfig,
    /// How it has ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Ending>,
}

impl GuestInfo {
    /// Of this process's guest.
    ///
    /// # Errors
    /// The process's directory is gone.
    pub fn of(vm: &RunningVm) -> Result<Self, Error> {
        Self::new(
            (*vm.config()).clone(),
            vm.lifecycle().phase(),
            vm.host_kind(),
            vm.age(),
        )
    }

    /// Of the guest that this process is to have, for which it has been there for so long.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub fn to_be(config: VmConfig, age: Duration) -> Result<Self, Error> {
        let host_kind = config.host_kind.unwrap_or_else(HostKind::detect);
        Self::new(config, Phase::Created, host_kind, age)
    }

    fn new(mut config: VmConfig, state: Phase, host_kind: HostKind, age: Duration) -> Result<Self, Error> {
        let name = config.name().to_owned();
        if let Some(vsock) = &mut config.vsock {
            vsock.path = vsock.socket(&name).map(Cow::into_owned).ok();
        }
        Ok(Self {
            name,
            pid: std::process::id(),
            state,
            uptime: age.as_secs(),
            host_kind,
            cpus: config.cpus(),
            memory: config.memory(),
            config: config
                .with_absolute_paths()
                .doing("tell where the guest's files are")?,
            end: None,
        })
    }

    /// The same guest when it has ended.
    pub fn ended(self, end: &End) -> Self {
        Self {
            end: Some(Ending::now(end)),
            ..self
        }
    }
}

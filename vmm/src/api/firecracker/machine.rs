//! `/machine-config` and `/boot-source`: CPUs, memory and the kernel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// As many as Firecracker has.
const MAX_VCPUS: u8 = 32;

/// CPUs and memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs.
    pub vcpu_count: u8,
    /// Memory in MiB.
    pub mem_size_mib: u64,
    /// Whether two CPUs are one core's.
    #[serde(default)]
    pub smt: bool,
    /// Which CPU is pretended. Deprecated in Firecracker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<StaticTemplate>,
    /// What a guest has written since its last snapshot can be told.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What the memory is made of.
    #[serde(default)]
    pub huge_pages: HugePages,
}

/// What of it is to be another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineUpdate {
    vcpu_count: Option<u8>,
    mem_size_mib: Option<u64>,
    smt: Option<bool>,
    cpu_template: Option<StaticTemplate>,
    track_dirty_pages: Option<bool>,
    huge_pages: Option<HugePages>,
}

/// The CPUs that Firecracker can pretend by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs)]
pub enum StaticTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// What memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum HugePages {
    /// What the host has.
    #[default]
    None,
    /// Huge pages where there are.
    Transparent,
    /// Pages of hugetlbfs.
    #[serde(rename = "2M")]
    Hugetlbfs,
}

/// The kernel and what it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Kernel.
    pub kernel_image_path: PathBuf,
    /// Initial RAM file system.
    pub initrd_path: Option<PathBuf>,
    /// Command line.
    pub boot_args: Option<String>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

impl MachineConfig {
    /// With what is to be another.
    pub fn updated(&self, update: &MachineUpdate) -> Self {
        Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: update.cpu_template.or(self.cpu_template),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        }
    }

    /// Checks that posada can be such a machine. That it tells what has been written is always so.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> Result<(), String> {
        let why_not = if self.vcpu_count == 0 || self.vcpu_count > MAX_VCPUS {
            format!("the number of vCPUs must be 1 to {MAX_VCPUS}")
        } else if self.mem_size_mib == 0 || self.mem_size_mib > u64::MAX >> 20 {
            "the memory size must be 1 MiB or more, and less than 16 EiB".to_owned()
        } else if self.smt && self.vcpu_count > 1 && !self.vcpu_count.is_multiple_of(2) {
            "the number of vCPUs must be 1 or even with smt, two for each core".to_owned()
        } else if self
            .cpu_template
            .is_some_and(|template| template != StaticTemplate::None)
        {
            "posada has no CPU templates of its own: leave out cpu_template, and give /cpu-config a custom one".to_owned()
        } else if self.huge_pages == HugePages::Hugetlbfs {
            "posada takes transparent huge pages and no others: leave out huge_pages".to_owned()
        } else {
            return Ok(());
        };
        Err(why_not)
    }

    /// Whether what is deprecated is used.
    pub fn is_deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }
}

impl MachineUpdate {
    /// Whether nothing is to be another.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether what is deprecated is used.
    pub fn is_deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }
}

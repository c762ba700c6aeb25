//! A guest as Firecracker's clients describe it, part by part, or as a whole in a file; and what posada makes of it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::devices::{self, Balloon, Drive, Entropy, NetworkInterface, Serial, Vsock};
use super::logger::Logger;
use super::machine::{BootSource, MachineConfig};
use super::metrics::Metrics;
use super::mmds::Mmds;
use crate::config::{ByteSize, CpuTemplate, NetConfig, VmConfig};

/// A guest to be, or that is. In JSON it is what `/vm/config` tells, and what `--config-file` has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Composition {
    /// A memory balloon.
    pub balloon: Option<Balloon>,
    /// Disks; the first one is that of the guest's root file system, if one is.
    pub drives: Vec<Drive>,
    /// The kernel.
    pub boot_source: BootSource,
    #[serde(skip_serializing, deserialize_with = "template")]
    cpu_config: Option<CpuTemplate>,
    #[serde(skip_serializing)]
    logger: Option<Logger>,
    /// CPUs and memory.
    pub machine_config: MachineConfig,
    #[serde(skip_serializing)]
    metrics: Option<Metrics>,
    memory_hotplug: Option<Value>,
    /// The metadata service.
    pub mmds_config: Option<Mmds>,
    /// Networks.
    pub network_interfaces: Vec<NetworkInterface>,
    pmem: Vec<Value>,
    /// Sockets between guest and host.
    pub vsock: Option<Vsock>,
    /// Random numbers.
    pub entropy: Option<Entropy>,
    /// The serial console.
    #[serde(skip_serializing)]
    pub serial: Option<Serial>,
}

impl Composition {
    /// Of a guest that posada has built.
    pub fn of(config: &VmConfig) -> Self {
        Self {
            balloon: config.balloon.as_ref().map(Balloon::of),
            drives: devices::drives_of(config),
            boot_source: BootSource {
                kernel_image_path: config.kernel.clone().unwrap_or_default(),
                initrd_path: config.initrd.clone(),
                boot_args: config.cmdline.clone(),
            },
            machine_config: MachineConfig {
                vcpu_count: config.cpus().try_into().unwrap_or(u8::MAX),
                mem_size_mib: config.memory().0 >> 20,
                smt: config.smt,
                ..Default::default()
            },
            network_interfaces: devices::interfaces_of(config),
            mmds_config: config.mmds.as_ref().map(Mmds::of),
            vsock: Vsock::of(config),
            entropy: config.rng.then(Entropy::default),
            ..Default::default()
        }
    }

    /// With what has been changed of the guest since it was built.
    pub fn changed_as(mut self, config: &VmConfig) -> Self {
        let now = Self::of(config);
        for (drive, now) in self.drives.iter_mut().zip(now.drives) {
            (drive.path_on_host, drive.rate_limiter) = (now.path_on_host, now.rate_limiter);
        }
        for (interface, now) in self.network_interfaces.iter_mut().zip(now.network_interfaces) {
            interface.rx_rate_limiter = now.rx_rate_limiter;
            interface.tx_rate_limiter = now.tx_rate_limiter;
        }
        self.balloon = now.balloon;
        self
    }

    /// Whether nothing of the machine has been said.
    pub fn is_untouched(&self) -> bool {
        let machine = Self {
            serial: None,
            ..self.clone()
        };
        machine == Self::default()
    }

    /// Of a file: one that is whole. Returns also how its log and its metrics are to be.
    ///
    /// # Errors
    /// A part of it cannot be.
    pub fn from_json(text: &[u8]) -> Result<(Self, Option<Logger>, Option<Metrics>), String> {
        let read: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        for (what, is_there) in [
            ("memory-hotplug", read.memory_hotplug.is_some()),
            ("pmem", !read.pmem.is_empty()),
        ] {
            if is_there {
                return Err(format!("posada has no {what}: leave it out"));
            }
        }
        let mut composition = Self {
            balloon: read.balloon,
            cpu_config: read.cpu_config,
            vsock: read.vsock,
            ..Default::default()
        };
        composition.set_machine(read.machine_config)?;
        composition.set_boot_source(read.boot_source)?;
        read.drives
            .into_iter()
            .try_for_each(|drive| composition.put_drive(drive))?;
        let mut interfaces = read.network_interfaces.into_iter();
        interfaces.try_for_each(|interface| composition.put_interface(interface))?;
        read.mmds_config
            .map_or(Ok(()), |mmds| composition.set_mmds(mmds))?;
        read.entropy
            .map_or(Ok(()), |entropy| composition.set_entropy(entropy))?;
        read.serial
            .map_or(Ok(()), |serial| composition.set_serial(serial))?;
        composition.config(&VmConfig::default())?;
        Ok((composition, read.logger, read.metrics))
    }

    /// The guest as posada builds it; what is not said here is as in `base`.
    ///
    /// # Errors
    /// There cannot be such a guest.
    pub fn config(&self, base: &VmConfig) -> Result<VmConfig, String> {
        self.machine_config.check()?;
        let BootSource {
            kernel_image_path: kernel,
            initrd_path: initrd,
            boot_args,
        } = self.boot_source.clone();
        if kernel.as_os_str().is_empty() {
            return Err("there is no kernel: give /boot-source its kernel_image_path".to_owned());
        }
        let root = self.drives.iter().find_map(Drive::root);
        let (cmdline, append) = match (boot_args, root) {
            (Some(arguments), Some(root)) => (Some(format!("{arguments} {root}")), None),
            (arguments, root) => (arguments, root),
        };
        let config = VmConfig {
            kernel: Some(kernel),
            initrd,
            cmdline,
            append,
            cpus: Some(self.machine_config.vcpu_count.into()),
            smt: self.machine_config.smt,
            memory: Some(ByteSize(self.machine_config.mem_size_mib << 20)),
            rng: self.entropy.is_some(),
            cpu_template: self.cpu_config.clone().or_else(|| base.cpu_template.clone()),
            disks: self.drives.iter().map(Drive::disk).collect::<Result<_, _>>()?,
            vsock: self.vsock.as_ref().map(Vsock::vsock),
            balloon: self.balloon.as_ref().map(Balloon::balloon).transpose()?,
            nets: self.nets()?,
            mmds: self.mmds_config.as_ref().map(Mmds::mmds),
            // Kernels for Firecracker may have no ACPI.
            lists_devices: true,
            ..base.clone()
        };
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// CPUs and memory are to be these.
    ///
    /// # Errors
    /// They cannot; likewise all that follow.
    pub fn set_machine(&mut self, machine: MachineConfig) -> Result<(), String> {
        machine.check()?;
        self.machine_config = machine;
        Ok(())
    }

    /// The guest's CPUs are to show this.
    pub fn set_cpu(&mut self, template: CpuTemplate) -> Result<(), String> {
        self.cpu_config = Some(template).filter(|template| !template.is_empty());
        Ok(())
    }

    /// The kernel is to be this.
    pub fn set_boot_source(&mut self, source: BootSource) -> Result<(), String> {
        exists("kernel", &source.kernel_image_path)?;
        source
            .initrd_path
            .as_deref()
            .map_or(Ok(()), |initrd| exists("initrd", initrd))?;
        let parts = VmConfig {
            cmdline: source.boot_args.clone(),
            ..Default::default()
        };
        check(&parts)?;
        self.boot_source = source;
        Ok(())
    }

    /// There is to be this disk, in the place of the one of its name if there is one.
    pub fn put_drive(&mut self, drive: Drive) -> Result<(), String> {
        exists("image", &drive.disk()?.path)?;
        let mut drives = self.drives.clone();
        drives.retain(|other| other.drive_id != drive.drive_id);
        if !drive.is_root_device {
            let index = self
                .drives
                .iter()
                .position(|other| other.drive_id == drive.drive_id);
            drives.insert(index.unwrap_or(drives.len()), drive);
        } else if drives.iter().any(|other| other.is_root_device) {
            return Err("there is another drive that is the root device: only one can be".to_owned());
        } else {
            drives.insert(0, drive);
        }
        let parts = VmConfig {
            disks: drives.iter().map(Drive::disk).collect::<Result<_, _>>()?,
            ..Default::default()
        };
        check(&parts)?;
        self.drives = drives;
        Ok(())
    }

    /// There is to be this network, in the place of the one of its name if there is one.
    pub fn put_interface(&mut self, interface: NetworkInterface) -> Result<(), String> {
        let mut interfaces = self.network_interfaces.clone();
        match interfaces
            .iter_mut()
            .find(|other| other.iface_id == interface.iface_id)
        {
            Some(other) => *other = interface,
            None => interfaces.push(interface),
        }
        let parts = VmConfig {
            nets: interfaces
                .iter()
                .map(NetworkInterface::net)
                .collect::<Result<_, _>>()?,
            ..Default::default()
        };
        check(&parts)?;
        self.network_interfaces = interfaces;
        Ok(())
    }

    fn nets(&self) -> Result<Vec<NetConfig>, String> {
        self.network_interfaces
            .iter()
            .map(NetworkInterface::net)
            .collect()
    }

    /// There is to be this metadata service, on networks that there are.
    pub fn set_mmds(&mut self, mmds: Mmds) -> Result<(), String> {
        mmds.check(&self.nets()?)?;
        self.mmds_config = Some(mmds);
        Ok(())
    }

    /// There are to be these sockets.
    pub fn set_vsock(&mut self, vsock: Vsock) -> Result<(), String> {
        let parts = VmConfig {
            vsock: Some(vsock.vsock()),
            ..Default::default()
        };
        check(&parts)?;
        self.vsock = Some(vsock);
        Ok(())
    }

    /// There is to be this balloon. Whether the guest has as much memory, its start tells.
    pub fn set_balloon(&mut self, balloon: Balloon) -> Result<(), String> {
        balloon.balloon()?;
        self.balloon = Some(balloon);
        Ok(())
    }

    /// There are to be random numbers.
    pub fn set_entropy(&mut self, entropy: Entropy) -> Result<(), String> {
        entropy.check()?;
        self.entropy = Some(entropy);
        Ok(())
    }

    /// The console is to be this.
    pub fn set_serial(&mut self, serial: Serial) -> Result<(), String> {
        serial.check()?;
        self.serial = Some(serial);
        Ok(())
    }
}

/// A template, or the path of one's file.
fn template<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CpuTemplate>, D::Error> {
    let template = match Option::<Value>::deserialize(deserializer)? {
        Some(Value::String(path)) => {
            CpuTemplate::from_file(&path).map_err(|why| format!("the CPU template '{path}': {why}"))
        }
        Some(template) => CpuTemplate::deserialize(template).map_err(|error| error.to_string()),
        None => return Ok(None),
    };
    template.map(Some).map_err(Error::custom)
}

fn check(parts: &VmConfig) -> Result<(), String> {
    parts.check().map_err(|error| error.to_string())
}

/// Who names a file that is not there hears of it at once, and not only when the guest is started.
fn exists(what: &str, path: &Path) -> Result<(), String> {
    // To open a pipe would wait for who writes to it.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    match opened {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot open the {what} '{}': {error}", path.display())),
    }
}

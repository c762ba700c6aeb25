//! A configuration as a TOML file: what [`VmConfig::from_file`] reads, written.

use toml::Table;
use toml::ser::Error;

use super::VmConfig;

impl VmConfig {
    /// The text of a file that says the same as this, and nothing of what it leaves to its default.
    ///
    /// # Errors
    /// A number is larger than TOML has them.
    pub fn to_toml(&self) -> Result<String, Error> {
        let unsaid = Table::try_from(Self::default())?;
        let mut said = Table::try_from(self)?;
        said.retain(|key, value| unsaid.get(key) != Some(value));
        toml::to_string(&said)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Ipv4Addr;

    use devices::disk::EngineKind;

    use super::*;
    use crate::config::disk::{EngineName, Format};
    use crate::config::net::NetLimits;
    use crate::config::{
        BalloonConfig, Boot, ByteRate, ByteSize, Cache, DiskConfig, MmdsConfig, MmdsVersion, NetConfig,
        VsockConfig,
    };
    use crate::host::HostKind;

    const TEMPLATE: &str = r#"{"kvm_capabilities": ["!56"], "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x"}], "cpuid_modifiers":
        [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "ecx", "bitmap": "0b01"}]}]}"#;

    fn limits() -> NetLimits {
        NetLimits {
            bandwidth: Some(ByteRate(2 << 20)),
            bandwidth_burst: Some(ByteSize(3 << 20)),
            bandwidth_once: Some(ByteSize(4 << 20)),
            pps: Some(2000),
            pps_burst: Some(20),
            pps_once: Some(30),
        }
    }

    /// The same, written to a file and read.
    fn again(config: &VmConfig) -> VmConfig {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.toml");
        fs::write(&path, config.to_toml().unwrap()).unwrap();
        VmConfig::from_file(&path).unwrap()
    }

    fn disk() -> DiskConfig {
        DiskConfig {
            path: "/d \"1\".img".into(),
            readonly: true,
            overlay: Some("/o".into()),
            format: Some(Format::Raw),
            id: Some("root".to_owned()),
            engine: Some(EngineName(EngineKind::Sync)),
            cache: Some(Cache::Direct),
            queues: Some(2),
            iothread: true,
            bandwidth: Some(ByteRate(10 << 20)),
            bandwidth_burst: Some(ByteSize(1000)),
            bandwidth_once: Some(ByteSize(2000)),
            iops: Some(100),
            iops_burst: Some(5),
            iops_once: Some(6),
        }
    }

    fn net() -> NetConfig {
        NetConfig {
            id: Some("eth0".to_owned()),
            tap: Some("tap0".to_owned()),
            user: true,
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            mtu: Some(1500),
            queues: Some(2),
            forward: vec!["tcp:8080:80".parse().unwrap(), "udp:53:53".parse().unwrap()],
            bandwidth: Some(ByteRate(1 << 20)),
            bandwidth_burst: Some(ByteSize(1 << 20)),
            bandwidth_once: Some(ByteSize(5 << 20)),
            pps: Some(1000),
            pps_burst: Some(10),
            pps_once: Some(100),
            tx: Some(limits()),
        }
    }

    /// No field is left to its default: one that is new has to be here.
    #[test]
    fn every_option_is_written_as_it_is_read() {
        let config = VmConfig {
            kernel: Some("/k".into()),
            initrd: Some("/i".into()),
            cmdline: None,
            append: Some("quiet \"x\" \\ \u{e4}".to_owned()),
            cpus: Some(2),
            smt: true,
            memory: Some(ByteSize(1 << 30)),
            name: Some("web".to_owned()),
            boot: Some(Boot::Linux64),
            rng: true,
            boot_timer: true,
            lists_devices: false,
            disks: vec![
                disk(),
                DiskConfig {
                    path: "/plain".into(),
                    ..Default::default()
                },
            ],
            vsock: Some(VsockConfig {
                path: Some("/v".into()),
                cid: Some(7),
            }),
            balloon: Some(BalloonConfig {
                size: Some(ByteSize(4 << 20)),
                deflate_on_oom: true,
                free_page_reporting: true,
                stats: Some(5),
            }),
            nets: vec![
                net(),
                NetConfig {
                    user: true,
                    ..Default::default()
                },
            ],
            mmds: Some(MmdsConfig {
                nets: vec!["eth0".to_owned(), "net1".to_owned()],
                version: Some(MmdsVersion::V2),
                address: Some(Ipv4Addr::new(169, 254, 170, 2)),
                imds_compat: true,
            }),
            host_kind: Some(HostKind::Pvm),
            cpu_template: Some(serde_json::from_str(TEMPLATE).unwrap()),
        };
        assert_eq!(again(&config), config);
        let other = VmConfig {
            cmdline: Some("only this".to_owned()),
            append: None,
            ..config
        };
        assert_eq!(again(&other), other);
    }

    #[test]
    fn what_is_left_to_its_default_is_not_written() {
        assert_eq!(VmConfig::default().to_toml().unwrap(), "");
        let config = VmConfig {
            cpus: Some(2),
            ..Default::default()
        };
        assert_eq!(config.to_toml().unwrap(), "cpus = 2\n");
    }

    #[test]
    fn a_number_that_toml_does_not_have_is_an_error() {
        let mut disk = disk();
        disk.iops = Some(u64::MAX);
        let config = VmConfig {
            disks: vec![disk],
            ..Default::default()
        };
        assert!(config.to_toml().is_err());
    }
}

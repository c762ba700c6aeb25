//! What Firecracker's clients describe, and what posada makes of it.

use serde_json::{Value, json};

use super::*;
use crate::config::VmConfig;
use crate::config::disk::Format;

/// A file that there is, whatever is said to be in it.
const FILE: &str = "/dev/null";

fn drive(id: &str, is_root: bool, readonly: bool) -> devices::Drive {
    let drive = json!({
        "drive_id": id,
        "is_root_device": is_root,
        "is_read_only": readonly,
        "path_on_host": FILE,
        "io_engine": "Sync",
    });
    serde_json::from_value(drive).unwrap()
}

fn composition(boot_args: Option<&str>) -> Composition {
    let mut composition = Composition::default();
    let source = json!({ "kernel_image_path": FILE, "boot_args": boot_args });
    composition
        .set_boot_source(serde_json::from_value(source).unwrap())
        .unwrap();
    composition
}

fn base() -> VmConfig {
    VmConfig {
        name: Some("web".to_owned()),
        ..Default::default()
    }
}

#[test]
fn a_root_device_is_the_first_disk_and_the_kernel_is_told_of_it() {
    let mut composition = composition(Some("quiet"));
    composition.put_drive(drive("data", false, false)).unwrap();
    composition.put_drive(drive("root", true, true)).unwrap();
    let config = composition.config(&base()).unwrap();
    let ids: Vec<_> = config.disks.iter().map(|disk| disk.id.as_deref()).collect();
    assert_eq!(ids, [Some("root"), Some("data")]);
    assert_eq!(
        config.disks[0].format,
        Some(Format::Raw),
        "it is what it is, whatever it looks like"
    );
    assert_eq!(config.cmdline.as_deref(), Some("quiet root=/dev/vda ro"));
    assert_eq!(config.name(), "web");

    assert!(composition.put_drive(drive("other", true, true)).is_err());
    let mut on_a_partition = drive("root", true, false);
    on_a_partition.partuuid = Some("1234-01".to_owned());
    composition.put_drive(on_a_partition).unwrap();
    let config = composition.config(&base()).unwrap();
    assert_eq!(config.cmdline.as_deref(), Some("quiet root=PARTUUID=1234-01 rw"));
    composition.put_drive(drive("root", false, false)).unwrap();
    assert_eq!(
        composition.config(&base()).unwrap().cmdline.as_deref(),
        Some("quiet")
    );
}

#[test]
fn without_boot_args_the_command_line_is_posadas_with_the_root_device() {
    let mut composition = composition(None);
    composition.put_drive(drive("root", true, false)).unwrap();
    let config = composition.config(&base()).unwrap();
    assert_eq!(
        (config.cmdline, config.append.as_deref()),
        (None, Some("root=/dev/vda rw"))
    );
}

#[test]
fn what_is_built_is_described_so_that_the_same_is_built() {
    let text = "
        kernel = '/dev/null'
        cmdline = 'quiet'
        cpus = 3
        memory = '64M'
        rng = true
        vsock = { path = '/v', cid = 9 }
        balloon = { size = '8M', deflate-on-oom = true, stats = 7 }
        [[disk]]
        path = '/dev/null'
        id = 'root'
        format = 'raw'
        engine = 'io_uring'
        bandwidth = '100M/s'
        bandwidth-burst = '10M'
        [[net]]
        id = 'eth0'
        tap = 'tap0'
        mac = '02:00:00:00:00:01'
        pps = 1000
        pps-burst = 100
        [mmds]
        net = ['eth0']
        version = 'V2'
        address = '169.254.170.2'
    ";
    let config = VmConfig {
        lists_devices: true,
        ..toml::from_str(text).unwrap()
    };
    let described = serde_json::to_vec(&Composition::of(&config)).unwrap();
    let (again, logger, metrics) = Composition::from_json(&described).unwrap();
    assert_eq!(again.config(&VmConfig::default()).unwrap(), config);
    assert_eq!((logger, metrics), (None, None));
}

#[test]
fn a_machine_is_changed_in_parts() {
    let machine = machine::MachineConfig::default();
    let update: MachineUpdate =
        serde_json::from_str(r#"{"vcpu_count": 2, "track_dirty_pages": true}"#).unwrap();
    assert!(!update.is_empty());
    let updated = machine.updated(&update);
    updated.check().unwrap();
    assert_eq!((updated.vcpu_count, updated.mem_size_mib), (2, 128));
    assert!(serde_json::from_str::<MachineUpdate>("{}").unwrap().is_empty());
    let most = machine::MachineConfig {
        mem_size_mib: u64::MAX,
        ..updated
    };
    assert!(most.check().is_err(), "no size is taken for a smaller one");
}

#[test]
fn each_way_of_a_network_has_its_limit() {
    let net = |tx: u64| {
        let bucket = |size: u64| json!({ "bandwidth": { "size": size, "refill_time": 1000 } });
        let net = json!({
            "iface_id": "eth0",
            "host_dev_name": "tap0",
            "rx_rate_limiter": bucket(4096),
            "tx_rate_limiter": bucket(tx),
        });
        serde_json::from_value::<devices::NetworkInterface>(net)
            .unwrap()
            .net()
    };
    let bursts = |tx: u64| {
        let net = net(tx).unwrap();
        [net.rx_limit(), net.tx_limit()].map(|way| way.bytes.unwrap().burst)
    };
    assert_eq!((bursts(4096), bursts(8192)), ([4096; 2], [4096, 8192]));
}

#[test]
fn names_are_plain_and_the_same_in_path_and_body() {
    assert!(check_id("a_1").is_ok());
    for id in ["", "a-b", "a%20"] {
        assert!(check_id(id).is_err(), "{id}");
    }
    for check in [check_drive_id, check_interface_id] {
        assert!(check("a", "a").is_ok());
        assert!(check("a", "b").is_err());
    }
}

#[test]
fn who_uses_what_will_go_is_told_so() {
    let instance = Instance::to_be("web".to_owned(), base(), Box::new(|_| Ok(()))).unwrap();
    let put = |path: &str, body: &str| {
        let call = Call {
            method: Method::PUT,
            path: path.to_owned(),
            body: body.to_owned().into(),
        };
        answer(&instance, &call).unwrap()
    };
    let vsock = r#"{"guest_cid": 3, "uds_path": "v"}"#;
    assert_eq!(put("/vsock", vsock), Reply::done());
    let vsock = r#"{"guest_cid": 3, "uds_path": "v", "vsock_id": "one"}"#;
    assert_eq!(put("/vsock", vsock), Reply::done().deprecated_if(true));
    let machine = r#"{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"}"#;
    assert_eq!(put("/machine-config", machine), Reply::done().deprecated_if(true));
}

#[test]
fn a_file_has_its_cpu_template_or_says_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cpu.json");
    // Words that nobody knows are ignored where Firecracker does so.
    let template = json!({ "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0b1", "why": "because" }] });
    std::fs::write(&path, template.to_string()).unwrap();
    let config = |template: &Value| {
        let file = json!({ "boot-source": { "kernel_image_path": FILE }, "cpu-config": template });
        let (composition, ..) = Composition::from_json(file.to_string().as_bytes())?;
        composition.config(&base())
    };
    let inline = config(&template).unwrap();
    assert!(inline.cpu_template.is_some());
    assert_eq!(config(&json!(path)).unwrap(), inline);
    assert_eq!(config(&Value::Null).unwrap().cpu_template, None);
    assert!(
        config(&json!("/no/template"))
            .unwrap_err()
            .contains("/no/template")
    );
}

#[test]
fn words_that_nobody_knows_are_ignored_where_firecracker_does_so() {
    let metrics = r#"{"metrics_path": "m", "emit": "all"}"#;
    serde_json::from_str::<Metrics>(metrics).unwrap();
    let limiter = json!({ "ops": { "size": 1, "refill_time": 1, "unit": "s" } });
    serde_json::from_value::<rate::RateLimiter>(limiter).unwrap();
    serde_json::from_str::<rate::RateLimiter>(r#"{"op": null}"#).unwrap_err();
}

//! What Kata Containers' two drivers and firectl say to Firecracker, said to posada: their command lines, their files, their requests,
//! field by field, and what they need to hear.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use posada_tests::button::{COUNTS, READY, pressed_since};
use posada_tests::guest::runtime_directory;
use posada_tests::network::{self, make_tap};
use posada_tests::running::until;
use posada_tests::served::{START, boot_source, image};
use posada_tests::{Running, http, images, posada};
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

/// Where a client's files are, one of which it takes for Firecracker.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        symlink(posada::binary(), place.file("firecracker")).unwrap();
        place
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    fn empty_file(&self, name: &str) -> PathBuf {
        File::create(self.file(name)).unwrap();
        self.file(name)
    }

    fn pipe(&self, name: &str) -> PathBuf {
        mkfifo(&self.file(name), Mode::S_IRWXU).unwrap();
        self.file(name)
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env("XDG_RUNTIME_DIR", runtime_directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts what it takes for Firecracker, whose API is to be at `socket`.
    fn start(&self, arguments: &[&str]) -> Client {
        let mut command = self.command(self.file("firecracker"));
        let socket = self.file("api.sock");
        command.arg("--api-sock").arg(&socket).args(arguments);
        Client::of(command, socket)
    }
}

/// A client, and the process that it has started.
struct Client {
    running: Running,
    socket: PathBuf,
}

impl Client {
    fn of(command: Command, socket: PathBuf) -> Self {
        let mut running = Running::of(command);
        running.wait_until("the socket is served", |_| UnixStream::connect(&socket).is_ok());
        Self { running, socket }
    }

    #[track_caller]
    fn get(&self, path: &str) -> Value {
        http::request(&self.socket, "GET", path, "").expect(200).json()
    }

    #[track_caller]
    fn put(&self, path: &str, body: Value) {
        http::request(&self.socket, "PUT", path, &body.to_string()).expect(204);
    }

    #[track_caller]
    fn patch(&self, path: &str, body: Value) {
        http::request(&self.socket, "PATCH", path, &body.to_string()).expect(204);
    }

    /// Waits until the guest is said to run, as Kata's driver in Go does.
    fn wait_until_it_runs(&mut self) {
        let socket = self.socket.clone();
        self.running.wait_until("the guest runs", |_| {
            let info = http::request(&socket, "GET", "/", "").expect(200).json();
            let is_text = |field: &str| info[field].is_string();
            assert!(
                is_text("app_name") && is_text("id") && is_text("vmm_version"),
                "{info}"
            );
            info["state"] == "Running"
        });
    }
}

fn drive(id: &str, path: &Path, is_read_only: bool) -> Value {
    json!({ "drive_id": id, "is_read_only": is_read_only, "is_root_device": false, "path_on_host": path })
}

/// What a pipe's reader has opened before anybody writes to it.
fn reader(pipe: &Path) -> BufReader<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NONBLOCK);
    BufReader::new(options.open(pipe).unwrap())
}

#[test]
fn katas_driver_in_rust_fills_the_empty_drives_of_a_guest_that_runs_and_kills_it() {
    network::isolate();
    make_tap("tap0_kata");
    let place = Place::new();
    let mut client = place.start(&["--no-seccomp"]);
    client.put(
        "/boot-source",
        boot_source("blk-check device=1 rounds=yes sectors=0"),
    );
    client.put("/machine-config", json!({ "mem_size_mib": 64, "vcpu_count": 1 }));
    image(&place.file("rootfs"));
    client.put("/drives/rootfs", drive("rootfs", &place.file("rootfs"), true));
    for id in ["drive1", "drive2", "drive3", "drive4", "drive5"] {
        let empty = place.empty_file(id);
        client.put(&format!("/drives/{id}"), drive(id, &empty, false));
    }
    let socket = place.file("kata.hvsock");
    client.put(
        "/vsock",
        json!({ "guest_cid": 3, "uds_path": socket, "vsock_id": "root" }),
    );
    let net = json!({ "guest_mac": null, "host_dev_name": "tap0_kata", "iface_id": "7ab0c4f2d91e6358" });
    client.put("/network-interfaces/7ab0c4f2d91e6358", net);
    client.put("/actions", json!({ "action_type": "InstanceStart" }));
    client.running.wait_for("capacity=0 ");

    let path = image(&place.file("container"));
    for limiter in [
        Value::Null,
        json!({ "bandwidth": { "one_time_burst": null, "refill_time": 1000, "size": 100_000_000 }, "ops": null }),
        json!({ "bandwidth": null, "ops": { "one_time_burst": 0, "refill_time": 1000, "size": 1000 } }),
    ] {
        let container = json!({ "drive_id": "drive1", "path_on_host": path, "rate_limiter": limiter });
        client.patch("/drives/drive1", container);
        client.running.send("mode=write seed=7\n");
        client.running.wait_for("sectors=64 checksum=");
    }

    // The driver hears of the end by the end of the messages.
    client.running.signal(Signal::SIGKILL);
    assert_eq!(client.running.wait().messages(), "");
}

/// Calls the agent, by this command.
fn connect(socket: &Path, command: &str) {
    let mut agent = UnixStream::connect(socket).unwrap();
    agent.write_all(command.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(&agent).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("OK "), "{answer}");
}

/// What Kata's driver in Go writes to a file, with these fields of its own beside those that it always has.
fn config_file(place: &Place, program: &str) -> Value {
    let mut drives = vec![drive("rootfs", Path::new(&image(&place.file("rootfs"))), true)];
    for number in 0..8 {
        let id = format!("drive_{number}");
        drives.push(drive(&id, &place.empty_file(&id), false));
    }
    json!({
        "boot-source": boot_source(program),
        "machine-config": { "mem_size_mib": 64, "smt": false, "vcpu_count": 1 },
        "vsock": { "guest_cid": 3, "uds_path": place.file("kata.hvsock"), "vsock_id": "root" },
        "logger": { "level": "Error", "log_path": place.pipe("logs.fifo") },
        "metrics": { "metrics_path": place.pipe("metrics.fifo") },
        "drives": drives,
    })
}

#[test]
fn katas_driver_in_go_has_a_file_started_calls_the_agent_and_reads_the_metrics_when_it_has_ended_it() {
    network::isolate();
    make_tap("tap0_kata");
    let place = Place::new();
    let mut config = config_file(&place, "vsock-echo port=1024 connections=9");
    config["network-interfaces"] = json!([{ "guest_mac": "02:42:ac:11:00:02", "host_dev_name": "tap0_kata",
        "iface_id": "eth0", "rx_rate_limiter": {}, "tx_rate_limiter": {} }]);
    let file = place.file("fcConfig.json");
    fs::write(&file, format!("{config:#}").replace("  ", "\t")).unwrap();
    let [mut log, mut metrics] = ["logs.fifo", "metrics.fifo"].map(|pipe| reader(&place.file(pipe)));

    let told = place
        .command(place.file("firecracker"))
        .arg("--version")
        .output()
        .unwrap();
    let first = String::from_utf8(told.stdout).unwrap();
    let version = first.lines().next().unwrap().split(' ').nth(1).unwrap();
    assert_eq!(version, "v1.17.0", "the driver refuses what is older than 0.21.1");

    let mut client = place.start(&["--config-file", file.to_str().unwrap()]);
    client.wait_until_it_runs();
    let socket = place.file("kata.hvsock");
    fs::set_permissions(&socket, Permissions::from_mode(0o640)).unwrap();
    client.running.wait_for("listening");
    // The driver in Rust writes it small.
    for command in ["CONNECT 1024\n", "connect 1024\n"] {
        connect(&socket, command);
    }
    let container = image(&place.file("container"));
    client.patch(
        "/drives/drive_0",
        json!({ "drive_id": "drive_0", "path_on_host": container }),
    );
    // The container has ended, and its disk is wanted for another.
    let empty = place.file("drive_0");
    client.patch(
        "/drives/drive_0",
        json!({ "drive_id": "drive_0", "path_on_host": empty }),
    );
    let container = File::open(&container).unwrap();
    until("its disk is free", || container.try_lock().is_ok());

    client.running.signal(Signal::SIGTERM);
    client.running.wait().expect_status(128 + Signal::SIGTERM as i32);
    let mut line = String::new();
    metrics.read_line(&mut line).unwrap();
    let counts: Value = serde_json::from_str(&line).unwrap();
    let groups = counts.as_object().unwrap().values().filter_map(Value::as_object);
    for group in groups {
        assert!(
            group.values().all(Value::is_u64),
            "the driver reads numbers: {line}"
        );
    }
    assert_eq!(counts["patch_api_requests"]["drive_count"], 2, "{line}");
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "no error");
}

/// The jailer makes a directory the root in which there is nothing but a copy of the program, devices, and what the driver puts there. The
/// driver gives no socket then: it is where Firecracker has it.
#[test]
fn in_the_jailers_root_there_is_nothing_else() {
    const JAIL: &str = "mkdir -p dev/net run
        for device in kvm net/tun urandom; do
            touch dev/$device && mount --bind /dev/$device dev/$device
        done
        exec chroot . \"$0\" \"$@\"";
    let place = Place::new();
    fs::copy(posada::binary(), place.file("firecracker-jailed")).unwrap();
    fs::copy(images::bare(), place.file("vmlinux")).unwrap();
    let mut config = config_file(&place, "vsock-echo port=1024 connections=9");
    config["boot-source"]["kernel_image_path"] = json!(place.file("vmlinux"));
    let outside = place.0.as_path().to_str().unwrap();
    fs::write(
        place.file("fcConfig.json"),
        config.to_string().replace(outside, ""),
    )
    .unwrap();
    let mut command = place.command("unshare");
    command
        .current_dir(outside)
        .args(["--mount", "sh", "-ec", JAIL, "/firecracker-jailed"])
        .args(["--id", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"])
        .args(["--start-time-us", "1", "--start-time-cpu-us", "2"])
        .args(["--parent-cpu-time-us", "3", "--config-file", "/fcConfig.json"])
        .env_remove("XDG_RUNTIME_DIR");
    let mut client = Client::of(command, place.file("run/firecracker.socket"));
    client.wait_until_it_runs();
    assert_eq!(client.get("/")["id"], "0a1b2c3d4e5f60718293a4b5c6d7e8f9");
    client.running.wait_for("listening");
    connect(&place.file("kata.hvsock"), "CONNECT 1024\n");
    client.put("/actions", json!({ "action_type": "FlushMetrics" }));
    client.patch("/vm", json!({ "state": "Paused" }));
    let snapshot = json!({ "snapshot_path": "/state", "mem_file_path": "/memory" });
    client.put("/snapshot/create", snapshot);
    assert!(place.file("state").exists() && place.file("memory").exists());
    client.running.signal(Signal::SIGTERM);
    let ended = client.running.wait().expect_status(128 + Signal::SIGTERM as i32);
    assert_eq!(ended.messages(), "");
}

#[test]
fn firectl_describes_a_guest_with_its_defaults_tells_it_metadata_and_asks_it_to_shut_down() {
    network::isolate();
    make_tap("tap0");
    let place = Place::new();
    let [log, metrics] = ["log", "metrics"].map(|pipe| place.pipe(pipe));
    let mut client = place.start(&[]);
    assert!(client.get("/machine-config")["vcpu_count"].is_u64());
    client.put(
        "/logger",
        json!({ "level": "Debug", "log_path": log, "show_level": true, "show_log_origin": false }),
    );
    client.put("/metrics", json!({ "metrics_path": metrics }));
    client.put(
        "/machine-config",
        json!({ "mem_size_mib": 512, "smt": true, "vcpu_count": 2 }),
    );
    let machine = client.get("/machine-config");
    assert_eq!(
        (&machine["smt"], &machine["vcpu_count"]),
        (&json!(true), &json!(2))
    );
    let options = "ro console=ttyS0 noapic reboot=k panic=1 pci=off nomodules";
    let line = format!("{options} acpi=off program={COUNTS}");
    client.put(
        "/boot-source",
        json!({ "kernel_image_path": images::bare(), "boot_args": line }),
    );
    let [data, root] = ["data", "root"].map(|name| image(&place.file(name)));
    client.put("/drives/2", drive("2", Path::new(&data), true));
    let mut drive = drive("1", Path::new(&root), false);
    drive["is_root_device"] = json!(true);
    client.put("/drives/1", drive);
    let net = json!({ "guest_mac": "AA:FC:00:00:00:01", "host_dev_name": "tap0", "iface_id": "1" });
    client.put("/network-interfaces/1", net);
    client.put(
        "/vsock",
        json!({ "guest_cid": 3, "uds_path": place.file("v.sock") }),
    );
    client.put(
        "/mmds/config",
        json!({ "network_interfaces": ["1"], "version": "V1" }),
    );
    client.put("/actions", serde_json::from_str(START).unwrap());
    client.put(
        "/mmds",
        json!({ "latest": { "meta-data": { "instance-id": "i-1" } } }),
    );
    let ids = client.get("/vm/config")["drives"].as_array().unwrap().clone();
    assert_eq!(
        (&ids[0]["drive_id"], &ids[1]["drive_id"]),
        (&json!("1"), &json!("2"))
    );

    client.running.wait_for(READY);
    client.put("/actions", json!({ "action_type": "SendCtrlAltDel" }));
    assert_eq!(pressed_since(&mut client.running, "0"), "1");
    client.running.signal(Signal::SIGTERM);
    client.running.wait().expect_status(128 + Signal::SIGTERM as i32);
    assert!(!place.file("api.sock").exists());
}

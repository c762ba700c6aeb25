//! The HTTP API: a guest's whole life by requests, and the ways that lead to it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use posada_tests::guest::runtime_directory;
use posada_tests::running::until;
use posada_tests::served::{START, Served, boot_source, image, serve, vm};
use posada_tests::{Guest, http, payload, posada};
use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

#[test]
fn a_guest_lives_its_life_by_requests_and_goes_on_in_another_process() {
    let mut served = Served::start("life", &[]);
    assert_eq!(served.state(), "Not started");
    let machine = r#"{"vcpu_count": 2, "mem_size_mib": 64}"#;
    served.put("/machine-config", machine).expect(204);
    served.boot("echo");
    let image = image(&served.place("disk.img"));
    let drive =
        json!({ "drive_id": "data", "is_root_device": false, "path_on_host": image, "is_read_only": true });
    served.put("/drives/data", &drive.to_string()).expect(204);
    served.put("/entropy", "{}").expect(204);
    served.put("/actions", START).expect(204);
    served.running.wait_for("listening\n");
    assert_eq!(served.state(), "Running");

    let config = served.get("/vm/config").expect(200).json();
    assert_eq!(config["machine-config"]["vcpu_count"], 2, "{config}");
    assert_eq!(config["drives"][0]["drive_id"], "data", "{config}");
    let (state, memory) = (served.place("vm state"), served.place("vm memory"));
    let snapshot = json!({ "snapshot_path": state, "mem_file_path": memory }).to_string();
    served
        .put("/snapshot/create", &snapshot)
        .expect_fault(&["pause it first"]);
    served.patch("/vm", &vm("Paused")).expect(204);
    assert_eq!(served.state(), "Paused");
    // What was there is replaced, and what a server has left that was killed meanwhile is cleared away.
    fs::write(&state, "an old one").unwrap();
    let left = served.place(&format!(".posada-snapshot-{}", served.running.pid()));
    fs::create_dir(served.place(".vm memory.posada-partial-7")).unwrap();
    fs::create_dir(&left).unwrap();
    served.put("/snapshot/create", &snapshot).expect(204);
    fs::remove_dir(left).unwrap();
    let files = fs::read_dir(served.place("")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let hidden: Vec<_> = files.filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [""; 0]);
    assert_eq!(served.state(), "Paused", "it stays so");
    served.patch("/vm", &vm("Resumed")).expect(204);
    assert_eq!(served.state(), "Running");

    let next = Served::start("next-life", &[]);
    let load = json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "File", "backend_path": memory },
    });
    next.put("/snapshot/load", &load.to_string()).expect(204);
    assert_eq!(next.state(), "Paused");
    assert_eq!(next.get("/machine-config").expect(200).json()["mem_size_mib"], 64);
    next.patch("/vm", &vm("Resumed")).expect(204);
    next.end();
    served.end();
}

#[test]
fn a_diff_is_put_into_the_memory_that_it_follows_or_lies_beside_it() {
    let mut served = Served::start("diffs", &[]);
    served
        .put("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#)
        .expect(204);
    served.begin("count touch=33554432");
    served.running.wait_for("count 1\n");
    let create = |served: &Served, kind: &str, state: &str, memory: &str| {
        served.patch("/vm", &vm("Paused")).expect(204);
        let (state, memory) = (served.place(state), served.place(memory));
        let what = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
        let reply = served.put("/snapshot/create", &what.to_string());
        served.patch("/vm", &vm("Resumed")).expect(204);
        reply
    };
    let goes_on = |served: &mut Served, number: u32| {
        served.running.send("\n");
        served.running.wait_for(&format!("count {number}\n"));
    };
    create(&served, "Full", "state", "memory").expect(204);
    let whole = fs::metadata(served.place("memory")).unwrap();
    goes_on(&mut served, 2);
    create(&served, "Diff", "state", "memory").expect(204);
    goes_on(&mut served, 3);
    create(&served, "Diff", "state 2", "changes").expect(204);
    let changes = fs::metadata(served.place("changes")).unwrap();
    assert_eq!(changes.len(), whole.len());
    assert!(
        changes.blocks() < whole.blocks() / 4,
        "{} blocks",
        changes.blocks()
    );
    fs::write(served.place("foreign"), "of another guest").unwrap();
    create(&served, "Diff", "state 3", "foreign").expect_fault(&["foreign", "not this guest's memory"]);
    assert_eq!(
        fs::read_to_string(served.place("foreign")).unwrap(),
        "of another guest"
    );

    // What was written before it failed is not forgotten.
    goes_on(&mut served, 4);
    create(&served, "Diff", "state 4", "all").expect(204);
    let all = fs::metadata(served.place("all")).unwrap();
    assert!(all.blocks() > whole.blocks() / 2, "{} blocks", all.blocks());

    let resumed = |state: PathBuf, memory: &str| {
        let next = Served::start("after-diffs", &[]);
        let memory = served.place(memory);
        let backend = json!({ "backend_type": "File", "backend_path": memory });
        let load = json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true });
        next.put("/snapshot/load", &load.to_string()).expect(204);
        next
    };
    goes_on(&mut resumed(served.place("state 4"), "all"), 5);
    let mut next = resumed(served.place("state"), "memory");
    goes_on(&mut next, 3);
    // What follows is known of a restored guest, too.
    let more = json!({ "snapshot_type": "Diff", "snapshot_path": next.place("state"), "mem_file_path": served.place("memory") });
    next.patch("/vm", &vm("Paused")).expect(204);
    next.put("/snapshot/create", &more.to_string()).expect(204);
    let state = served.place("state 5");
    fs::copy(next.place("state"), &state).unwrap();
    drop(next);
    goes_on(&mut resumed(state, "memory"), 4);
}

#[test]
fn what_is_set_is_told_and_a_second_time_replaces_the_first() {
    let served = Served::start("set", &[]);
    let machine = served.get("/machine-config").expect(200).json();
    assert_eq!(
        (&machine["vcpu_count"], &machine["mem_size_mib"]),
        (&json!(1), &json!(128))
    );
    served
        .patch("/machine-config", r#"{"mem_size_mib": 256}"#)
        .expect(204);
    let machine = served.get("/machine-config").expect(200).json();
    assert_eq!(
        (&machine["vcpu_count"], &machine["mem_size_mib"]),
        (&json!(1), &json!(256))
    );

    let (one, two) = (image(&served.place("one")), image(&served.place("two")));
    let limiter = json!({ "bandwidth": { "size": 1 << 20, "refill_time": 100 }, "ops": null });
    for (id, is_root, path) in [
        ("data", false, &one),
        ("root", true, &two),
        ("data", false, &two),
        ("data", false, &one),
    ] {
        let drive = json!({ "drive_id": id, "is_root_device": is_root, "path_on_host": path, "is_read_only": false,
                            "rate_limiter": limiter });
        let path = format!("/drives/{id}");
        let reply = served.put(&path, &drive.to_string());
        reply.expect(204);
    }
    let balloon = r#"{"amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#;
    served.get("/balloon").expect_fault(&["No balloon device"]);
    served.put("/balloon", balloon).expect(204);
    assert_eq!(served.get("/balloon").expect(200).json()["amount_mib"], 8);
    let vsock = json!({ "guest_cid": 7, "uds_path": served.place("v.sock") });
    served.put("/vsock", &vsock.to_string()).expect(204);
    let net =
        json!({ "iface_id": "eth0", "host_dev_name": "tap-of-nobody", "guest_mac": "02:00:00:00:00:07" });
    served
        .put("/network-interfaces/eth0", &net.to_string())
        .expect(204);

    let config = served.get("/vm/config").expect(200).json();
    let ids: Vec<_> = config["drives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|drive| &drive["drive_id"])
        .collect();
    assert_eq!(ids, ["root", "data"], "the root device is the first");
    assert_eq!(
        config["drives"][0]["rate_limiter"],
        json!({
        "bandwidth": { "size": 1 << 20, "one_time_burst": null, "refill_time": 100 }, "ops": null })
    );
    assert_eq!(config["vsock"]["guest_cid"], 7);
    assert_eq!(config["network-interfaces"][0]["host_dev_name"], "tap-of-nobody");
    assert_eq!(
        served.get("/version").expect(200).json()["firecracker_version"]
            .as_str()
            .map(str::is_empty),
        Some(false)
    );
}

#[test]
fn a_thousand_are_answered_while_the_guest_is_paused_and_resumed() {
    let served = Served::running("crowd", "echo");
    let socket = served.socket();
    thread::scope(|scope| {
        for client in 0..50 {
            let socket = &socket;
            scope.spawn(move || {
                for turn in 0..20 {
                    match (client + turn) % 4 {
                        0 => http::request(socket, "PATCH", "/vm", &vm("Paused")).expect(204),
                        1 => http::request(socket, "PATCH", "/vm", &vm("Resumed")).expect(204),
                        2 => http::request(socket, "GET", "/vm/config", "").expect(200),
                        _ => http::request(socket, "GET", "/", "").expect(200),
                    };
                }
            });
        }
    });
    served.patch("/vm", &vm("Resumed")).expect(204);
    served.end();
}

#[test]
fn a_guest_of_a_file_runs_at_once_with_an_api_or_without() {
    let directory = TempDir::new().unwrap();
    let file = directory.as_path().join("guest.json");
    let (log, console) = (
        directory.as_path().join("log"),
        directory.as_path().join("console"),
    );
    let guest = json!({
        "boot-source": boot_source("echo"),
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        "logger": { "log_path": log, "level": "Info", "show_level": true },
        "drives": [], "network-interfaces": [], "metrics": null,
    });
    fs::write(&file, guest.to_string()).unwrap();
    let version = posada(&["serve", "--version"]).expect_status(0).console();
    assert!(version.starts_with("Firecracker v1.17.0\n"), "{version}");
    let jailers = [
        "--start-time-us=1",
        "--start-time-cpu-us=2",
        "--parent-cpu-time-us=3",
        "--no-seccomp",
    ];
    let mut served = Served::start(
        "file",
        &[&["--config-file", file.to_str().unwrap()], &jailers[..]].concat(),
    );
    served.running.wait_for("listening\n");
    assert_eq!(served.state(), "Running");
    served.end();
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .contains("INFO kernel command line")
    );

    let mut silent = guest.clone();
    silent["serial"] = json!({ "serial_out_path": console });
    fs::write(&file, silent.to_string()).unwrap();
    let name = format!("api-no-api-{}", std::process::id());
    let mut running = serve(&["--no-api", "--id", &name, "--config-file", file.to_str().unwrap()]);
    until("the guest prints", || {
        fs::read_to_string(&console).is_ok_and(|text| text.contains("listening"))
    });
    let control = runtime_directory()
        .join("posada")
        .join(&name)
        .join("control.sock");
    let id = http::request(&control, "GET", "/", "").expect(200).json()["id"].clone();
    assert_eq!(id, name);
    running.send("bye\n");
    assert_eq!(running.wait().expect_status(0).console(), "");

    for (wrong, named) in [
        (
            json!({ "boot-source": boot_source("echo"), "mmds-config": { "network_interfaces": ["eth0"] } }),
            "network interface",
        ),
        (
            json!({ "boot-source": boot_source("echo"), "unknown": {} }),
            "unknown",
        ),
        (json!({ "drives": [] }), "kernel"),
        (
            json!({ "boot-source": boot_source("echo"), "cpu-config": "/no/template" }),
            "/no/template",
        ),
    ] {
        fs::write(&file, wrong.to_string()).unwrap();
        let arguments = ["serve", "--no-api", "--config-file", file.to_str().unwrap()];
        posada(&arguments).expect_refusal(1, &[named]);
    }
}

#[test]
fn posadas_own_endpoints_and_its_commands_are_two_ways_to_one_guest() {
    let served = Served::running("own", "echo");
    let info = served.get("/posada/v1/info").expect(200).json();
    assert_eq!(info["guest"]["name"], served.name, "{info}");
    assert_eq!(info["guest"]["state"], "running", "{info}");
    posada(&["pause", &served.name]).expect_status(0);
    assert_eq!(served.state(), "Paused");
    served.put("/posada/v1/resume", "").expect(204);
    assert_eq!(served.state(), "Running");
    let place = served.place("s");
    let options = json!({ "directory": place, "diff": false, "stop": false, "disks": false }).to_string();
    let taken = served.put("/posada/v1/snapshot", &options).expect(200).json();
    assert!(taken["taken"]["written"].is_string(), "{taken}");
    served
        .put("/posada/v1/snapshot", &options)
        .expect_fault(&["there is a"]);
    let rewind = json!({ "directory": place }).to_string();
    let rewound = served.put("/posada/v1/rewind", &rewind).expect(200).json();
    assert!(rewound["rewound"]["took-us"].is_u64(), "{rewound}");
    served.put("/posada/v1/kill", "").expect(204);
    served.running.wait().expect_status(0);
}

#[test]
fn a_guest_that_was_run_by_hand_answers_at_its_control_socket() {
    let name = format!("api-by-hand-{}", std::process::id());
    let mut running = Guest::bare("program=echo").named(&name).memory("64M").start();
    running.wait_for("listening\n");
    let socket = runtime_directory()
        .join("posada")
        .join(&name)
        .join("control.sock");
    let config = http::request(&socket, "GET", "/vm/config", "").expect(200).json();
    assert_eq!(config["machine-config"]["mem_size_mib"], 64, "{config}");
    http::request(&socket, "PUT", "/actions", START).expect_fault(&["after starting"]);
    running.send("bye\n");
    running.wait().expect_status(0);
}

#[test]
fn a_server_that_is_told_to_end_before_its_guest_runs_leaves_nothing() {
    let served = Served::start("ended", &[]);
    let socket = served.socket();
    let directory = runtime_directory().join("posada").join(&served.name);
    assert!(directory.exists());
    served.running.signal(Signal::SIGTERM);
    served.running.wait().expect_status(143);
    assert!(!socket.exists() && !directory.exists());

    let killed = Served::start("killed", &[]);
    posada(&["kill", &killed.name]).expect_status(0);
    killed.running.wait().expect_status(0);
}

#[test]
fn a_guest_goes_on_when_nobody_reads_what_it_prints_or_its_log_from_a_pipe() {
    let served = Served::start("unread", &[]);
    let (pipe, kernel) = (served.place("console"), served.place("kernel"));
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let unread = File::options().read(true).write(true).open(&pipe).unwrap();
    fcntl(&unread, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let log = served.place("log");
    mkfifo(&log, Mode::S_IRWXU).unwrap();
    let mut full = File::options().read(true).write(true).open(&log).unwrap();
    fcntl(&full, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    full.write_all(&[b'.'; 4096]).unwrap();
    let logger = json!({ "log_path": log, "level": "Debug" }).to_string();
    served.put("/logger", &logger).expect(204);
    fs::write(&kernel, payload::elf(payload::chatter(), true)).unwrap();
    let serial = json!({ "serial_out_path": pipe }).to_string();
    served.put("/serial", &serial).expect(204);
    let source = json!({ "kernel_image_path": kernel }).to_string();
    served.put("/boot-source", &source).expect(204);
    served.put("/actions", START).expect(204);
    until("what the pipe has no room for is lost", || {
        let stats = served.get("/posada/v1/stats").expect(200).json();
        let parts = stats["stats"].as_array().expect("a list of parts").clone();
        let console = parts.into_iter().find(|part| part["part"] == "console");
        console.expect("it has one")["values"]["lost_bytes"].as_u64() > Some(0)
    });
    served.patch("/vm", &vm("Paused")).expect(204);
    served.put("/posada/v1/kill", "").expect(204);
    served.running.wait().expect_status(0);
}

#[test]
fn a_socket_is_one_servers_and_what_a_killed_one_has_left_is_the_next_ones() {
    let served = Served::start("socket", &[]);
    let socket = served.socket();
    let again = ["serve", "--api-sock", socket.to_str().unwrap()];
    posada(&again).expect_refusal(1, &["api.sock", "--api-sock"]);
    served.running.signal(Signal::SIGKILL);
    served.running.wait();
    assert!(socket.exists());
    let next = serve(&["--api-sock", socket.to_str().unwrap(), "--id", &served.name]);
    until("it answers", || {
        http::raw(&socket, b"GET / HTTP/1.0\r\n\r\n").is_ok_and(|reply| reply.status == 200)
    });
    next.signal(Signal::SIGTERM);
    next.wait().expect_status(143);
    assert!(!socket.exists());
}

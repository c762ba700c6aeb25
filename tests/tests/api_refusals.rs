//! What the HTTP API refuses: what is no request, comes at the wrong time, or cannot be done; and who sends it.

use std::io::Write;
use std::os::unix::net::UnixStream;

use posada_tests::http;
use posada_tests::served::{START, Served, boot_source, image, vm};
use serde_json::{Value, json};

/// What is asked for by a body.
const WITH_A_BODY: [(&str, &str); 21] = [
    ("PUT", "/actions"),
    ("PUT", "/boot-source"),
    ("PUT", "/machine-config"),
    ("PATCH", "/machine-config"),
    ("PUT", "/drives/d"),
    ("PUT", "/network-interfaces/n"),
    ("PUT", "/vsock"),
    ("PUT", "/balloon"),
    ("PUT", "/entropy"),
    ("PUT", "/serial"),
    ("PUT", "/logger"),
    ("PUT", "/cpu-config"),
    ("PATCH", "/vm"),
    ("PUT", "/snapshot/create"),
    ("PUT", "/snapshot/load"),
    ("PUT", "/posada/v1/snapshot"),
    ("PUT", "/posada/v1/rewind"),
    ("PATCH", "/drives/d"),
    ("PATCH", "/network-interfaces/n"),
    ("PATCH", "/balloon"),
    ("PATCH", "/balloon/statistics"),
];

/// Requests that no guest understands, and what Firecracker says of them.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "GET",
        "/vm/foo",
        "",
        "Invalid request method and/or path: GET vm.",
    ),
    ("PUT", "/snapshot", "{}", "Missing snapshot operation type."),
    (
        "PUT",
        "/snapshot/take",
        "{}",
        "Invalid request method and/or path: PUT /snapshot/take.",
    ),
    ("PUT", "/mmds/x", "{}", "Unrecognized PUT request path `x`."),
    (
        "GET",
        "/mmds",
        "",
        "MMDS error: The MMDS data store is not initialized.",
    ),
    (
        "PUT",
        "/mmds",
        "{}",
        "MMDS error: The MMDS data store is not initialized.",
    ),
    ("GET", "/balloon/x", "", "Unrecognized GET request path `x`."),
    (
        "GET",
        "/balloon/hinting",
        "",
        "Unrecognized GET request path `/hinting/`.",
    ),
    (
        "PATCH",
        "/balloon/hinting/x",
        "",
        "Unrecognized PATCH request path `/hinting/x`.",
    ),
    ("PUT", "/drives", "{}", "The ID cannot be empty."),
    ("PATCH", "/drives", "{}", "The ID cannot be empty."),
    ("PATCH", "/network-interfaces/", "{}", "The ID cannot be empty."),
    ("DELETE", "/drives", "", "The ID cannot be empty."),
    ("DELETE", "/drives/d", "{}", "Empty Delete request."),
    (
        "PATCH",
        "/drives/d",
        r#"{"drive_id": "e"}"#,
        "The id from the path does not match the id from the body!",
    ),
    (
        "PATCH",
        "/network-interfaces/n",
        r#"{"iface_id": "m"}"#,
        "The id from the path [n] does not match the id from the body [m]!",
    ),
    (
        "PUT",
        "/snapshot/load",
        r#"{"snapshot_path": "s"}"#,
        "An error occurred when deserializing the json body of a request: missing field: either `mem_backend` or `mem_file_path` is required.",
    ),
];

#[test]
fn each_thing_has_its_time() {
    let served = Served::start("time", &[]);
    for (method, path, body) in [
        ("PATCH", "/vm", &vm("Paused")[..]),
        ("PATCH", "/balloon", r#"{"amount_mib": 1}"#),
        ("PATCH", "/drives/d", r#"{"drive_id": "d"}"#),
        ("PATCH", "/network-interfaces/n", r#"{"iface_id": "n"}"#),
        (
            "PATCH",
            "/balloon/statistics",
            r#"{"stats_polling_interval_s": 1}"#,
        ),
        (
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_path": "s", "mem_file_path": "m"}"#,
        ),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
        ("GET", "/balloon/statistics", ""),
    ] {
        http::request(&served.socket(), method, path, body).expect_fault(&["not supported before starting"]);
    }
    for (verb, body) in [
        ("pause", ""),
        ("resume", ""),
        ("rewind", r#"{"directory": "s"}"#),
        ("snapshot", r#"{"directory": "s", "diff": false, "stop": false}"#),
    ] {
        let path = format!("/posada/v1/{verb}");
        served.put(&path, body).expect_fault(&["has not been started"]);
    }
    served.put("/actions", START).expect_fault(&["kernel"]);
    served.boot("echo");
    let load = r#"{"snapshot_path": "s", "mem_file_path": "m"}"#;
    served
        .put("/snapshot/load", load)
        .expect_fault(&["not allowed after configuring"]);
    served.put("/actions", START).expect(204);
    for (path, body) in [
        ("/boot-source", &boot_source("echo").to_string()[..]),
        ("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#),
        ("/vsock", r#"{"guest_cid": 3, "uds_path": "v"}"#),
        ("/balloon", r#"{"amount_mib": 1, "deflate_on_oom": false}"#),
        ("/entropy", "{}"),
        ("/serial", "{}"),
        ("/logger", "{}"),
        ("/cpu-config", "{}"),
        ("/actions", START),
        ("/snapshot/load", load),
    ] {
        served
            .put(path, body)
            .expect_fault(&["not supported after starting"]);
    }
    let machine = r#"{"mem_size_mib": 64}"#;
    served
        .patch("/machine-config", machine)
        .expect_fault(&["not supported after starting"]);
    served.end();
}

#[test]
fn what_is_no_request_is_refused_and_the_guest_goes_on() {
    let served = Served::running("wrong", "echo");
    for path in [
        "/",
        "/vm",
        "/nothing",
        "/vm/config/x",
        "//",
        "/posada/v1/fly",
        "/posada",
        "/drives/%00",
    ] {
        for method in ["PUT", "PATCH", "POST", "DELETE", "OPTIONS"] {
            http::request(&served.socket(), method, path, "{}").expect(400);
            http::request(&served.socket(), method, path, "").expect(400);
        }
    }
    served
        .get("/nothing")
        .expect_fault(&["Invalid request method and/or path: GET nothing."]);
    for (method, path, body, why) in FAULTS {
        let fault = http::request(&served.socket(), method, path, body).expect(400);
        assert_eq!(fault.json()["fault_message"], *why, "{method} {path} {body}");
    }
    http::request(&served.socket(), "GET", "/", "{}").expect_fault(&["cannot have a body"]);
    for (method, path) in WITH_A_BODY {
        for body in [
            "",
            "{",
            "[]",
            "[null, null]",
            "7",
            "\"text\"",
            "null",
            r#"{"unknown": 1}"#,
            "\u{1}",
            "[[[[[[[[[[",
        ] {
            http::request(&served.socket(), method, path, body).expect(400);
        }
    }
    served.end();
}

#[test]
fn what_posada_cannot_do_is_said_in_a_sentence() {
    let served = Served::start("cannot", &[]);
    let image = image(&served.place("disk.img"));
    let drive = |part: &str, value: Value| {
        let mut drive =
            json!({ "drive_id": "d", "is_root_device": false, "path_on_host": image, "is_read_only": true });
        drive[part] = value;
        drive.to_string()
    };
    for (path, body, named) in [
        (
            "/boot-source",
            r#"{"kernel_image_path": "/no/kernel"}"#.to_owned(),
            "/no/kernel",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 0, "mem_size_mib": 64}"#.to_owned(),
            "vCPUs",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 33, "mem_size_mib": 64}"#.to_owned(),
            "vCPUs",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 0}"#.to_owned(),
            "memory size",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 3, "mem_size_mib": 64, "smt": true}"#.to_owned(),
            "smt",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}"#.to_owned(),
            "cpu_template",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"}"#.to_owned(),
            "huge_pages",
        ),
        ("/drives/d", drive("path_on_host", json!("/no/disk")), "/no/disk"),
        ("/drives/d", drive("socket", json!("/s")), "vhost-user"),
        ("/drives/other", drive("partuuid", Value::Null), "does not match"),
        (
            "/drives/d",
            drive(
                "rate_limiter",
                json!({ "ops": { "size": 1, "refill_time": 1001 } }),
            ),
            "less than one",
        ),
        ("/drives/a-b", drive("drive_id", json!("a-b")), "alphanumeric"),
        ("/drives/", drive("drive_id", json!("")), "cannot be empty"),
        (
            "/network-interfaces/n",
            r#"{"iface_id": "n", "host_dev_name": "a/b"}"#.to_owned(),
            "a/b",
        ),
        ("/vsock", r#"{"guest_cid": 2, "uds_path": "v"}"#.to_owned(), "cid"),
        (
            "/balloon",
            r#"{"amount_mib": 1, "deflate_on_oom": true, "free_page_hinting": true}"#.to_owned(),
            "hinting",
        ),
        (
            "/entropy",
            r#"{"rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}"#.to_owned(),
            "rate_limiter",
        ),
        (
            "/serial",
            r#"{"rate_limiter": {"size": 1, "refill_time": 1}}"#.to_owned(),
            "rate_limiter",
        ),
        ("/logger", r#"{"module": "m"}"#.to_owned(), "module"),
        ("/logger", r#"{"level": "Loud"}"#.to_owned(), "Loud"),
        (
            "/metrics",
            r#"{"metrics_path": "/nowhere/m"}"#.to_owned(),
            "/nowhere/m",
        ),
        (
            "/mmds/config",
            r#"{"network_interfaces": []}"#.to_owned(),
            "MMMDS config error: The list of network interface IDs",
        ),
        (
            "/pmem/p",
            r#"{"id": "p", "path_on_host": "p"}"#.to_owned(),
            "persistent memory",
        ),
        ("/hotplug/memory", r#"{"total_size_mib": 1}"#.to_owned(), "memory"),
        (
            "/cpu-config",
            r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "101"}]}"#.to_owned(),
            "'101' is no bitmap",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path": "/no/s", "mem_file_path": "/no/m"}"#.to_owned(),
            "No such file",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path": "/no/s"}"#.to_owned(),
            "missing field",
        ),
    ] {
        served.put(path, &body).expect_fault(&[named]);
    }
    // An array is no object, however deep.
    for (path, body) in [
        ("/entropy", json!({ "rate_limiter": [null, null] })),
        ("/serial", json!({ "rate_limiter": [1, null, 1] })),
        (
            "/entropy",
            json!({ "rate_limiter": { "bandwidth": [1, null, 1] } }),
        ),
        (
            "/network-interfaces/n",
            json!({ "iface_id": "n", "host_dev_name": "t", "rx_rate_limiter": [null, null] }),
        ),
        (
            "/snapshot/load",
            json!({ "snapshot_path": "s", "mem_backend": ["m", "File"] }),
        ),
        (
            "/snapshot/load",
            json!({ "snapshot_path": "s", "mem_file_path": "m", "vsock_override": ["v"] }),
        ),
        (
            "/snapshot/load",
            json!({ "snapshot_path": "s", "mem_file_path": "m", "network_overrides": [["n", "t"]] }),
        ),
    ] {
        served
            .put(path, &body.to_string())
            .expect_fault(&["invalid type: sequence, expected a map"]);
    }
    // What was refused has left nothing behind.
    let untouched = served.get("/vm/config").expect(200).json();
    assert_eq!(untouched["drives"], json!([]));
    let big = r#"{"amount_mib": 128, "deflate_on_oom": true}"#;
    served.put("/balloon", big).expect(204);
    served.boot("echo");
    served
        .put("/actions", START)
        .expect_fault(&["balloon", "leaves nothing"]);
    assert_eq!(served.state(), "Not started");
    let small = r#"{"amount_mib": 0, "deflate_on_oom": true}"#;
    served.put("/balloon", small).expect(204);
    served.put("/actions", START).expect(204);
    served.end();
}

#[test]
fn huge_and_half_requests_and_silence_keep_nobody_from_being_heard() {
    let served = Served::running("broken", "echo");
    let socket = served.socket();
    for (method, path) in WITH_A_BODY {
        http::request(&socket, method, path, &"x".repeat(51_201)).expect_fault(&["longer than 51200"]);
    }
    let whole = http::text("PUT", "/vm", &"y".repeat(1 << 20));
    let chunked = "PUT /vm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n";
    for bytes in [
        whole.as_bytes(),
        &[chunked.as_bytes(), &[b'z'; 1 << 20]].concat(),
        &[b"GET / HTTP/1.1\r\n".as_slice(), &b"A: b\r\n".repeat(10_000)].concat(),
        &[b'a'; 1 << 20],
        b"GET / HTTP/1.1\r\nHost",
        b"PUT /actions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        b"PUT /actions HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"\n\n\n\n",
    ] {
        let reply = http::raw(&socket, bytes).unwrap();
        assert!(reply.status == 0 || reply.status >= 400, "{reply:?}");
    }
    // Some who say nothing, and some who stop in the middle of a word.
    let silent: Vec<_> = (0..50).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for mut stream in &silent[..25] {
        stream
            .write_all(b"PUT /vm HTTP/1.1\r\nContent-Length: 9\r\n\r\n{\"st")
            .unwrap();
    }
    assert_eq!(served.state(), "Running");
    served.end();
    drop(silent);
}

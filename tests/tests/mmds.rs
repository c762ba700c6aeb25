//! The metadata service: what the host puts for a guest, the guest fetches over one of its networks, each test in a network namespace of its own.

use std::fs;

use posada_tests::served::{START, Served};
use posada_tests::{Guest, Running, network, posada};
use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

const ID: &str = "/latest/meta-data/ami-id";

/// A guest that has asked for `path` and was told so.
#[track_caller]
fn expect(guest: &mut Running, path: &str, told: &str) {
    guest.send(format!("{path}\n"));
    guest.wait_for(told);
}

fn document(id: &str) -> String {
    json!({ "latest": { "meta-data": { "ami-id": id, "rest": "x".repeat(40_000) } } }).to_string()
}

/// The body of a request for a network on the tap.
fn interface(id: &str) -> String {
    json!({ "iface_id": id, "host_dev_name": "t0", "guest_mac": "02:00:00:00:00:42" }).to_string()
}

#[test]
fn a_guest_fetches_what_is_put_for_it_and_so_does_its_copy() {
    network::isolate_with_tap();
    let mut served = Served::start("mmds", &[]);
    served.boot("http");
    served
        .put("/network-interfaces/eth0", &interface("eth0"))
        .expect(204);
    let config = r#"{"network_interfaces": ["eth0"], "version": "V2"}"#;
    served.put("/mmds/config", config).expect(204);
    assert_eq!(served.get("/mmds").expect(200).json(), json!({}));
    served.put("/mmds", &document("ami-1")).expect(204);
    served.put("/actions", START).expect(204);

    let guest = &mut served.running;
    guest.wait_for("ready to ask");
    expect(guest, ID, "status=401 ");
    expect(guest, "token", "status=200 bytes=64 ");
    expect(guest, ID, "status=200 bytes=5 body=ami-1\n");
    expect(guest, "/latest/meta-data/rest", "status=200 bytes=40000 ");
    expect(guest, "/latest/user-data", "status=404 ");
    let patch = json!({ "latest": { "meta-data": { "ami-id": "ami-2", "rest": null } } });
    served.patch("/mmds", &patch.to_string()).expect(204);
    expect(&mut served.running, ID, "body=ami-2\n");
    assert_eq!(
        served.get("/mmds").expect(200).json(),
        json!({ "latest": { "meta-data": { "ami-id": "ami-2" } } })
    );
    let told = served.get("/vm/config").expect(200).json();
    assert_eq!(
        told["mmds-config"]["network_interfaces"],
        json!(["eth0"]),
        "{told}"
    );

    let (state, memory) = (served.place("state"), served.place("memory"));
    served.patch("/vm", r#"{"state": "Paused"}"#).expect(204);
    let create = json!({ "snapshot_path": state, "mem_file_path": memory });
    served.put("/snapshot/create", &create.to_string()).expect(204);
    served.patch("/vm", r#"{"state": "Resumed"}"#).expect(204);
    expect(&mut served.running, ID, "body=ami-2\n");
    served.running.send("end\n");
    assert_eq!(served.running.wait().expect_status(0).messages(), "");

    // It has the service, but neither the data nor the tokens.
    let mut copy = Served::start("mmds-copy", &[]);
    copy.put("/mmds", &document("ami-3")).expect(204);
    let load = json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "File", "backend_path": memory },
        "resume_vm": true,
    });
    copy.put("/snapshot/load", &load.to_string()).expect(204);
    let guest = &mut copy.running;
    expect(guest, ID, "status=401 ");
    expect(guest, "token", "status=200 bytes=64 ");
    expect(guest, ID, "body=ami-3\n");
    guest.send("end\n");
    copy.running.wait().expect_status(0);
}

#[test]
fn a_guest_of_the_command_lines_has_the_service_beside_its_network() {
    network::isolate_with_tap();
    let directory = TempDir::new().unwrap();
    let file = directory.as_path().join("metadata.json");
    fs::write(&file, document("ami-4")).unwrap();
    let net = "--net=tap=t0,id=inside";
    let mmds = "--mmds=net=inside,address=169.254.170.2";
    let metadata = file.to_str().unwrap();
    posada(&["run", "--metadata", metadata]).expect_refusal(1, &["--mmds"]);
    let mut guest = Guest::bare("program=http host=169.254.170.2")
        .arg(net)
        .arg(mmds)
        .arg("--metadata")
        .arg(metadata)
        .start();
    guest.wait_for("ready to ask");
    expect(&mut guest, ID, "status=200 bytes=5 body=ami-4\n");
    guest.send("end\n");
    guest.wait().expect_status(0);
}

#[test]
fn what_cannot_be_is_told() {
    network::isolate_with_tap();
    let served = Served::start("mmds-refused", &["--mmds-size-limit", "100"]);
    served
        .put("/network-interfaces/eth0", &interface("eth0"))
        .expect(204);
    for (config, named) in [
        (r#"{"network_interfaces": []}"#, "is empty"),
        (r#"{"network_interfaces": ["eth1"]}"#, "does not correspond"),
        (
            r#"{"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}"#,
            "not link local",
        ),
        (r#"{"network_interfaces": ["eth0"], "version": "V3"}"#, "V3"),
        (r#"{"version": "V2"}"#, "network_interfaces"),
    ] {
        served.put("/mmds/config", config).expect_fault(&[named]);
    }
    served.patch("/mmds", "{}").expect_fault(&["not initialized"]);
    served.put("/mmds", "{").expect_fault(&["json"]);
    for value in ["7", "[1]", "\"text\""] {
        served.put("/mmds", value).expect(204);
        assert_eq!(served.get("/mmds").expect(200).body, value);
    }
    served.put("/mmds", &document("ami-5")).expect(413);
    served.put("/mmds", r#"{"a": 1}"#).expect(204);
    served.patch("/mmds", &document("ami-5")).expect(413);
    assert_eq!(served.get("/mmds").expect(200).json(), json!({ "a": 1 }));
}

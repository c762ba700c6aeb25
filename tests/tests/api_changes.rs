//! What is changed of a running guest by requests: a disk's image, limits, the balloon.

use std::fs::{self, File};

use posada_tests::network::{self, FRAME_HEADER, Wire, frame, make_tap};
use posada_tests::served::{START, Served, image, vm};
use serde_json::{Value, json};

#[test]
fn a_drive_gets_another_image_and_the_first_one_back() {
    let mut served = Served::start("drive", &[]);
    let (one, two) = (image(&served.place("one")), image(&served.place("two")));
    File::options()
        .write(true)
        .open(&two)
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    let drive =
        json!({ "drive_id": "data", "is_root_device": false, "path_on_host": one, "is_read_only": false });
    served.put("/drives/data", &drive.to_string()).expect(204);
    served.begin("blk-check rounds=yes mode=write seed=1");
    served.running.wait_for("checksum=");
    let update = |path: &str| json!({ "drive_id": "data", "path_on_host": path }).to_string();
    let checks = |served: &mut Served, line: &str| {
        served.running.send(format!("{line}\n"));
        served.running.wait_for("checksum=");
    };
    served.patch("/drives/data", &update(&two)).expect(204);
    // Beyond the end of the first one.
    checks(&mut served, "mode=write seed=2 first=10000");
    served.patch("/vm", &vm("Paused")).expect(204);
    served.patch("/drives/data", &update(&one)).expect(204);
    let config = served.get("/vm/config").expect(200).json();
    assert_eq!(config["drives"][0]["path_on_host"], one);
    served.patch("/vm", &vm("Resumed")).expect(204);
    checks(&mut served, "mode=read seed=1");
    assert!(
        fs::read(&two).unwrap()[..1 << 20].iter().all(|byte| *byte == 0),
        "it got nothing that is the other's"
    );

    served
        .patch("/drives/data", &update("/no/image"))
        .expect_fault(&["/no/image"]);
    served
        .patch("/drives/other", r#"{"drive_id": "other"}"#)
        .expect_fault(&["no drive 'other'"]);
    served
        .patch("/drives/other", &update(&one))
        .expect_fault(&["does not match"]);
    checks(&mut served, "mode=read seed=1");

    // Another file of the same name, which the guest has by the next request for it.
    fs::rename(&two, &one).unwrap();
    served.patch("/drives/data", &update(&one)).expect(204);
    checks(&mut served, "mode=read seed=2 first=10000");
    served.patch("/drives/data", &update(&one)).expect(204);
    fs::remove_file(&one).unwrap();
    let limit = json!({ "drive_id": "data", "rate_limiter": { "ops": { "size": 1000, "refill_time": 100, "of": "ops" } } });
    served.patch("/drives/data", &limit.to_string()).expect(204);
    checks(&mut served, "mode=read seed=2 first=10000");
    served.running.send("end\n");
    served.running.wait().expect_status(0);
}

#[test]
fn a_drive_is_limited_and_let_go() {
    let mut served = Served::start("limits", &[]);
    let path = image(&served.place("disk"));
    let drive =
        json!({ "drive_id": "data", "is_root_device": false, "path_on_host": path, "is_read_only": false });
    served.put("/drives/data", &drive.to_string()).expect(204);
    served.begin("blk-check rounds=yes mode=write");
    served.running.wait_for("checksum=");
    let limits =
        |served: &Served| served.get("/vm/config").expect(200).json()["drives"][0]["rate_limiter"].clone();
    let update = |bucket: Value| json!({ "drive_id": "data", "rate_limiter": { "ops": bucket } }).to_string();
    let once = json!({ "size": 500, "refill_time": 100, "one_time_burst": 70 });
    served.patch("/drives/data", &update(once.clone())).expect(204);
    assert_eq!(limits(&served)["ops"], once);
    for (bucket, now) in [
        (json!({ "size": 1000, "refill_time": 100 }), true),
        // No bucket is no change, an empty one is no limit.
        (Value::Null, true),
        (json!({ "size": 0, "refill_time": 100 }), false),
    ] {
        served.patch("/drives/data", &update(bucket)).expect(204);
        assert_eq!(limits(&served)["ops"]["size"] == 1000, now, "{}", limits(&served));
        served.running.send("mode=read\n");
        served.running.wait_for("checksum=");
    }
    served
        .patch("/drives/data", &update(json!({ "size": 1, "refill_time": 9999 })))
        .expect_fault(&["less than one"]);
    served.running.send("end\n");
    served.running.wait().expect_status(0);
}

#[test]
fn a_network_is_limited_and_a_restored_guest_is_on_another_tap() {
    network::isolate();
    for tap in ["t0", "t1"] {
        make_tap(tap);
    }
    let mut served = Served::start("net", &[]);
    let net = json!({ "iface_id": "eth0", "host_dev_name": "t0", "guest_mac": "02:00:00:00:00:42" });
    served
        .put("/network-interfaces/eth0", &net.to_string())
        .expect(204);
    served.begin("ping-pong count=3 wait=interrupt");
    served.running.wait_for("ready to play");
    comes_back("t0");
    let limiter = json!({ "ops": { "size": 1000, "refill_time": 1000 } });
    let mut update = json!({ "iface_id": "eth0", "rx_rate_limiter": limiter, "tx_rate_limiter": limiter });
    served
        .patch("/network-interfaces/eth0", &update.to_string())
        .expect(204);
    let now = served.get("/vm/config").expect(200).json()["network-interfaces"][0].clone();
    assert_eq!(now["tx_rate_limiter"]["ops"]["size"], 1000, "{now}");
    update["rx_rate_limiter"] = Value::Null;
    update["tx_rate_limiter"]["ops"]["size"] = json!(7);
    served
        .patch("/network-interfaces/eth0", &update.to_string())
        .expect(204);
    let now = served.get("/vm/config").expect(200).json()["network-interfaces"][0].clone();
    let size = |way: &str| now[way]["ops"]["size"].clone();
    assert_eq!(
        (size("rx_rate_limiter"), size("tx_rate_limiter")),
        (json!(1000), json!(7))
    );
    comes_back("t0");

    served.patch("/vm", &vm("Paused")).expect(204);
    let (state, memory) = (served.place("state"), served.place("memory"));
    let snapshot = json!({ "snapshot_path": state, "mem_file_path": memory }).to_string();
    served.put("/snapshot/create", &snapshot).expect(204);
    let next = Served::start("next-net", &[]);
    let load = |iface: &str| {
        let overrides = json!([{ "iface_id": iface, "host_dev_name": "t1" }]);
        json!({ "snapshot_path": state, "mem_file_path": memory, "network_overrides": overrides, "resume_vm": true })
            .to_string()
    };
    next.put("/snapshot/load", &load("eth7"))
        .expect_fault(&["no network interface 'eth7'"]);
    next.put("/snapshot/load", &load("eth0")).expect(204);
    comes_back("t1");
    next.running.wait().expect_status(0);
}

/// A frame that is sent to the tap comes back from a `ping-pong` guest.
fn comes_back(tap: &str) {
    let wire = Wire::on(tap);
    let sent = frame(100);
    wire.send(&sent);
    assert_eq!(wire.receive()[FRAME_HEADER..], sent[FRAME_HEADER..]);
}

#[test]
fn a_balloon_gets_another_size_and_tells_what_is_in_it() {
    let mut served = Served::start("balloon", &[]);
    let balloon = r#"{"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 60}"#;
    served.put("/balloon", balloon).expect(204);
    served.boot("balloon size=16M");
    served.put("/actions", START).expect(204);
    served.running.wait_for("used:");
    served.patch("/balloon", r#"{"amount_mib": 8}"#).expect(204);
    assert_eq!(served.get("/balloon").expect(200).json()["amount_mib"], 8);
    served.running.send("\n");
    served.running.wait_for("handed over:");
    let statistics = served.get("/balloon/statistics").expect(200).json();
    assert_eq!(statistics["target_pages"], 8 << 8, "{statistics}");
    assert_eq!(
        (&statistics["target_mib"], &statistics["actual_mib"]),
        (&json!(8), &json!(16))
    );
    served
        .patch("/balloon", r#"{"amount_mib": 128}"#)
        .expect_fault(&["leaves nothing"]);
    served
        .patch("/balloon/statistics", r#"{"stats_polling_interval_s": 1}"#)
        .expect(204);
    assert_eq!(
        served.get("/balloon").expect(200).json()["stats_polling_interval_s"],
        1
    );
    served
        .patch("/balloon/statistics", r#"{"stats_polling_interval_s": 0}"#)
        .expect_fault(&["stats every 0"]);
    served.running.send("\n");
    served.running.wait().expect_status(0);
}

#[test]
fn what_a_guest_has_not_is_not_changed() {
    let served = Served::running("nothing", "echo");
    for (path, body, named) in [
        ("/balloon", r#"{"amount_mib": 1}"#, "no balloon"),
        (
            "/balloon/statistics",
            r#"{"stats_polling_interval_s": 1}"#,
            "no balloon",
        ),
        ("/drives/d", r#"{"drive_id": "d"}"#, "no drive 'd'"),
        (
            "/network-interfaces/n",
            r#"{"iface_id": "n"}"#,
            "no network interface 'n'",
        ),
    ] {
        served.patch(path, body).expect_fault(&[named]);
    }
    served.get("/balloon/statistics").expect_fault(&["no balloon"]);
    served.end();
}

//! What is counted of a guest, by whichever way it is asked for.

use std::collections::BTreeMap;
use std::fs;

use posada_tests::served::{START, Served};
use posada_tests::{Guest, posada};
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

/// Bytes of the pattern that `blk-check` writes, flushes and reads back: 64 sectors.
const PATTERN: u64 = 64 * 512;
/// What its first round asks for: these, and the disk's id.
const REQUESTS: u64 = 4;

/// The values of a part of a kind, by its labels: all that are given have to be there.
fn values<'a>(stats: &'a Value, part: &str, labels: &[(&str, &str)]) -> &'a Value {
    let parts = stats.as_array().expect("a list of parts");
    let found = parts.iter().find(|found| {
        found["part"] == part && labels.iter().all(|(name, value)| found["labels"][name] == *value)
    });
    &found.unwrap_or_else(|| panic!("there is no {part} {labels:?} in {stats}"))["values"]
}

/// Prometheus's text by what stands before each value.
fn samples(text: &str) -> BTreeMap<&str, u64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').expect("a value behind its name"));
    pairs
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .collect()
}

#[test]
fn what_a_guest_does_is_counted_and_told_as_a_table_as_json_and_to_prometheus() {
    let place = TempDir::new().unwrap();
    let image = place.as_path().join("disk.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let name = format!("counted-{}", std::process::id());
    let mut guest = Guest::bare("program=blk-check rounds=yes seed=1")
        .arg("--disk")
        .arg(format!("{},id=data", image.display()))
        .arg("--rng")
        .named(&name)
        .start();
    guest.wait_for("checksum=");

    let told = posada(&["stats", &name, "--json"]).expect_status(0).console();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told[0]["name"], name);
    let stats = &told[0]["stats"];
    let disk = values(stats, "block", &[("device", "data")]);
    for (what, expected) in [
        ("reads", 1),
        ("read_bytes", PATTERN),
        ("writes", 1),
        ("written_bytes", PATTERN),
        ("flushes", 1),
        ("errors", 0),
    ] {
        assert_eq!(disk[what], expected, "{what} in {disk}");
    }
    let queue = values(stats, "queue", &[("device", "data"), ("queue", "0")]);
    assert_eq!(queue["requests"], REQUESTS, "{queue}");
    assert!(values(stats, "vcpu", &[("vcpu", "0")])["port_writes"].as_u64() > Some(0));
    let printed = values(stats, "console", &[])["output_bytes"].as_u64();
    assert!(printed >= Some("checksum=".len() as u64), "{printed:?}");
    assert!(values(stats, "thread", &[("thread", "vcpu0")])["cpu_nanoseconds"].as_u64() > Some(0));
    assert_eq!(values(stats, "guest", &[])["running"], 1);
    assert_eq!(values(stats, "rng", &[("device", "rng")])["bytes"], 0);

    guest.send("first=0 sectors=64 mode=read seed=1\n");
    guest.wait_for("checksum=");
    let text = posada(&["stats", &name, "--prometheus"])
        .expect_status(0)
        .console();
    let samples = samples(&text);
    let of_disk =
        |what: &str| samples[&*format!("posada_block_{what}_total{{guest=\"{name}\",device=\"data\"}}")];
    assert_eq!((of_disk("reads"), of_disk("writes")), (2, 1));
    assert_eq!(of_disk("read_bytes"), 2 * PATTERN);

    let table = posada(&["stats", &name]).expect_status(0).console();
    let [head, row] = table.lines().collect::<Vec<_>>().try_into().unwrap();
    assert!(head.starts_with("NAME") && row.starts_with(&name), "{table}");
    assert!(row.contains("32K") && row.contains("64K"), "{table}");
    posada(&["stats", "--prometheus"]).expect_status(2);
    posada(&["stats", "nobody"]).expect_refusal(1, &["nobody"]);
    posada(&["kill", &name]).expect_status(0);
}

#[test]
fn what_may_pass_once_passes_before_a_limit_holds_anything_back() {
    let place = TempDir::new().unwrap();
    let image = place.as_path().join("disk.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let name = format!("once-{}", std::process::id());
    let mut guest = Guest::bare("program=blk-check rounds=yes seed=1")
        .arg("--disk")
        .arg(format!(
            "{},id=data,iops=1,iops-burst=1,iops-once={REQUESTS}",
            image.display()
        ))
        .named(&name)
        .start();
    let stalls = || {
        let told = posada(&["stats", &name, "--json"]).expect_status(0).console();
        let told: Value = serde_json::from_str(&told).unwrap();
        values(&told[0]["stats"], "block", &[("device", "data")])["stalls"].as_u64()
    };
    guest.wait_for("checksum=");
    assert_eq!(stalls(), Some(0));
    guest.send("seed=2\n");
    guest.wait_for("checksum=");
    assert!(stalls() > Some(0), "three requests have a token");
    guest.send("end\n");
    guest.wait().expect_status(0);
}

#[test]
fn lines_for_firecrackers_clients_tell_what_has_come_since_the_last() {
    let mut served = Served::start("metrics", &[]);
    let image = served.place("disk.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let lines = served.place("metrics");
    let metrics =
        json!({ "metrics_path": lines, "emit_id": true, "properties": { "room": "7" } }).to_string();
    served
        .put("/metrics", r#"{"metrics_path": "/nowhere/at/all"}"#)
        .expect_fault(&["/nowhere/at/all"]);
    served.put("/metrics", &metrics).expect(204);
    served.put("/metrics", &metrics).expect_fault(&["already"]);
    served.boot("blk-check rounds=yes");
    let drive =
        json!({ "drive_id": "data", "is_root_device": false, "path_on_host": image, "is_read_only": false });
    served.put("/drives/data", &drive.to_string()).expect(204);
    served.put("/actions", START).expect(204);
    served.put("/metrics", &metrics).expect_fault(&["after starting"]);
    served.running.wait_for("checksum=");
    let flush = r#"{"action_type": "FlushMetrics"}"#;
    served.put("/actions", flush).expect(204);
    served.put("/actions", flush).expect(204);
    let text = served.get("/posada/v1/metrics").expect(200).body;
    assert!(text.contains("# TYPE posada_block_reads_total counter"), "{text}");
    served.running.send("end\n");
    served.running.wait().expect_status(0);

    let lines = fs::read_to_string(&lines).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // Two that were asked for, one at the end, and one for each minute, as long as that may have taken.
    assert!(lines.len() >= 3, "{lines:?}");
    for line in &lines {
        assert_eq!(
            (&line["id"], &line["properties"]["room"]),
            (&json!(served.name), &json!("7"))
        );
    }
    let sum = |group: &str, name: &str| {
        let told = lines.iter().filter_map(|line| line[group][name].as_u64());
        told.sum::<u64>()
    };
    // Each thing is told once, in one of the lines.
    assert_eq!(sum("block", "write_bytes"), PATTERN, "{lines:?}");
    assert_eq!(sum("block_data", "write_bytes"), PATTERN, "{lines:?}");
    assert_eq!(sum("put_api_requests", "drive_count"), 1, "{lines:?}");
    assert_eq!(sum("put_api_requests", "metrics_fails"), 3, "{lines:?}");
    assert_eq!(
        sum("put_api_requests", "actions_count"),
        3,
        "the start and two flushes: {lines:?}"
    );
    assert!(sum("vcpu", "exit_io_out") > 0, "{lines:?}");
}

#[test]
fn a_guest_says_when_it_has_booted() {
    let served = Served::start("timer", &["--boot-timer", "--level", "Info"]);
    served.begin("boot-timer");
    let ended = served.running.wait().expect_status(0);
    let messages = ended.messages();
    let line = messages.lines().find(|line| line.contains("Guest-boot-time"));
    let line = line.unwrap_or_else(|| panic!("{messages}"));
    let microseconds = line.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(microseconds > Some(0), "{line}");
    assert_eq!(
        messages.matches("Guest-boot-time").count(),
        1,
        "only what the guest says tells: {messages}"
    );

    let ended = Guest::bare("program=boot-timer").run().expect_status(0);
    assert!(!ended.messages().contains("boot-time"), "{}", ended.messages());
}

#[test]
fn how_long_each_step_of_a_start_took_is_told_to_who_wants_to_know() {
    let messages = |flag: &str| {
        let guest = Guest::bare("program=hello").arg(flag);
        guest.run().expect_status(0).messages()
    };
    for step in ["foundation", "build", "build:load kernel"] {
        let told = format!("DEBUG {step}: close time.busy=");
        assert!(messages("-vv").contains(&told), "{told}");
    }
    assert!(!messages("-v").contains("close"), "steps are for who asks twice");
}

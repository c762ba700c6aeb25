//! docs/openapi.yaml is what the server does: schemathesis makes requests of it, right ones and wrong ones, and looks at the answers.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use posada_tests::served::{START, boot_source, image};
use posada_tests::{Running, http, schemathesis};
use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

/// Streams, which end when the guest does; attach.rs and events.rs are about them.
const STREAMS: [&str; 2] = ["/posada/v1/attach", "/posada/v1/events"];
/// Has the rest of its arguments run where the host's files can only be read, but those of the directory that it is in: requests name
/// files of all kinds.
const APART: &str = r#"mount --bind . . && mount -o remount,bind,ro / && cd "$PWD" && exec "$@""#;

/// A server of its own.
struct Checked {
    running: Running,
    place: TempDir,
}

impl Checked {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--map-root-user", "sh", "-c", APART, "sh"])
            .arg(posada_tests::posada::binary())
            .args(["serve", "--api-sock", "api.sock"])
            .current_dir(place.as_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut checked = Self {
            running: Running::of(command),
            place,
        };
        let socket = checked.socket();
        let listens = |_: &Running| UnixStream::connect(&socket).is_ok();
        checked.running.wait_until("the socket is served", listens);
        checked
    }

    fn socket(&self) -> PathBuf {
        self.place.as_path().join("api.sock")
    }

    fn put(&self, path: &str, body: &str) {
        http::request(&self.socket(), "PUT", path, body).expect(204);
    }

    /// Makes requests of every kind that the description has, the same ones each time, but those that end the server.
    fn expect_as_described(&self, but: &[&str]) {
        let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.yaml");
        let server = format!("http://{}", schemathesis::at_a_port(&self.socket()));
        let client = self.place.as_path().join("client");
        fs::create_dir(&client).unwrap();
        let output = schemathesis::command()
            .arg("run")
            .arg(description)
            .args(["--url", &server, "--seed", "1", "--max-examples", "10"])
            .args([
                "--phases",
                "examples,coverage,fuzzing",
                "--request-timeout",
                "60",
                "--no-color",
            ])
            .args(
                but.iter()
                    .chain(&STREAMS)
                    .flat_map(|path| ["--exclude-path", path]),
            )
            // A busy machine is no failure.
            .args(["--suppress-health-check", "all"])
            // As Firecracker: 400 for a method that there is not; and whether a right request can be done depends on the guest.
            .args(["--exclude-checks", "unsupported_method,positive_data_acceptance"])
            .current_dir(client)
            .output()
            .expect("schemathesis runs");
        assert!(
            output.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn end(self) {
        self.put("/posada/v1/kill", "");
        self.running.wait().expect_status(0).expect_no_panic();
    }
}

#[test]
fn a_server_whose_guest_has_not_been_started_answers_as_described() {
    let checked = Checked::new();
    checked.expect_as_described(&["/posada/v1/kill"]);
    checked.end();
}

#[test]
fn a_server_whose_guest_runs_answers_as_described() {
    let mut checked = Checked::new();
    let image = image(&checked.place.as_path().join("disk.img"));
    let drive =
        json!({ "drive_id": "d", "is_root_device": false, "path_on_host": image, "is_read_only": false });
    checked.put("/drives/d", &drive.to_string());
    let balloon = r#"{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#;
    checked.put("/balloon", balloon);
    checked.put("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 32}"#);
    checked.put("/boot-source", &boot_source("echo").to_string());
    checked.put("/actions", START);
    checked.running.wait_for("listening\n");
    // A snapshot can be the last thing that a guest does.
    checked.expect_as_described(&["/posada/v1/kill", "/posada/v1/snapshot"]);
    checked.end();
}

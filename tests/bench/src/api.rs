//! The API: what it costs until it answers, and how fast it answers while guests keep every core busy.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use posada_tests::running::until;
use posada_tests::{http, payload};
use serde_json::json;
use vmm_sys_util::tempdir::TempDir;

use crate::table::{Table, median};
use crate::{posada, threads};

const STARTS: usize = 20;
const REQUESTS: usize = 200;
/// Milliseconds of CPU.
const READY_LIMIT: f64 = 5.0;
/// Milliseconds.
const GET_LIMIT: f64 = 1.0;

/// Measures both.
pub fn measure(table: &mut Table) {
    let ready = (0..STARTS).map(|_| Served::start(None).cpu_millis()).collect();
    table.absolute(
        "API: process start → answers, its CPU",
        median(ready),
        "ms",
        READY_LIMIT,
    );
    let kernel = payload::elf(payload::spins(), false);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let guests: Vec<_> = (0..cores).map(|_| Served::start(Some(&kernel))).collect();
    let mut times: Vec<_> = (0..REQUESTS).map(|_| guests[0].ask()).collect();
    times.sort_by(f64::total_cmp);
    let last = times[REQUESTS * 99 / 100];
    table.absolute(
        "API: a GET, guests spin on every core",
        median(times),
        "ms",
        GET_LIMIT,
    );
    table.remark(format!("API: 99 of 100 such GETs take no more than {last:.3} ms"));
}

/// `posada serve`, by itself or with a guest.
struct Served {
    process: Child,
    directory: TempDir,
}

impl Served {
    /// Starts it, with a guest that runs `kernel` if there is one, and waits until it answers.
    fn start(kernel: Option<&[u8]>) -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        let place = |name: &str| directory.as_path().join(name);
        let mut command = Command::new(posada());
        command.env("XDG_RUNTIME_DIR", directory.as_path());
        command.args(["serve", "--api-sock"]).arg(place("api.sock"));
        if let Some(kernel) = kernel {
            fs::write(place("kernel"), kernel).expect("a file for the guest");
            let config = json!({
                "boot-source": { "kernel_image_path": place("kernel") },
                "machine-config": { "vcpu_count": 1, "mem_size_mib": 16 },
                "drives": [],
            });
            fs::write(place("config"), config.to_string()).expect("a file for the configuration");
            command.arg("--config-file").arg(place("config"));
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("posada starts");
        if kernel.is_some() {
            let output = process.stdout.as_mut().expect("its output is piped");
            output.read_exact(&mut [0]).expect("the guest says that it spins");
        }
        let served = Self { process, directory };
        until("posada answers", || {
            http::raw(&served.socket(), question().as_bytes()).is_ok()
        });
        served
    }

    fn socket(&self) -> PathBuf {
        self.directory.as_path().join("api.sock")
    }

    /// Milliseconds that one question takes.
    fn ask(&self) -> f64 {
        let start = Instant::now();
        let reply = http::raw(&self.socket(), question().as_bytes()).expect("it listens");
        let elapsed = start.elapsed().as_secs_f64() * 1e3;
        reply.expect(200);
        elapsed
    }

    /// Milliseconds of CPU that the process has had, in all of its threads.
    fn cpu_millis(&self) -> f64 {
        let threads = threads::of(self.process.id());
        threads.iter().map(|thread| thread.nanos).sum::<u64>() as f64 / 1e6
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn question() -> String {
    http::text("GET", "/", "")
}

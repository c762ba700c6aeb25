//! Another VMM with the same guests on the same file and tap: Firecracker, if `$FIRECRACKER` is its binary.
//!
//! It is a peer because it boots by PVH, has virtio over MMIO and tells a guest of its devices as posada does. Each limit is a
//! time as a multiple of the peer's: by how much posada is to be ahead.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use posada_tests::{images, payload};
use serde_json::{Value, json};
use vmm_sys_util::tempdir::TempDir;

use crate::bare::{self, BareGuest, Sample};
use crate::disk::{FLUSHES, Image, LOADS};
use crate::net::{FRAME, FRAMES, PING, PINGS, round_trips, while_sending};
use crate::start::first_output;
use crate::table::{Table, median};
use crate::{posada, tap};

const RUNS: usize = 5;
/// Of a load's requests this share is enough beside a peer that is not much faster or slower.
const SHARE: u64 = 3;
const STARTS: usize = 20;
const BINARY: &str = "FIRECRACKER";
/// MiB of guest memory: what posada gives a guest by default.
const MEMORY: u32 = 128;
/// In the order of [`LOADS`].
const LOAD_LIMITS: [f64; 5] = [0.83, 1.0, 0.69, 0.43, 0.65];
const FLUSH_LIMIT: f64 = 0.4;
const TRANSMIT_LIMIT: f64 = 0.78;
const RECEIVE_LIMIT: f64 = 0.87;
const PING_PONG_LIMIT: f64 = 0.9;
const START_LIMIT: f64 = 0.34;
const START_WITH_DEVICES_LIMIT: f64 = 0.36;

/// Starts both by turns.
pub fn measure_starts(table: &mut Table) {
    with_peer(table, |table, peer| starts(table, peer, &Image::new()));
}

/// Runs each of a disk's loads in both by turns.
pub fn measure_disks(table: &mut Table) {
    with_peer(table, |table, peer| disk(table, peer, &Image::new()));
}

/// Runs each of a network's loads in both by turns.
pub fn measure_networks(table: &mut Table) {
    with_peer(table, net);
}

fn with_peer(table: &mut Table, measure: impl FnOnce(&mut Table, &Peer) + Send) {
    let Some(binary) = env::var_os(BINARY) else {
        table.remark(format!("peer: not measured, for ${BINARY} names no binary"));
        return;
    };
    // A thread of its own: it leaves this program's network.
    thread::scope(|scope| {
        let all = scope.spawn(|| match tap::enter_namespace() {
            Ok(()) => measure(table, &Peer::new(binary)),
            Err(error) => table.remark(format!("peer: not measured, for there is no tap: {error}")),
        });
        all.join().expect("the measurement ends");
    });
}

/// The other VMM.
struct Peer {
    binary: OsString,
    directory: TempDir,
}

impl Peer {
    fn new(binary: OsString) -> Self {
        let directory = TempDir::new().expect("a directory for temporary files");
        Self { binary, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.as_path().join(name)
    }

    /// The command that boots `kernel` with these devices, the members of its configuration that are lists.
    fn command(&self, kernel: &Path, cmdline: &str, devices: &Value) -> Command {
        let mut config = json!({
            "boot-source": { "kernel_image_path": kernel, "boot_args": cmdline },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": MEMORY },
            "drives": [],
        });
        for (key, list) in devices.as_object().into_iter().flatten() {
            config[key] = list.clone();
        }
        let path = self.path("config.json");
        fs::write(&path, config.to_string()).expect("a file for the configuration");
        let mut command = Command::new(&self.binary);
        // What it logs would come between what the guest prints.
        command
            .args(["--no-api", "--level", "Error", "--config-file"])
            .arg(path);
        command
    }

    fn bare(&self, program: &str, devices: &Value) -> BareGuest {
        let cmdline = bare::command_line(program);
        BareGuest::run(&mut self.command(&images::bare(), &cmdline, devices), false)
    }
}

/// A disk that is as durable as posada's.
fn drive(image: &Image, engine: &str) -> Value {
    json!({ "drives": [{
        "drive_id": "disk",
        "path_on_host": image.path,
        "is_root_device": false,
        "is_read_only": false,
        "cache_type": "Writeback",
        "io_engine": engine,
    }] })
}

fn card() -> Value {
    json!({ "network-interfaces": [{ "iface_id": "net", "host_dev_name": tap::NAME }] })
}

fn starts(table: &mut Table, peer: &Peer, image: &Image) {
    let kernel = peer.path("kernel");
    fs::write(&kernel, payload::elf(payload::hello(), false)).expect("a file for the guest");
    let mut devices = drive(image, "Sync");
    devices["network-interfaces"] = card()["network-interfaces"].clone();
    let mut arguments = image.arguments();
    arguments.extend(crate::net::arguments());
    for (what, limit, arguments, devices) in [
        ("peer: start → first output", START_LIMIT, vec![], json!({})),
        (
            "peer: the same with a disk and a tap",
            START_WITH_DEVICES_LIMIT,
            arguments,
            devices,
        ),
    ] {
        let pairs: Vec<_> = (0..STARTS)
            .map(|_| {
                let mut command = Command::new(posada());
                command.args(["run", "--kernel"]).arg(&kernel).args(&arguments);
                let ours = first_output(&mut command, true);
                let theirs = first_output(&mut peer.command(&kernel, "", &devices), false);
                (ours, theirs)
            })
            .collect();
        table.ratio(what, &pairs, "ms", limit);
    }
}

fn disk(table: &mut Table, peer: &Peer, image: &Image) {
    for (load, limit) in LOADS.iter().zip(LOAD_LIMITS) {
        let program = format!("{} count={}", load.program(), load.count / SHARE);
        compare_disks(
            table,
            &format!("peer: {}", load.what),
            &program,
            (peer, image),
            limit,
        );
    }
    let program = format!("blk-bench op=flush depth=1 count={FLUSHES}");
    let what = "peer: disk: flush with nothing to write";
    compare_disks(table, what, &program, (peer, image), FLUSH_LIMIT);
}

/// Of the peer's two engines the one counts that is faster at this.
fn compare_disks(table: &mut Table, what: &str, program: &str, (peer, image): (&Peer, &Image), limit: f64) {
    let cycles = bare::cycles_per_micro();
    let ours = || {
        image.settle();
        BareGuest::start(program, &image.arguments()).finish()
    };
    let theirs = |engine| {
        image.settle();
        peer.bare(program, &drive(image, engine)).finish()
    };
    let rounds: Vec<[Sample; 3]> = (0..RUNS)
        .map(|_| [ours(), theirs("Sync"), theirs("Async")])
        .collect();
    let micros = |of: usize| rounds.iter().map(move |round| round[of].micros(cycles));
    let (sync, uring) = (median(micros(1).collect()), median(micros(2).collect()));
    let better = if sync <= uring { 1 } else { 2 };
    table.ratio(
        what,
        &micros(0).zip(micros(better)).collect::<Vec<_>>(),
        "µs",
        limit,
    );
    let cpu = |of: usize| {
        median(
            rounds
                .iter()
                .map(|round| round[of].cpu_micros / round[of].get("requests"))
                .collect(),
        )
    };
    table.remark(format!(
        "{what}: its Sync engine {sync:.2} µs, Async {uring:.2} µs; CPU {:.2} µs, posada's {:.2} µs",
        cpu(better),
        cpu(0)
    ));
}

fn net(table: &mut Table, peer: &Peer) {
    let transmit = format!("net-bench direction=tx size={FRAME} count={FRAMES}");
    compare_cards(
        table,
        "peer: net: 1514 bytes out",
        &transmit,
        peer,
        TRANSMIT_LIMIT,
        |guest| guest.finish(),
    );
    let receive = format!("net-bench direction=rx size={FRAME} count={FRAMES}");
    compare_cards(
        table,
        "peer: net: 1514 bytes in",
        &receive,
        peer,
        RECEIVE_LIMIT,
        |mut guest| {
            guest.wait_for("ready to receive");
            while_sending(|| guest.finish())
        },
    );
    let ping_pong = format!("ping-pong start=host size={PING} count={PINGS}");
    let play = |mut guest: BareGuest| {
        guest.wait_for("ready to play");
        let micros = round_trips();
        guest.finish();
        micros
    };
    let pairs: Vec<_> = (0..RUNS)
        .map(|_| {
            let ours = play(BareGuest::start(&ping_pong, &crate::net::arguments()));
            (ours, play(peer.bare(&ping_pong, &card())))
        })
        .collect();
    table.ratio("peer: net: 64 bytes to and fro", &pairs, "µs", PING_PONG_LIMIT);
}

fn compare_cards(
    table: &mut Table,
    what: &str,
    program: &str,
    peer: &Peer,
    limit: f64,
    run: impl Fn(BareGuest) -> Sample,
) {
    let cycles = bare::cycles_per_micro();
    let pairs: Vec<_> = (0..RUNS)
        .map(|_| {
            let ours = run(BareGuest::start(program, &crate::net::arguments()));
            let theirs = run(peer.bare(program, &card()));
            (ours.micros(cycles), theirs.micros(cycles))
        })
        .collect();
    table.ratio(what, &pairs, "µs", limit);
}

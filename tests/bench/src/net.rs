//! A network on a tap: frames of the bare guest through posada, and the same by a program that has the tap itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use posada_tests::network;

use crate::bare::{self, BareGuest};
use crate::table::{Table, median};
use crate::tap::{self, HEADER, Packets, Tap};

const RUNS: usize = 5;
/// Frames that are sent and counted.
pub const FRAMES: u64 = 300_000;
/// Bytes of a full frame, without its checksum.
pub const FRAME: usize = 1514;
/// How long a tap that is full is left to who receives.
const PAUSE: Duration = Duration::from_micros(100);
/// Rounds of ping-pong, and bytes of the frame.
pub const PINGS: usize = 5000;
pub const PING: usize = 64;

/// Most µs for a frame or a round trip, as multiples of the floor's.
const TRANSMIT_LIMIT: f64 = 1.3;
/// On two CPUs the sender, the guest and posada's thread take turns, where the floor has two threads.
const RECEIVE_LIMIT: f64 = 7.0;
const PING_PONG_LIMIT: f64 = 2.0;

/// Measures frames out, frames in and a frame to and fro.
pub fn measure(table: &mut Table) {
    // A thread of its own: it leaves this program's network.
    thread::scope(|scope| {
        let all = scope.spawn(|| match tap::enter_namespace() {
            Ok(()) => {
                transmit(table);
                receive(table);
                ping_pong(table);
            }
            Err(error) => table.remark(format!("net: not measured, for there is no tap: {error}")),
        });
        all.join().expect("the measurement ends");
    });
}

/// What lets posada's guest have the tap.
pub fn arguments() -> Vec<String> {
    vec!["--net".into(), format!("tap={}", tap::NAME)]
}

fn transmit(table: &mut Table) {
    let what = "net: 1514 bytes out";
    let program = format!("net-bench direction=tx size={FRAME}");
    let counted = format!("{program} count={FRAMES}");
    let cycles = bare::cycles_per_micro();
    let (mut pairs, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let sample = BareGuest::start(&counted, &arguments()).finish();
        cpu.push(sample.cpu_micros / FRAMES as f64);
        pairs.push((sample.micros(cycles), transmit_floor()));
    }
    table.ratio(what, &pairs, "µs", TRANSMIT_LIMIT);
    remark(table, what, cpu);
    if let Some(calls) = bare::system_calls(&program, &arguments(), FRAMES) {
        table.remark(format!("{what}: {calls:.2} system calls for a frame"));
    }
}

fn transmit_floor() -> f64 {
    let (mut tap, frame) = (Tap::attach(), frame(HEADER, FRAME));
    let start = Instant::now();
    for _ in 0..FRAMES {
        tap.write(&frame);
    }
    start.elapsed().as_secs_f64() * 1e6 / FRAMES as f64
}

fn receive(table: &mut Table) {
    let what = "net: 1514 bytes in";
    let program = format!("net-bench direction=rx size={FRAME} count={FRAMES}");
    let cycles = bare::cycles_per_micro();
    let (mut pairs, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut guest = BareGuest::start(&program, &arguments());
        guest.wait_for("ready to receive");
        let sample = while_sending(|| guest.finish());
        cpu.push(sample.cpu_micros / FRAMES as f64);
        pairs.push((sample.micros(cycles), while_sending(receive_floor)));
    }
    table.ratio(what, &pairs, "µs", RECEIVE_LIMIT);
    remark(table, what, cpu);
}

/// Frames are sent to the tap as fast as it takes them while `receive` runs. When it takes no more, what it holds (500) keeps who
/// receives busy for some hundred microseconds, and who would go on trying would take the CPU from him.
pub fn while_sending<T>(receive: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let (packets, frame) = (Packets::open(), frame(0, FRAME));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if !packets.send(&frame) {
                    thread::sleep(PAUSE);
                }
            }
        });
        let result = receive();
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn receive_floor() -> f64 {
    let (mut tap, mut frame) = (Tap::attach(), [0; HEADER + FRAME]);
    tap.read(&mut frame);
    let start = Instant::now();
    for _ in 0..FRAMES {
        tap.read(&mut frame);
    }
    start.elapsed().as_secs_f64() * 1e6 / FRAMES as f64
}

fn ping_pong(table: &mut Table) {
    let program = format!("ping-pong start=host size={PING} count={PINGS}");
    let pairs: Vec<(f64, f64)> = (0..RUNS)
        .map(|_| {
            let mut guest = BareGuest::start(&program, &arguments());
            guest.wait_for("ready to play");
            let posada = round_trips();
            guest.finish();
            (posada, ping_pong_floor())
        })
        .collect();
    table.ratio("net: 64 bytes to and fro", &pairs, "µs", PING_PONG_LIMIT);
}

fn ping_pong_floor() -> f64 {
    let mut tap = Tap::attach();
    let echo = thread::spawn(move || {
        let mut frame = [0; HEADER + FRAME];
        for _ in 0..PINGS {
            let length = tap.read(&mut frame);
            tap.write(&frame[..length]);
        }
    });
    let median = round_trips();
    echo.join().expect("the echo ends");
    median
}

/// The middle one of [`PINGS`] round trips, in µs.
pub fn round_trips() -> f64 {
    let (packets, frame) = (Packets::open(), frame(0, PING));
    let mut answer = [0; FRAME];
    let trips = (0..PINGS).map(|_| {
        let start = Instant::now();
        assert!(packets.send(&frame), "the tap has room for one frame");
        packets.receive(&mut answer);
        start.elapsed().as_secs_f64() * 1e6
    });
    median(trips.collect())
}

fn remark(table: &mut Table, what: &str, cpu: Vec<f64>) {
    table.remark(format!(
        "{what}: {:.2} µs of posada's CPU for a frame",
        median(cpu)
    ));
}

/// A frame of `length` bytes, `before` zeros in front of it.
fn frame(before: usize, length: usize) -> Vec<u8> {
    let mut frame = vec![0; before];
    frame.extend(network::frame(length));
    frame
}

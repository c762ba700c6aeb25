//! A Linux guest's disk and network: `dd` on a raw device, a TCP stream each way. Numbers for people, without a limit: most
//! of the time is the guest kernel's own, and where it is interpreted nearly all.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use vmm_sys_util::tempdir::TempDir;

use crate::bare::Output;
use crate::table::Table;
use crate::{posada, tap};

const KIB: usize = 1 << 10;
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";

/// How much is transferred, in KiB and multiples of 64: what takes seconds, not minutes.
struct Amounts {
    disk: usize,
    stream: usize,
}

impl Amounts {
    /// A guest whose kernel is interpreted moves some 100 KiB in a second.
    fn for_this_host() -> Self {
        if Path::new("/sys/module/kvm_pvm").exists() {
            Self {
                disk: 1024,
                stream: 128,
            }
        } else {
            Self {
                disk: 1 << 20,
                stream: 1 << 20,
            }
        }
    }
}

/// A guest that does not outlive the measurement, be it that this has failed.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the guest once, and has it do one thing after another.
pub fn measure(table: &mut Table) {
    // A thread of its own: it leaves this program's network.
    thread::scope(|scope| {
        let all = scope.spawn(|| match tap::enter_namespace() {
            Ok(()) => transfers(table),
            Err(error) => table.remark(format!("linux-io: not measured, for there is no tap: {error}")),
        });
        all.join().expect("the measurement ends");
    });
}

fn transfers(table: &mut Table) {
    let address = format!("addr add {HOST}/24 dev {}", tap::NAME);
    let status = Command::new("ip")
        .args(address.split(' '))
        .status()
        .expect("ip runs");
    assert!(status.success(), "ip {address}");
    let amounts = Amounts::for_this_host();
    let directory = TempDir::new().expect("a directory for temporary files");
    let disk = directory.as_path().join("disk.img");
    fs::write(&disk, vec![0x5a; amounts.disk * KIB]).expect("a file for the disk");
    let listener = TcpListener::bind((HOST, 0)).expect("a port that is free");
    let port = listener.local_addr().expect("it listens").port();

    let mut guest = Guest(
        Command::new(posada())
            .args(["run", "--memory", "256M", "--disk"])
            .arg(&disk)
            .args(["--net", &format!("tap={}", tap::NAME)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("posada starts"),
    );
    let mut stdin = guest.0.stdin.take().expect("its input is piped");
    let mut output = Output::of(guest.0.stdout.take().expect("its output is piped"));
    let script = script(&amounts, port);
    stdin.write_all(script.as_bytes()).expect("posada takes input");
    output.wait_for("begin-1");
    let read = timed(|| output.wait_for("read-1"));
    let write = timed(|| output.wait_for("written-1"));
    let out = timed_stream(&listener, |stream| {
        let received = stream.read_to_end(&mut Vec::new()).expect("the guest sends");
        assert_eq!(received, amounts.stream * KIB);
    });
    let back = timed_stream(&listener, |stream| {
        let data = vec![0; amounts.stream * KIB];
        stream.write_all(&data).expect("the guest receives");
        stream.shutdown(Shutdown::Write).expect("the guest receives");
        // The guest closes its half at once: that says nothing of what it has got.
        output.wait_for("received-1");
    });
    let ended = guest.0.wait().expect("posada ends");
    assert!(ended.success(), "the guest did not end well");
    let rate = |amount: usize, seconds: f64| amount as f64 / 1024.0 / seconds;
    table.remark(format!(
        "a Linux guest, MiB/s: dd reads {:.3} and writes {:.3}; TCP with TSO, out {:.3} and in {:.3}",
        rate(amounts.disk, read),
        rate(amounts.disk, write),
        rate(amounts.stream, out),
        rate(amounts.stream, back)
    ));
}

/// What the guest's shell is to do. It is one line, so that no prompt comes between what it prints; and the markers are
/// computed, so that the echo of the line does not look like them.
fn script(amounts: &Amounts, port: u16) -> String {
    let (disk, stream) = (amounts.disk / 64, amounts.stream / 64);
    [
        "stty -echo; ip link set eth0 up".to_owned(),
        format!("ip addr add {GUEST}/24 dev eth0"),
        "echo; echo begin-$((1))".to_owned(),
        format!("dd if=/dev/vda of=/dev/null bs=64K count={disk} 2>/dev/null; echo read-$((1))"),
        format!(
            "dd if=/dev/zero of=/dev/vda bs=64K count={disk} conv=fsync 2>/dev/null; echo written-$((1))"
        ),
        format!("dd if=/dev/zero bs=64K count={stream} 2>/dev/null | nc {HOST} {port}"),
        format!("nc {HOST} {port} </dev/null >/dev/null; echo received-$((1))"),
        "poweroff\n".to_owned(),
    ]
    .join("; ")
}

/// How many seconds it takes.
fn timed<T>(what: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    what();
    start.elapsed().as_secs_f64()
}

/// How many seconds the next connection of the guest's is used.
fn timed_stream(listener: &TcpListener, serve: impl FnOnce(&mut TcpStream)) -> f64 {
    let (mut stream, _) = listener.accept().expect("the guest connects");
    timed(|| serve(&mut stream))
}

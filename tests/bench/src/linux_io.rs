//! A Linux guest's disk and network: `dd` on a raw device, a TCP stream each way. Numbers for people, without a limit: most
//! of the time is the guest kernel's own, and where it is interpreted nearly all.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use vmm_sys_util::tempdir::TempDir;

use crate::bare::Output;
use crate::table::Table;
use crate::{posada, tap};

const MIB: usize = 1 << 20;
/// MiB that go to or from the disk, and through the network: a guest whose kernel is interpreted is to be done in a minute.
const DISK: usize = 32;
const STREAM: usize = 4;
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";

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
    let directory = TempDir::new().expect("a directory for temporary files");
    let disk = directory.as_path().join("disk.img");
    fs::write(&disk, vec![0x5a; DISK * MIB]).expect("a file for the disk");
    let listener = TcpListener::bind((HOST, 0)).expect("a port that is free");
    let port = listener.local_addr().expect("it listens").port();

    let mut child = Command::new(posada())
        .args(["run", "--memory", "256M", "--disk"])
        .arg(&disk)
        .args(["--net", &format!("tap={}", tap::NAME)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("posada starts");
    let mut stdin = child.stdin.take().expect("its input is piped");
    let mut output = Output::of(child.stdout.take().expect("its output is piped"));
    // The markers are computed: the echo of what is typed does not look like them.
    let script = format!(
        "stty -echo; ip link set eth0 up; ip addr add {GUEST}/24 dev eth0\n\
         echo read-$((1)) $(dd if=/dev/vda of=/dev/null bs=1M 2>&1 | tail -n 1)\n\
         echo write-$((1)) $(dd if=/dev/zero of=/dev/vda bs=1M count={DISK} conv=fsync 2>&1 | tail -n 1)\n\
         dd if=/dev/zero bs=1M count={STREAM} | nc {HOST} {port}\n\
         nc {HOST} {port} </dev/null >/dev/null\n\
         poweroff\n"
    );
    stdin.write_all(script.as_bytes()).expect("posada takes input");
    let read = seconds(&output.wait_for("read-1 "));
    let write = seconds(&output.wait_for("write-1 "));
    let (out, back) = (from_guest(&listener), to_guest(&listener));
    assert!(
        child.wait().expect("posada ends").success(),
        "the guest did not end well"
    );
    let rate = |amount: usize, seconds: f64| amount as f64 / seconds;
    table.remark(format!(
        "a Linux guest, MiB/s: dd reads {:.1} and writes {:.1}; TCP with TSO, out {:.1} and in {:.1}",
        rate(DISK, read),
        rate(DISK, write),
        rate(STREAM, out),
        rate(STREAM, back)
    ));
}

/// What `dd` says: "… bytes (64.0MB) copied, 0.123 seconds, 520.3MB/s".
fn seconds(line: &str) -> f64 {
    let after = line
        .split("copied, ")
        .nth(1)
        .unwrap_or_else(|| panic!("dd says: {line}"));
    let number = after.split(' ').next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("dd says: {line}"))
}

/// Seconds until all of it has come.
fn from_guest(listener: &TcpListener) -> f64 {
    let (mut stream, _) = listener.accept().expect("the guest connects");
    let (start, mut buffer, mut received) = (Instant::now(), vec![0; MIB], 0);
    while let n @ 1.. = stream.read(&mut buffer).expect("the guest sends") {
        received += n;
    }
    assert_eq!(received, STREAM * MIB);
    start.elapsed().as_secs_f64()
}

/// Seconds until all of it has gone and the guest has closed its end.
fn to_guest(listener: &TcpListener) -> f64 {
    let (mut stream, _) = listener.accept().expect("the guest connects");
    let (start, buffer) = (Instant::now(), vec![0; MIB]);
    for _ in 0..STREAM {
        stream.write_all(&buffer).expect("the guest receives");
    }
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("the guest receives");
    stream.read_to_end(&mut Vec::new()).expect("the guest closes");
    start.elapsed().as_secs_f64()
}

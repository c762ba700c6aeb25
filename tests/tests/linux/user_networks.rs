//! User networks: the guest's frames on sockets of the host's, by passt, each test in a network namespace of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posada_tests::booted::POWER_OFF;
use posada_tests::network::{self, ip};
use posada_tests::{Guest, Running};

const FAILURE: i32 = 1;
/// The host's address, which the guest has too, and that of its router, by which the guest reaches the host.
const ROUTER: &str = "192.0.2.1";

/// A namespace with an interface and a router, as any host that is connected to something has; passt makes the guest's network like it.
fn isolate() {
    network::isolate();
    ip("tuntap add uplink mode tap");
    ip("address add 192.0.2.2/24 dev uplink");
    ip("link set uplink up");
    ip(&format!("route add default via {ROUTER}"));
}

/// The processes of passt's in this namespace.
fn passts() -> Vec<Pid> {
    let namespace = fs::read_link("/proc/thread-self/ns/net").expect("a thread has a namespace");
    let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
    let pid = |path: &Path| Some(Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?));
    let is_passt = |path: &Path| {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        name.starts_with("passt") && fs::read_link(path.join("ns/net")).is_ok_and(|other| other == namespace)
    };
    processes
        .map(|entry| entry.path())
        .filter(|path| is_passt(path))
        .filter_map(|path| pid(&path))
        .collect()
}

/// A guest that waits for a line, with this network.
fn idle(net: &str) -> Running {
    let mut guest = Guest::bare("program=idle").arg("--net").arg(net).start();
    guest.wait_for("idle: 1 devices");
    guest
}

#[test]
fn passt_ends_with_the_guest_however_that_ends() {
    isolate();
    let mut guest = idle("user");
    assert_eq!(passts().len(), 1);
    guest.send("\n");
    guest.wait().expect_status(0);
    let guest = idle("user");
    guest.signal(Signal::SIGKILL);
    guest.wait();
    // The kernel closes the socket as posada ends; passt hears of it after that.
    let mut watcher = idle("user");
    watcher.wait_until("only one passt is left", |_| passts().len() == 1);
    watcher.send("\n");
    watcher.wait().expect_status(0);
}

#[test]
fn when_passt_dies_the_link_goes_down_and_the_guest_lives() {
    isolate();
    let mut guest = idle("user");
    for passt in passts() {
        kill(passt, Signal::SIGKILL).expect("the test may kill it");
    }
    guest.wait_for_message("passt has ended");
    guest.send("\n");
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages().lines().count(), 1, "{}", ended.messages());
    assert!(ended.messages().contains("network 'user'"));
}

#[test]
fn a_port_in_use_is_named() {
    isolate();
    let taken = TcpListener::bind("127.0.0.1:8080").expect("the namespace is empty");
    let guest = Guest::bare("program=hello").arg("--net=user,forward=tcp:9090:90,forward=tcp:8080:80");
    guest
        .run()
        .expect_refusal(FAILURE, &["TCP port 8080 of 127.0.0.1", "in use"]);
    drop(taken);
    let guest = Guest::bare("program=hello").arg("--net=user,forward=tcp:9090:90,forward=tcp:8080:80");
    guest.run().expect_status(0);
}

#[test]
fn without_passt_it_is_told_how_to_install_it() {
    network::isolate();
    let guest = Guest::bare("program=hello")
        .arg("--net=user")
        .env("PATH", "/nonexistent");
    guest
        .run()
        .expect_refusal(FAILURE, &["passt", "not installed", "apt-get install passt"]);
}

/// Serves one HTTP request on the host's loopback address with `body`.
fn serve_once(listener: TcpListener, body: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).expect("a request");
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("the guest reads");
        stream.write_all(&body).expect("the guest reads");
    })
}

/// What `http://ADDRESS/NAME` is.
fn fetch(address: SocketAddr, name: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("passt listens");
    write!(stream, "GET /{name} HTTP/1.0\r\n\r\n").expect("the guest reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the guest answers");
    let body = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a head of HTTP");
    answer.split_off(body + 4)
}

#[test]
fn a_linux_guest_fetches_a_file_from_the_host_and_the_host_gets_it_back_through_a_forwarded_port() {
    const BYTES: usize = 1 << 20;
    isolate();
    let listener = TcpListener::bind("127.0.0.1:8000").expect("the namespace is empty");
    let file: Vec<u8> = (0..BYTES).map(|n| (n / 251) as u8 ^ n as u8).collect();
    let server = serve_once(listener, file.clone());
    let mut guest = Guest::booted()
        .arg("--net=user,forward=tcp:8080:80")
        .append("ip=dhcp")
        .start();
    guest.send(format!(
        "mkdir /tmp/www; wget -q -O /tmp/www/file http://{ROUTER}:8000/file; httpd -h /tmp/www; echo serv''ing\n"
    ));
    guest.wait_for("serving");
    server.join().expect("the server has served");
    let back = fetch("127.0.0.1:8080".parse().expect("an address"), "file");
    assert!(back == file, "{} bytes came back", back.len());
    guest.send(POWER_OFF);
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
}

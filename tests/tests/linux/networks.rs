//! Networks on taps, each test in a network namespace of its own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};
use std::thread;

use posada_tests::booted::POWER_OFF;
use posada_tests::guest::runtime_directory;
use posada_tests::network::{self, EXPERIMENTAL, FRAME_HEADER, Wire, frame, has_interface, ip, make_tap};
use posada_tests::{Ended, Guest, Running, http, stream};

const FAILURE: i32 = 1;
const USAGE: i32 = 2;

/// The bare guest's report that so many frames of this size went.
#[track_caller]
fn expect_report(ended: &Ended, frames: usize, size: usize) {
    let report = format!("requests={frames} bytes={} ", frames * size);
    let console = ended.console();
    assert!(console.contains(&report), "not {report}: {console}");
    assert_eq!(ended.messages(), "");
}

#[test]
fn what_a_guest_sends_arrives_on_the_tap_whole() {
    const FRAMES: usize = 2000;
    network::isolate();
    make_tap("t0");
    let wire = Wire::on("t0");
    for size in [60, 1514] {
        let guest = Guest::bare(&format!(
            "program=net-bench direction=tx size={size} count={FRAMES}"
        ));
        let mac = "02:00:00:00:00:42";
        let ended = guest.arg("--net").arg(format!("tap=t0,mac={mac}")).run();
        expect_report(&ended.expect_status(0), FRAMES, size);
        for _ in 0..FRAMES {
            let frame = wire.receive();
            assert_eq!(frame.len(), size);
            assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 0x42]);
            assert_eq!(frame[12..FRAME_HEADER], EXPERIMENTAL.to_be_bytes());
        }
    }
}

#[test]
fn what_is_sent_to_the_tap_arrives_in_the_guest_jumbo_frames_too() {
    // A tap holds 500 frames for a guest that does not read at once.
    const FRAMES: usize = 400;
    network::isolate();
    ip("tuntap add t0 mode tap");
    ip("link set t0 mtu 9000 up");
    let wire = Wire::on("t0");
    for size in [60, 1514, 9014] {
        let program = format!("program=net-bench direction=rx count={FRAMES}");
        let mut guest = Guest::bare(&program).arg("--net=tap=t0,mtu=9000").start();
        guest.wait_for("ready to receive");
        let frame = frame(size);
        for _ in 0..FRAMES {
            wire.send(&frame);
        }
        expect_report(&guest.wait().expect_status(0), FRAMES, size);
    }
}

#[test]
fn a_frame_comes_back_as_it_was_sent() {
    const ROUNDS: usize = 300;
    network::isolate();
    make_tap("t0");
    let wire = Wire::on("t0");
    for wait in ["poll", "interrupt"] {
        let program = format!("program=ping-pong count={ROUNDS} wait={wait}");
        let mut guest = Guest::bare(&program).arg("--net=tap=t0").start();
        guest.wait_for("ready to play");
        for round in 0..ROUNDS {
            let sent = frame(60 + round);
            wire.send(&sent);
            let back = wire.receive();
            assert_eq!(back[..6], sent[6..12], "to whom it came from");
            assert_eq!(back[FRAME_HEADER..], sent[FRAME_HEADER..], "round {round}");
        }
        guest.wait().expect_status(0);
    }
}

#[test]
fn a_tap_that_does_not_exist_is_created_and_goes_with_the_guest() {
    network::isolate();
    let mut guest = Guest::bare("program=idle")
        .arg("--net=tap=mine,mtu=4000")
        .arg("-v")
        .start();
    guest.wait_for("idle: 1 devices");
    assert!(has_interface("mine"));
    guest.send("\n");
    let ended = guest.wait().expect_status(0);
    assert!(
        ended
            .messages()
            .contains("tap 'mine' did not exist and was created"),
        "{}",
        ended.messages()
    );
    assert!(!has_interface("mine"));
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down_and_the_guest_lives() {
    network::isolate();
    make_tap("t0");
    let mut guest = Guest::bare("program=idle").arg("--net=tap=t0").start();
    guest.wait_for("idle: 1 devices");
    ip("link del t0");
    guest.wait_for_message("its tap was deleted");
    guest.send("\n");
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages().lines().count(), 1, "{}", ended.messages());
    assert!(ended.messages().contains("network 't0'"));
    ended.expect_no_panic();
}

#[test]
fn a_tap_that_is_down_is_told_at_the_start() {
    network::isolate();
    ip("tuntap add t0 mode tap");
    let mut guest = Guest::bare("program=idle").arg("--net=tap=t0").start();
    guest.wait_for_message("tap 't0' is down: no frame passes it until 'ip link set t0 up'");
    guest.wait_for("idle: 1 devices");
    guest.send("\n");
    guest.wait().expect_status(0);
}

#[test]
fn several_networks_have_several_queues() {
    network::isolate();
    make_tap("t0");
    ip("tuntap add t1 mode tap multi_queue");
    ip("link set t1 up");
    // A tap for several queues serves one as well.
    for nets in [["tap=t0", "tap=t1,queues=4"], ["tap=new,queues=2", "tap=t1"]] {
        let guest = Guest::bare("program=devices").cpus(2);
        let guest = nets.iter().fold(guest, |guest, net| guest.arg("--net").arg(net));
        let ended = guest.run().expect_status(0);
        assert_eq!(ended.messages(), "");
    }
}

/// Bytes that the host and the bare guest send each other.
const BYTES: usize = 100_000_000;
#[test]
fn a_hundred_megabytes_of_tcp_go_each_way_unchanged() {
    const HOST_SEED: u64 = 1;
    const GUEST_SEED: u64 = 2;
    network::isolate_with_tap();
    let listener = TcpListener::bind("10.9.0.1:8000").expect("the namespace is empty");
    let host = thread::spawn(move || {
        let (connection, _) = listener.accept().expect("the guest connects");
        let sent = stream::send(&connection, HOST_SEED, BYTES, |_| {});
        connection.shutdown(Shutdown::Write).expect("the guest is there");
        (sent, stream::take(&connection, usize::MAX, |_| {}))
    });
    let program = format!("program=tcp count={BYTES} seed={GUEST_SEED}");
    let ended = Guest::bare(&program).arg("--net=tap=t0").run().expect_status(0);
    let (sent, received) = host.join().expect("the host has served");

    let expected = stream::sum(GUEST_SEED, BYTES);
    assert_eq!(received, (BYTES, expected));
    let console = ended.console();
    let lines = [
        format!("received={BYTES} checksum={sent:016x}"),
        format!("sent={BYTES} checksum={expected:016x}"),
    ];
    assert!(
        lines.iter().all(|line| console.contains(line)),
        "not {lines:?}: {console}"
    );
    assert_eq!(ended.messages(), "");
}

/// Bytes that a Linux guest sends and receives. Few, as kvm-pvm hosts interpret its kernel; the bare guest's program is not.
const NOISE: usize = 64 << 10;

fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..NOISE).map(next).collect()
}

/// With jumbo frames, segmentation left to the other side both ways, and two pairs of queues on two CPUs.
#[test]
fn a_linux_guest_pings_the_host_streams_both_ways_unchanged_and_fetches_its_metadata() {
    network::isolate();
    ip("tuntap add t0 mode tap multi_queue");
    ip("address add 10.9.0.1/24 dev t0");
    ip("link set t0 mtu 9000 up");
    let listener = TcpListener::bind("10.9.0.1:8000").expect("the namespace is empty");
    let sent = noise();
    let data = sent.clone();
    // The guest sends back what it gets.
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        stream.write_all(&data).expect("the guest reads");
        stream.shutdown(Shutdown::Write).expect("the guest is there");
        drop(stream);
        let (mut stream, _) = listener.accept().expect("the guest connects");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("the guest writes");
        back
    });
    make_tap("t1");
    let name = format!("networks-{}", process::id());
    let mut guest = Guest::booted()
        .cpus(2)
        .arg("--net=tap=t0,queues=2,mtu=9000")
        .arg("--net=tap=t1,id=inside")
        .arg("--mmds=net=inside")
        .named(&name)
        .append("ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0")
        .start();
    guest.send("ping -c 2 -s 8000 10.9.0.1; echo mtu=$(cat /sys/class/net/eth0/mtu)\n");
    guest.wait_for("2 packets received");
    guest.wait_for("mtu=9000");
    guest.send("nc 10.9.0.1 8000 < /dev/null > /tmp/data; nc 10.9.0.1 8000 < /tmp/data\n");
    // What is sent to the guest goes while somebody waits for it.
    guest.wait_until("the stream back", |_| echo.is_finished());
    let back = echo.join().expect("the host has served");
    assert!(back == sent, "{} of {NOISE} bytes came back", back.len());
    let control = runtime_directory().join("posada").join(name).join("control.sock");
    let metadata = r#"{"latest": {"meta-data": {"ami-id": "for Linux"}}}"#;
    http::request(&control, "PUT", "/mmds", metadata).expect(204);
    guest.send("ip addr add 169.254.1.1/16 dev eth1; ip link set eth1 up\n");
    guest.send("ask='PUT /latest/api/token HTTP/1.0\\r\\nX-metadata-token-ttl-seconds: 60\\r\\n\\r\\n'\n");
    guest.send("token=$(printf \"$ask\" | nc 169.254.169.254 80 | tail -n 1)\n");
    guest.send("url=http://169.254.169.254/latest/meta-data/ami-id\n");
    guest.send("wget -q -O - --header \"X-metadata-token: $token\" $url; echo\n");
    guest.wait_for("for Linux");
    guest.send(POWER_OFF);
    let ended = guest.wait().expect_status(0);
    assert_eq!(ended.messages(), "");
}

#[track_caller]
fn refused(net: &str, named: &[&str]) {
    let guest = Guest::bare("program=hello").arg("--net").arg(net);
    guest.run().expect_refusal(FAILURE, named);
}

#[test]
fn taps_that_cannot_be_used_are_refused() {
    network::isolate();
    refused("tap=lo", &["'lo'", "no tap"]);
    ip("tuntap add tun0 mode tun");
    refused("tap=tun0", &["'tun0'", "no tap"]);
    make_tap("single");
    refused(
        "tap=single,queues=2",
        &["'single'", "single queue", "multi_queue"],
    );

    let mut other = Guest::bare("program=idle").arg("--net=tap=single").start();
    other.wait_for("idle");
    let holder = format!("process {}", other.pid());
    refused("tap=single", &["'single'", "in use", &holder]);
    other.send("\n");
    other.wait().expect_status(0);
}

/// posada as a user who may not administer networks, but may use KVM and /dev/net/tun.
fn run_without_privilege(net: &str) -> Ended {
    const CAP_NET_ADMIN: libc::c_ulong = 12; // capabilities(7)
    let guest = Guest::bare("program=hello").arg("--net").arg(net);
    let mut command = guest.command(Stdio::null());
    // SAFETY: between fork and exec there is one system call, which takes integers.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    Running::of(command).wait()
}

#[test]
fn who_may_not_make_taps_is_told_how_to_get_one() {
    network::isolate();
    run_without_privilege("tap=none")
        .expect_refusal(FAILURE, &["no tap 'none'", "not permitted", "ip tuntap add none"]);
    ip("tuntap add theirs mode tap user 12345");
    run_without_privilege("tap=theirs").expect_refusal(FAILURE, &["'theirs'", "another user"]);
    ip("tuntap add ours mode tap user 0");
    ip("link set ours up");
    let ended = run_without_privilege("tap=ours").expect_status(0);
    assert_eq!(ended.messages(), "");
}

#[test]
fn networks_that_cannot_be_are_wrong_usage() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--net=tap=t0", "--net=tap=t0"], &["'t0'", "two networks"]),
        (
            &[
                "--net=tap=a,mac=02:00:00:00:00:01",
                "--net=tap=b,mac=02:00:00:00:00:01",
            ],
            &["02:00:00:00:00:01", "two networks"],
        ),
        (
            &["--net=tap=much-too-long-a-name"],
            &["'much-too-long-a-name'", "15"],
        ),
        (&["--net=tap=t0,pps=0"], &["pps of 0"]),
        (&["--net=tap=t0,queues=99"], &["99 queues", "1 to 8"]),
        (&["--net=tap=t0,forward=tcp:1:1"], &["'t0'", "user networks"]),
        (
            &["--net=user,forward=tcp:80:1,forward=tcp:80:2"],
            &["TCP port 80"],
        ),
    ];
    for (arguments, named) in cases {
        let guest = arguments
            .iter()
            .fold(Guest::none(), |guest, argument| guest.arg(argument));
        Running::of(guest.command(Stdio::null()))
            .wait()
            .expect_refusal(USAGE, named);
    }
}

#[test]
fn words_that_are_none_are_told_on_standard_error() {
    for (net, named) in [
        ("bridge=br0", "tap=NAME or user"),
        ("tap=t0,mac=01:00:5e:00:00:01", "unicast"),
        ("tap=t0,mac=nonsense", "'nonsense'"),
        ("tap=t0,bandwidth=fast", "'fast'"),
        ("user,forward=tcp:80", "'tcp:80'"),
    ] {
        let command = Guest::none().arg("--net").arg(net).command(Stdio::null());
        let ended = Running::of(command).wait().expect_status(USAGE);
        assert!(ended.messages().contains(named), "{}", ended.messages());
        ended.expect_no_panic();
    }
}

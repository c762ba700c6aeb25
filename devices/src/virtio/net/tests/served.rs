//! A network with a service on it: which frames are whose.

use std::net::Ipv4Addr;

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Operations of ARP's (RFC 826).
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Nobody asks it for anything.
struct Mute;

impl Responder for Mute {
    fn respond(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn bench() -> Bench {
    let service = Service {
        address: ADDRESS,
        port: 80,
        responder: Arc::new(Mute),
    };
    Bench::with_net(MERGEABLE, options(), |net| net.with_service(service))
}

/// Who asks the wire who has this address (RFC 826): Ethernet, IPv4, and the lengths of their addresses.
fn who_has(address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, REQUEST]);
    frame.extend(MAC);
    frame.extend([10, 9, 0, 2]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

#[test]
fn the_service_answers_when_the_guest_has_buffers() {
    let mut bench = bench();
    bench.send(DATA, &who_has(ADDRESS));
    assert_eq!(bench.guest.queues[TX].take_used().len(), 1);
    bench.post(&[(DATA + PAGE, 0x800)]);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 12 + 42)]);
    bench.expect_header(DATA + PAGE, 1);
    let reply = bench.read(DATA + PAGE + HEADER as u64, 42);
    assert_eq!(reply[..6], MAC);
    assert_eq!(reply[21], REPLY);
    assert_eq!(reply[28..32], ADDRESS.octets());
    assert!(bench.received().is_empty(), "nobody else hears of it");
}

#[test]
fn all_other_frames_go_to_and_fro_as_ever() {
    let mut bench = bench();
    let other = who_has(Ipv4Addr::new(169, 254, 169, 253));
    bench.post(&[(DATA + PAGE, 0x800)]);
    bench.send(DATA, &other);
    assert_eq!(bench.received(), [other]);
    bench.arrive(&[7; 60]);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 12 + 60)]);
    assert_eq!(bench.read(DATA + PAGE + HEADER as u64, 60), [7; 60]);
}

#[test]
fn the_service_is_heard_while_a_frame_of_the_hosts_waits() {
    let mut bench = bench();
    bench.arrive(&[7; 60]);
    bench.send(DATA, &who_has(ADDRESS));
    for at in [1, 2] {
        bench.post(&[(DATA + at * PAGE, 0x800)]);
    }
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 12 + 42), (1, 12 + 60)]);
    assert_eq!(bench.read(DATA + 2 * PAGE + HEADER as u64, 60), [7; 60]);
    bench.expect_reports(&[]);
}

#[test]
fn the_service_waits_for_the_rest_of_a_frame_that_has_begun_to_come() {
    let mut bench = bench();
    for at in [1, 2] {
        bench.post(&[(DATA + at * PAGE, 0x800)]);
    }
    let whole = frame(7, 60);
    let (begin, rest) = whole.split_at(20);
    bench.host.write_all(&(whole.len() as u32).to_be_bytes()).unwrap();
    bench.host.write_all(begin).unwrap();
    bench.guest.turns.run();
    bench.send(DATA, &who_has(ADDRESS));
    assert_eq!(bench.guest.queues[RX].take_used(), []);
    bench.host.write_all(rest).unwrap();
    bench.guest.turns.run();
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 12 + 60), (1, 12 + 42)]);
    assert_eq!(bench.read(DATA + PAGE + HEADER as u64, 60), whole);
    assert_eq!(bench.read(DATA + 2 * PAGE + HEADER as u64, 6), MAC);
}

//! Tests of networks on a stream of frames, whose other end is the test. (What is a real tap's own needs a network namespace, and is
//! tested with guests.)

mod control;
mod hostile;
mod served;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::rate_limit::Rate;
use crate::virtio::testing::{Buffer, Started, memory};
use crate::virtio::{GuestMemory, Trouble};

const MEMORY: usize = 0x20_0000;
const QUEUES: u64 = 0x1000;
const RX: usize = 0;
const TX: usize = 1;
const SIZE: u16 = 16;
/// Where the guest has its buffers: each in a 4 KiB page of its own, or in several.
const DATA: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: None,
        rx_limit: Rates::default(),
        tx_limit: Rates::default(),
    }
}

/// A network, its guest, and what is at its other end.
struct Bench {
    net: Net,
    memory: GuestMemory,
    guest: Started,
    host: UnixStream,
}

impl Bench {
    fn new(features: u64) -> Self {
        Self::with(features, options())
    }

    fn with(features: u64, options: NetOptions) -> Self {
        Self::with_net(features, options, |net| net)
    }

    fn with_net(features: u64, options: NetOptions, change: impl FnOnce(Net) -> Net) -> Self {
        let (host, device) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let net = Net::on_stream(
            "network 'test'".into(),
            options,
            FrameSocket::new(device).unwrap(),
        );
        let net = change(net);
        let memory = memory(MEMORY);
        let guest = Started::new(&net, &memory, QUEUES, SIZE, features);
        Self {
            net,
            memory,
            guest,
            host,
        }
    }

    /// The guest posts a receive buffer of these pieces.
    fn post(&mut self, pieces: &[(u64, u32)]) {
        let buffers: Vec<_> = pieces.iter().map(|(at, len)| Buffer::Write(*at, *len)).collect();
        self.guest.queues[RX].add(&buffers);
        self.guest.ring(RX);
    }

    /// The guest makes a frame available, behind a header of ones, which nobody is to see. Its doorbell does not ring.
    fn prepare(&mut self, at: u64, frame: &[u8]) {
        self.memory
            .write_slice(&[0xff; HEADER], GuestAddress(at))
            .unwrap();
        self.memory
            .write_slice(frame, GuestAddress(at + HEADER as u64))
            .unwrap();
        self.guest.queues[TX].add(&[Buffer::Read(at, (HEADER + frame.len()) as u32)]);
    }

    fn send(&mut self, at: u64, frame: &[u8]) {
        self.prepare(at, frame);
        self.guest.ring(TX);
    }

    /// The host sends a frame to the guest.
    fn arrive(&mut self, frame: &[u8]) {
        self.host.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.host.write_all(frame).unwrap();
        self.guest.turns.run();
    }

    /// What the host has received by now.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        let end = self.host.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
        frames_in(&bytes)
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// The header that a frame has in the guest's buffer: zero but for the number of buffers.
    #[track_caller]
    fn expect_header(&self, at: u64, buffers: u8) {
        let mut expected = [0; HEADER];
        expected[10] = buffers;
        assert_eq!(self.read(at, HEADER), expected);
    }

    fn link_is_up(&self) -> bool {
        let mut status = [0; 2];
        self.net.read_config(6, &mut status);
        status == [1, 0]
    }

    #[track_caller]
    fn expect_reports(&self, expected: &[(Trouble, &str)]) {
        let reports = self.guest.recorder.reports();
        assert_eq!(reports.len(), expected.len(), "{reports:?}");
        for ((trouble, text), (expected_trouble, named)) in reports.iter().zip(expected) {
            assert_eq!(trouble, expected_trouble);
            assert!(text.contains(named), "'{named}' is not in: {text}");
        }
    }
}

fn frames_in(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}

/// A frame that no other of these tests is like.
fn frame(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8 ^ n as u8 ^ seed).collect()
}

#[test]
fn a_stream_offers_what_it_can_do_and_no_offloads() {
    let bench = Bench::new(MERGEABLE);
    let expected = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
    assert_eq!(bench.net.features(), expected);
    let mut config = [0xff; 16];
    bench.net.read_config(0, &mut config);
    assert_eq!(&config[..6], &MAC);
    assert_eq!(&config[6..12], &[1, 0, 1, 0, 0xdc, 5], "up, one pair, 1500");
    assert_eq!(&config[12..], &[0xff; 4], "the end");
}

#[test]
fn an_mtu_is_told_only_if_there_is_one() {
    let net = Bench::with(
        MERGEABLE,
        NetOptions {
            mtu: Some(9000),
            ..options()
        },
    )
    .net;
    assert_ne!(net.features() & 1 << VIRTIO_NET_F_MTU, 0);
    let mut mtu = [0; 2];
    net.read_config(10, &mut mtu);
    assert_eq!(u16::from_le_bytes(mtu), 9000);
}

#[test]
fn frames_go_out_without_their_headers_and_in_order() {
    let mut bench = Bench::new(MERGEABLE);
    let frames: Vec<_> = (0..3).map(|n| frame(n, 100 + usize::from(n))).collect();
    for (at, frame) in (DATA..).step_by(PAGE as usize).zip(&frames) {
        bench.prepare(at, frame);
    }
    bench.guest.ring(TX);
    assert_eq!(bench.received(), frames);
    let used = bench.guest.queues[TX].take_used();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(bench.guest.recorder.queue_interrupts(), 1);
}

#[test]
fn a_header_may_end_in_the_middle_of_a_buffer() {
    let mut bench = Bench::new(MERGEABLE);
    let sent = frame(1, 60);
    bench.prepare(DATA, &sent);
    bench.guest.ring(TX);
    let pieces = [(DATA, 5), (DATA + 5, 20), (DATA + 25, 47)];
    let pieces = pieces.map(|(at, len)| Buffer::Read(at, len));
    bench.guest.queues[TX].add(&pieces);
    bench.guest.ring(TX);
    assert_eq!(bench.received(), [sent.clone(), sent]);
}

#[test]
fn a_frame_comes_in_with_a_header_and_its_length() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    assert_eq!(bench.guest.recorder.queue_interrupts(), 0);
    let sent = frame(2, 1000);
    bench.arrive(&sent);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 1012)]);
    bench.expect_header(DATA, 1);
    assert_eq!(bench.read(DATA + 12, 1000), sent);
    assert_eq!(bench.guest.recorder.queue_interrupts(), 1);
}

#[test]
fn a_large_frame_takes_several_buffers_which_the_driver_sees_together() {
    let mut bench = Bench::new(MERGEABLE);
    for n in 0..4 {
        // The first has its header over two pieces.
        let at = DATA + n * PAGE;
        bench.post(&[(at, 11), (at + 11, 501)]);
    }
    let sent = frame(3, 1300);
    bench.arrive(&sent);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 512), (2, 512), (4, 288)]);
    bench.expect_header(DATA, 3);
    let got = [
        bench.read(DATA + 12, 500),
        bench.read(DATA + PAGE, 512),
        bench.read(DATA + 2 * PAGE, 288),
    ];
    assert_eq!(got.concat(), sent);
    bench.arrive(&frame(4, 100));
    assert_eq!(bench.guest.queues[RX].take_used(), [(6, 112)]);
    bench.expect_header(DATA + 3 * PAGE, 1);
}

#[test]
fn frames_wait_until_the_driver_posts_buffers() {
    let mut bench = Bench::new(MERGEABLE);
    let frames = [frame(5, 300), frame(6, 400)];
    for frame in &frames {
        bench.arrive(frame);
    }
    bench.post(&[(DATA, 1526)]);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 312)]);
    bench.post(&[(DATA + PAGE, 1526)]);
    assert_eq!(bench.guest.queues[RX].take_used(), [(1, 412)]);
    assert_eq!(bench.read(DATA + 12, 300), frames[0]);
    assert_eq!(bench.read(DATA + PAGE + 12, 400), frames[1]);
}

#[test]
fn thousands_of_frames_go_round_both_queues() {
    let mut bench = Bench::new(MERGEABLE);
    for round in 0..2000_u32 {
        let (sent, at) = (
            frame(round as u8, 64 + (round % 900) as usize),
            DATA + u64::from(round % 8) * PAGE,
        );
        bench.post(&[(at, 512)]);
        bench.post(&[(at + 0x800, 512)]);
        bench.arrive(&sent);
        let used = bench.guest.queues[RX].take_used();
        let total: u32 = used.iter().map(|(_, len)| len).sum();
        assert_eq!(total as usize, HEADER + sent.len(), "round {round}");
        bench.send(DATA + 0x1_0000, &sent);
        assert_eq!(bench.guest.queues[TX].take_used().len(), 1);
        assert_eq!(bench.received(), [sent]);
        if used.len() == 1 {
            bench.arrive(&frame(0, 60));
            assert_eq!(bench.guest.queues[RX].take_used().len(), 1, "round {round}");
        }
    }
    assert!(bench.guest.recorder.faults().is_empty());
    bench.expect_reports(&[]);
}

#[test]
fn a_socket_that_is_full_holds_frames_up_and_loses_none() {
    let mut bench = Bench::new(MERGEABLE);
    let sent = frame(7, 60_000);
    let mut received = Vec::new();
    let mut blocked = false;
    for _ in 0..40 {
        bench.send(DATA, &sent);
        // A driver may have a queueful outstanding.
        while bench.guest.queues[TX].take_used().is_empty() {
            blocked = true;
            let mut bytes = vec![0; 50_000];
            let len = bench.host.read(&mut bytes).unwrap();
            received.extend_from_slice(&bytes[..len]);
            bench.guest.turns.run();
        }
    }
    assert!(blocked, "the socket takes all of 2.4 MB");
    loop {
        let mut bytes = vec![0; 50_000];
        match bench.host.read(&mut bytes) {
            Ok(len) => received.extend_from_slice(&bytes[..len]),
            Err(_) => break,
        }
        bench.guest.turns.run();
    }
    let frames = frames_in(&received);
    assert_eq!(frames.len(), 40);
    assert!(frames.iter().all(|frame| *frame == sent));
}

#[test]
fn a_frame_that_comes_in_pieces_is_one() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    bench.post(&[(DATA + PAGE, 2048)]);
    let sent = [frame(8, 900), frame(9, 700)];
    let mut stream = Vec::new();
    for frame in &sent {
        stream.extend((frame.len() as u32).to_be_bytes());
        stream.extend(frame);
    }
    for piece in stream.chunks(7) {
        bench.host.write_all(piece).unwrap();
        bench.guest.turns.run();
    }
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 912), (1, 712)]);
    assert_eq!(bench.read(DATA + 12, 900), sent[0]);
    assert_eq!(bench.read(DATA + PAGE + 12, 700), sent[1]);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_loses_that_frame_only() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    let (lost, next) = (frame(10, 1000), frame(11, 500));
    bench.host.write_all(&1000_u32.to_be_bytes()).unwrap();
    bench.host.write_all(&lost[..600]).unwrap();
    bench.guest.turns.run();
    bench.guest.stop();
    bench.guest = Started::new(&bench.net, &bench.memory, QUEUES, SIZE, MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    bench.host.write_all(&lost[600..]).unwrap();
    bench.arrive(&next);
    let used = bench.guest.queues[RX].take_used();
    assert_eq!(used.last(), Some(&(0, 512)));
    assert_eq!(bench.read(DATA + 12, 500), next);
}

#[test]
fn stopping_gives_back_the_buffers_that_no_frame_has_taken() {
    let mut bench = Bench::new(MERGEABLE);
    for n in 0..8 {
        bench.post(&[(DATA + n * PAGE, 512)]);
    }
    bench.arrive(&frame(12, 3000));
    assert_eq!(bench.guest.queues[RX].take_used().len(), 6);
    // The next one does not come whole: buffers for it are in hand.
    bench.host.write_all(&1000_u32.to_be_bytes()).unwrap();
    bench.guest.turns.run();
    let states = bench.guest.stop();
    let (index, rx) = states[0];
    assert_eq!((index, rx.next_avail, rx.next_used), (0, 6, 6));
    assert_eq!(states[1].0, 1);
}

#[test]
fn when_the_other_end_is_closed_the_link_goes_down_and_frames_are_dropped() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    assert!(bench.link_is_up());
    bench.host.shutdown(std::net::Shutdown::Both).unwrap();
    bench.guest.turns.run();
    assert!(!bench.link_is_up());
    assert_eq!(bench.guest.recorder.config_interrupts(), 1);
    for _ in 0..3 {
        bench.send(DATA, &frame(13, 100));
    }
    assert_eq!(
        bench.guest.queues[TX].take_used().len(),
        3,
        "the guest gets its buffers back"
    );
    bench.expect_reports(&[(Trouble::Host, "passt has ended")]);
    assert!(bench.guest.recorder.faults().is_empty());
}

#[test]
fn the_end_of_the_other_end_is_heard_though_there_is_no_room_for_frames() {
    let mut bench = Bench::new(MERGEABLE);
    bench.arrive(&frame(18, 100));
    bench.host.shutdown(std::net::Shutdown::Both).unwrap();
    bench.guest.turns.run();
    assert!(!bench.link_is_up());
    bench.expect_reports(&[(Trouble::Host, "passt has ended")]);
}

#[test]
fn a_rate_limit_spreads_frames_over_time() {
    const FRAMES: usize = 4;
    let rate = Rate {
        per_second: 100,
        burst: 1,
        ..Default::default()
    };
    let mut bench = Bench::with(
        MERGEABLE,
        NetOptions {
            tx_limit: Rates {
                operations: Some(rate),
                ..Default::default()
            },
            ..options()
        },
    );
    for n in 0..FRAMES {
        bench.prepare(DATA + n as u64 * PAGE, &frame(14, 100));
    }
    bench.guest.ring(TX);
    let mut received = bench.received().len();
    assert!(received < FRAMES, "the limit lets all of them pass at once");
    while received < FRAMES {
        bench.guest.turns.run_within(10_000);
        received += bench.received().len();
    }
    // What comes in has a limit of its own.
    bench.post(&[(DATA, 2048)]);
    bench.arrive(&frame(15, 100));
    assert_eq!(bench.guest.queues[RX].take_used().len(), 1);
}

#[test]
fn nothing_happens_while_there_is_nothing_to_do() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 2048)]);
    bench.arrive(&frame(16, 100));
    // A frame that waits for buffers wakes nobody until there are some.
    bench.arrive(&frame(17, 100));
    bench.post(&[(DATA, 2048)]);
    assert_eq!(bench.guest.queues[RX].take_used().len(), 2);
}

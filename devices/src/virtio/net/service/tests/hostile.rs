//! Frames made by hand: odd ones and wrong ones, after which the service answers as before.

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{ETHERNET_HEADER_LEN, IPV4_HEADER_LEN, TCP_HEADER_LEN};

use super::super::stack::LONGEST;
use super::*;

const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// The guest's first sequence number: near the point where they begin anew.
const FIRST: u32 = u32::MAX - 10;

/// A segment of TCP's, in a frame.
#[derive(Clone, Debug)]
struct Segment {
    flags: u8,
    /// Counted from the first.
    sequence: u32,
    acknowledges: u32,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Segment {
    fn new(flags: u8, sequence: u32, acknowledges: u32) -> Self {
        Self {
            flags,
            sequence,
            acknowledges,
            window: 8192,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The frame, whose options are filled up to words of 32 bits.
    fn frame(&self) -> Vec<u8> {
        let header = TCP_HEADER_LEN + self.options.len().next_multiple_of(4);
        let len = IPV4_HEADER_LEN + header + self.payload.len();
        let mut frame = vec![0; ETHERNET_HEADER_LEN];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[12] = 0x08;
        frame.extend([0x45, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend(GUEST.octets());
        frame.extend(ADDRESS.octets());
        frame.extend(5000u16.to_be_bytes());
        frame.extend(PORT.to_be_bytes());
        frame.extend(FIRST.wrapping_add(self.sequence).to_be_bytes());
        frame.extend(self.acknowledges.to_be_bytes());
        frame.extend([(header as u8 / 4) << 4, self.flags]);
        frame.extend(self.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(&self.options);
        frame.resize(ETHERNET_HEADER_LEN + IPV4_HEADER_LEN + header, 0);
        frame.extend(&self.payload);
        frame
    }
}

/// What the service has to say by TCP: sequence number, flags and payload of each segment.
fn heard(stack: &mut Stack) -> Vec<(u32, u8, Vec<u8>)> {
    let mut heard = Vec::new();
    while let Some(frame) = stack.next() {
        expect_checksums(frame);
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        if ethernet.ethertype() == EthernetProtocol::Ipv4 {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
            let segment = TcpPacket::new_checked(ip.payload()).unwrap();
            heard.push((
                segment.seq_number().0 as u32,
                ip.payload()[13],
                segment.payload().to_vec(),
            ));
        }
        stack.forward();
    }
    heard
}

/// A stack that has a neighbour, and a connection with it, which has its sequence numbers from this one on.
fn connected(options: &[u8]) -> (Stack, u32) {
    let (mut stack, mut client) = (stack(), Client::new());
    assert_eq!(client.ask(&mut stack, 4999, b"ax\n"), b"ax");
    let syn = Segment {
        options: options.to_vec(),
        ..Segment::new(SYN, 0, 0)
    };
    stack.take(&mut syn.frame());
    let heard = heard(&mut stack);
    let [(sequence, flags, _)] = &heard[..] else {
        panic!("one answer to one request for a connection: {heard:?}");
    };
    assert_eq!(*flags, SYN | ACK);
    let sequence = sequence.wrapping_add(1);
    stack.take(&mut Segment::new(ACK, 1, sequence).frame());
    (stack, sequence)
}

#[test]
fn segments_that_the_host_was_to_split_are_understood() {
    let (mut stack, sequence) = connected(&[]);
    let mut request = vec![b'a'; 3000];
    request.push(b'\n');
    let segment = Segment {
        payload: request.clone(),
        ..Segment::new(PSH | ACK, 1, sequence)
    };
    stack.take(&mut segment.frame());
    let response: Vec<u8> = heard(&mut stack)
        .into_iter()
        .flat_map(|(_, _, payload)| payload)
        .collect();
    assert_eq!(response, &request[..3000]);
}

#[test]
fn fragments_are_dropped() {
    for (high, low) in [(0x20, 0), (0, 1), (0x3f, 0xff)] {
        let (mut stack, sequence) = connected(&[]);
        let mut frame = Segment {
            payload: b"a\n".to_vec(),
            ..Segment::new(ACK, 1, sequence)
        }
        .frame();
        (frame[20], frame[21]) = (high, low);
        stack.take(&mut frame);
        assert_eq!(heard(&mut stack), []);
    }
}

#[test]
fn a_guest_without_buffers_has_a_bounded_number_of_frames_waiting() {
    let (mut stack, _) = connected(&[]);
    for sequence in 0..1000 {
        // Nobody listens there: each is told so.
        let mut frame = Segment::new(SYN, sequence, 0).frame();
        frame[37] = 81;
        stack.take(&mut frame);
    }
    assert_eq!(heard(&mut stack).len(), 64);
}

fn segments() -> impl Strategy<Value = Vec<Segment>> {
    let near = prop_oneof![
        0u32..6000,
        Just(0),
        Just(1),
        (0u32..20).prop_map(|less| 0u32.wrapping_sub(less)),
        any::<u32>()
    ];
    let options = prop_oneof![
        Just(vec![]),
        vec(any::<u8>(), 0..40),
        // RFC 2018: selective acknowledgements are permitted; RFC 7323: windows are scaled.
        Just(vec![4, 2, 3, 3, 14, 0]),
        any::<[u8; 2]>().prop_map(|size| vec![2, 4, size[0], size[1]]),
    ];
    let flags = prop_oneof![Just(ACK), Just(PSH | ACK), Just(SYN), Just(ACK | 1), any::<u8>()];
    let segment = (
        flags,
        near.clone(),
        near,
        any::<u16>(),
        options,
        vec(any::<u8>(), 0..LONGEST / 2),
    );
    let segment = segment.prop_map(
        |(flags, sequence, acknowledges, window, options, payload)| Segment {
            flags,
            sequence,
            acknowledges,
            window,
            options,
            payload,
        },
    );
    vec(segment, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_segments_come_others_are_answered(segments in segments(), scaled in any::<bool>(), takes in any::<bool>()) {
        let options: &[u8] = if scaled { &[4, 2, 3, 3, 14, 0] } else { &[] };
        let (mut stack, sequence) = connected(options);
        for mut segment in segments {
            segment.acknowledges = segment.acknowledges.wrapping_add(sequence);
            stack.take(&mut segment.frame());
            if takes {
                heard(&mut stack);
            }
        }
        heard(&mut stack);
        prop_assert_eq!(Client::new().ask(&mut stack, 6000, b"ax\n"), b"ax");
    }

    #[test]
    fn whatever_bytes_come_others_are_answered(
        frames in vec((0usize..3, vec(any::<u8>(), 0..200), 0usize..200), 1..40)
    ) {
        let (mut stack, sequence) = connected(&[]);
        for (kind, noise, at) in frames {
            let mut frame = match kind {
                0 => Segment::new(ACK, 1, sequence).frame(),
                1 => Segment::new(SYN, 0, 0).frame(),
                _ => vec![0; 60],
            };
            let at = at.min(frame.len());
            frame.truncate(at);
            frame.extend(noise);
            stack.take(&mut frame);
            heard(&mut stack);
        }
        prop_assert_eq!(Client::new().ask(&mut stack, 6000, b"ax\n"), b"ax");
    }
}

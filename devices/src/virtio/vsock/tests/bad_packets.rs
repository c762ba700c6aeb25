//! Packets as they should not be: each costs the guest at most the stream that it belongs to.

use proptest::prelude::*;

use super::*;

const NOBODY: Ports = Ports {
    guest: 1,
    host: 9,
    read: 0,
};

/// Does something bad to a guest with a stream, which must be none the worse for it.
#[track_caller]
fn the_others_go_on_after(bad: impl FnOnce(&mut Guest)) -> Guest {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    bad(&mut guest);
    guest.send(ports, op::RW, 0, b"well");
    assert_eq!(read(&mut program, 4), b"well");
    program.write_all(b"fine").unwrap();
    let (_, data) = guest.drain();
    assert_eq!(data, b"fine");
    assert_eq!(guest.started.recorder.faults(), [""; 0]);
    guest
}

#[test]
fn packets_that_end_early_are_dropped() {
    let guest = the_others_go_on_after(|guest| {
        let header = Header {
            op: op::RW,
            len: 1,
            ..NOBODY.header()
        };
        let address = guest.store(&header, &[]);
        guest.transmit(&[Buffer::Read(address, HEADER_SIZE - 1)]);
        guest.transmit(&[Buffer::Read(address, HEADER_SIZE)]);
        guest.transmit(&[Buffer::Write(address, 4096)]);
        let huge = Header {
            len: u32::MAX,
            ..header
        };
        guest.send_raw(&huge, &[0; 100]);
        guest.nothing_comes();
    });
    assert_eq!(guest.reports().len(), 4);
}

#[test]
fn packets_in_any_number_of_buffers_are_whole() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    let data = pattern(60);
    let header = Header {
        op: op::RW,
        len: 60,
        ..ports.header()
    };
    let address = guest.store(&header, &data);
    let buffers: Vec<_> = (0..52).map(|n| Buffer::Read(address + 2 * n, 2)).collect();
    guest.transmit(&buffers);
    assert_eq!(read(&mut program, 60), data);
}

#[test]
fn packets_of_or_for_others_are_dropped() {
    for (src_cid, dst_cid) in [(CID + 1, 2), (2, 2), (CID, 3), (CID, CID), (CID, 0)] {
        let guest = the_others_go_on_after(|guest| {
            let spoofed = Header {
                src_cid: src_cid.into(),
                dst_cid: dst_cid.into(),
                op: op::REQUEST,
                ..NOBODY.header()
            };
            guest.send_raw(&spoofed, &[]);
            guest.nothing_comes();
        });
        assert_eq!(guest.reports().len(), 1);
    }
}

#[test]
fn other_types_of_sockets_and_unknown_operations_are_refused() {
    the_others_go_on_after(|guest| {
        let seqpacket = Header {
            kind: 2,
            op: op::REQUEST,
            ..NOBODY.header()
        };
        guest.send_raw(&seqpacket, &[]);
        let reset = guest.packet();
        assert_eq!((reset.op, reset.kind), (op::RST, 2));
        for op in [
            0,
            op::RESPONSE,
            op::SHUTDOWN,
            op::RW,
            op::CREDIT_UPDATE,
            8,
            u16::MAX,
        ] {
            guest.send(NOBODY, op, u32::MAX, &[]);
            assert_eq!(guest.packet().op, op::RST, "operation {op}");
        }
        guest.send(NOBODY, op::RST, 0, &[]);
        guest.nothing_comes();
    });
}

#[test]
fn what_breaks_a_streams_rules_ends_it() {
    type Deed = fn(&mut Guest, Ports);
    let deeds: [Deed; 5] = [
        |guest, ports| guest.send(ports, op::REQUEST, 0, &[]),
        |guest, ports| guest.send(ports, op::RESPONSE, 0, &[]),
        |guest, ports| guest.send(ports, 0, 0, &[]),
        |guest, ports| guest.send(ports, 8, 0, &[]),
        |guest, ports| {
            guest.send(ports, op::SHUTDOWN, shutdown::SEND, &[]);
            guest.send(ports, op::RW, 0, b"more");
        },
    ];
    for deed in deeds {
        let guest = the_others_go_on_after(|guest| {
            let (mut program, ports) = guest.called(6);
            deed(guest, ports);
            assert_eq!(guest.packet().op, op::RST);
            at_its_end(&mut program);
        });
        assert_eq!(guest.reports().len(), 1);
    }
}

#[test]
fn data_without_credit_ends_the_stream_with_no_more_kept_than_was_promised() {
    let guest = the_others_go_on_after(|guest| {
        let (mut program, ports) = guest.called(6);
        let mut sent = 0;
        loop {
            guest.send(ports, op::RW, 0, &[1; 1 << 16]);
            guest.run();
            let packets = guest.packets();
            if packets.iter().any(|(header, _)| header.op == op::RST) {
                break;
            }
            sent += 1 << 16;
            assert!(sent < 1 << 24, "there is no end to it");
        }
        // Its socket had taken the rest: net.core.wmem_default, 208 KiB.
        assert!(sent > BUFFER as usize && read_now(&mut program).len() < sent);
    });
    assert_eq!(guest.reports(), ["the guest sends data without credit"]);
}

#[test]
fn answers_that_the_guest_does_not_take_hold_up_its_packets_and_nothing_grows() {
    let mut guest = Guest::without_buffers();
    let mut taken = 0;
    for _ in 0..3 {
        for _ in 0..32 {
            let header = Header {
                op: op::RW,
                ..NOBODY.header()
            };
            let address = guest.store(&header, &[]);
            guest.started.queues[1].add(&[Buffer::Read(address, HEADER_SIZE)]);
        }
        guest.started.ring(1);
        taken += guest.started.queues[1].take_used().len();
    }
    assert_eq!(taken, 64);
    guest.give_buffers(16);
    let mut answers = 0;
    loop {
        let (ops, _) = guest.drain();
        if ops.is_empty() {
            break;
        }
        answers += ops.len();
    }
    taken += guest.started.queues[1].take_used().len();
    assert_eq!((answers, taken), (96, 96));
}

#[test]
fn buffers_without_room_are_given_back() {
    let mut guest = Guest::without_buffers();
    guest.started.queues[0].add(&[Buffer::Write(INCOMING, HEADER_SIZE)]);
    guest.started.queues[0].add(&[Buffer::Read(INCOMING, 4096)]);
    guest.send(NOBODY, op::REQUEST, 0, &[]);
    assert_eq!(guest.started.queues[0].take_used(), [(0, 0), (1, 0)]);
    guest.give_buffers(2);
    assert_eq!(guest.packet().op, op::RST);
}

#[test]
fn a_broken_queue_needs_a_reset_and_frees_what_there_was() {
    let mut guest = Guest::new();
    let (mut program, _) = guest.called(5);
    guest.started.queues[1].jump(QUEUE_SIZE + 1);
    guest.started.ring(1);
    assert_eq!(guest.started.recorder.faults().len(), 1);
    at_its_end(&mut program);
    // Nobody listens until there is a driver again.
    let _waits = UnixStream::connect(guest.path()).unwrap();
    guest.run();
    assert_eq!(guest.started.stop().len(), 3);
}

/// A packet that is almost right, of a stream that there may be.
fn any_packet() -> impl Strategy<Value = (Header, usize)> {
    let ops = prop_oneof![4 => 0u16..9, 1 => any::<u16>()];
    let (guest_port, host_port) = (0u32..3, prop_oneof![Just(77u32), Just(1 << 30), 0u32..3]);
    let credit = (any::<u32>(), any::<u32>());
    (
        ops,
        guest_port,
        host_port,
        any::<u32>(),
        credit,
        0usize..5000,
        0u32..5000,
    )
        .prop_map(
            |(op, src_port, dst_port, flags, (buf_alloc, fwd_cnt), data, len)| {
                let header = Header {
                    src_cid: CID.into(),
                    dst_cid: HOST_CID,
                    src_port,
                    dst_port,
                    len,
                    kind: TYPE_STREAM,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                };
                (header, data)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// None of them panics, hangs, or makes the device need a reset; and it works on.
    #[test]
    fn no_sequence_of_packets_does_harm(packets in prop::collection::vec(any_packet(), 1..60)) {
        let mut guest = Guest::new();
        let listener = UnixListener::bind(guest.directory.as_path().join("v.sock_77")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut programs = Vec::new();
        for (n, (header, data)) in packets.iter().enumerate() {
            if n % 8 == 0 {
                let mut program = UnixStream::connect(guest.path()).unwrap();
                program.write_all(b"CONNECT 1\nsome data").unwrap();
                programs.push(program);
            }
            guest.send_raw(header, &pattern(*data));
            programs.extend(listener.accept().map(|(program, _)| program));
            guest.drain();
        }
        prop_assert_eq!(guest.started.recorder.faults(), [""; 0]);
        drop(programs);
        guest.drain();
        guest.called(50);
    }
}

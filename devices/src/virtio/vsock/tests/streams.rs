//! Streams as they should be: how they begin, flow and end.

use std::net::Shutdown;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::virtio::vsock::table::MAX_CONNECTIONS;

#[test]
fn a_host_program_gets_a_stream_to_the_port_that_it_names() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(guest.path()).unwrap();
    program.write_all(b"CONNECT 1234\nhello").unwrap();
    let request = guest.packet();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 1234));
    assert_eq!(request.buf_alloc, BUFFER);
    let ports = Ports {
        guest: 1234,
        host: request.src_port,
        read: 0,
    };
    guest.send(ports, op::RESPONSE, 0, &[]);
    assert_eq!(guest.drain(), (vec![op::RW], b"hello".to_vec()));
    guest.send(ports, op::RW, 0, b"world");
    let expected = format!("OK {}\nworld", ports.host);
    assert_eq!(read_now(&mut program), expected.as_bytes());
}

#[test]
fn the_first_line_may_come_in_pieces_and_in_small_letters() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(guest.path()).unwrap();
    for piece in ["con", "nect ", "9", "9\n"] {
        guest.nothing_comes();
        program.write_all(piece.as_bytes()).unwrap();
    }
    assert_eq!(guest.packet().dst_port, 99);
}

#[test]
fn who_says_something_else_is_hung_up_on() {
    let mut guest = Guest::new();
    for line in [
        "\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT 1 2\n",
        "CONNECT 4294967296\n",
        "CONNECT -1\n",
        "GET / HTTP/1.1\n",
        "\u{fffd}CONNECT 1\n",
        "a line that goes on and on and on and on and on",
    ] {
        let mut program = UnixStream::connect(guest.path()).unwrap();
        program.write_all(line.as_bytes()).unwrap();
        guest.nothing_comes();
        program.set_nonblocking(true).unwrap();
        // The end, or a reset where some of it was not read.
        let outcome = program.read(&mut [0]);
        assert!(
            !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock),
            "{line}"
        );
    }
}

#[test]
fn of_many_silent_host_programs_the_last_are_kept() {
    let mut guest = Guest::new();
    let mut programs: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(guest.path()).unwrap())
        .collect();
    guest.nothing_comes();
    at_its_end(&mut programs[0]);
    programs[199].write_all(b"CONNECT 5\n").unwrap();
    assert_eq!(guest.packet().dst_port, 5);
}

#[test]
fn a_hundred_that_connect_before_one_says_a_word_are_all_heard() {
    let mut guest = Guest::new();
    let connect = |_| UnixStream::connect(guest.path()).unwrap();
    let programs: Vec<_> = (0..100).map(connect).collect();
    guest.nothing_comes();
    for mut program in &programs {
        program.write_all(b"CONNECT 5\n").unwrap();
    }
    assert_eq!(guest.drain().0, [op::REQUEST; 100]);
}

#[test]
fn a_guest_that_does_not_accept_ends_the_host_programs_stream() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(guest.path()).unwrap();
    program.write_all(b"CONNECT 1\n").unwrap();
    let request = guest.packet();
    let ports = Ports {
        guest: 1,
        host: request.src_port,
        read: 0,
    };
    guest.send(ports, op::RST, 0, &[]);
    at_its_end(&mut program);
    guest.nothing_comes();
}

#[test]
fn a_host_program_that_does_not_wait_for_the_guest_is_forgotten() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(guest.path()).unwrap();
    program.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.packet().op, op::REQUEST);
    drop(program);
    assert_eq!(guest.packet().op, op::RST);
}

#[test]
fn a_guest_gets_a_stream_to_whoever_listens_at_the_port() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.calls();
    guest.send(ports, op::RW, 0, b"ping");
    assert_eq!(read(&mut program, 4), b"ping");
    program.write_all(b"pong").unwrap();
    assert_eq!(guest.drain(), (vec![op::RW], b"pong".to_vec()));
}

#[test]
fn a_port_that_nobody_listens_at_is_refused() {
    let mut guest = Guest::new();
    let ports = Ports {
        guest: 1,
        host: 9,
        read: 0,
    };
    guest.send(ports, op::REQUEST, 0, &[]);
    let reset = guest.packet();
    assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 9, 1));
    // A stale socket, that is.
    drop(UnixListener::bind(guest.directory.as_path().join("v.sock_9")).unwrap());
    guest.send(ports, op::REQUEST, 0, &[]);
    assert_eq!(guest.packet().op, op::RST);
}

#[test]
fn a_guest_never_gets_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let (mut program, mut ports) = guest.called(5);
    let room = GUEST_BUFFER as usize;
    let data = pattern(room * 5 / 2);
    let expected = data.clone();
    let writer = std::thread::spawn(move || program.write_all(&data).map(|()| program));
    let mut received = Vec::new();
    while received.len() < expected.len() {
        let until = (received.len() + room).min(expected.len());
        while received.len() < until {
            guest.started.turns.run_within(1000);
            let (_, data) = guest.drain();
            received.extend(data);
        }
        assert_eq!(received.len(), until, "more than there is room for");
        ports.read = received.len() as u32;
        guest.send(ports, op::CREDIT_UPDATE, 0, &[]);
    }
    assert!(received == expected, "the data has changed");
    writer.join().unwrap().unwrap();
}

#[test]
fn a_guest_without_room_is_asked_for_some_once() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    let tiny = Header {
        op: op::CREDIT_UPDATE,
        buf_alloc: 10,
        ..ports.header()
    };
    guest.send_raw(&tiny, &[]);
    program.write_all(&pattern(100)).unwrap();
    let (ops, data) = guest.drain();
    assert_eq!((ops, data.len()), (vec![op::RW, op::CREDIT_REQUEST], 10));
    guest.send_raw(&tiny, &[]);
    guest.nothing_comes();
    guest.send_raw(&Header { fwd_cnt: 10, ..tiny }, &[]);
    let (ops, data) = guest.drain();
    assert_eq!((ops, data.len()), (vec![op::RW, op::CREDIT_REQUEST], 10));
}

#[test]
fn what_a_host_program_does_not_read_is_kept_and_the_guest_hears_when_there_is_room() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    let data = pattern(8 * BUFFER as usize);
    let (mut sent, mut forwarded, mut received) = (0, 0, Vec::new());
    while received.len() < data.len() {
        // As much as there is credit for.
        let credit = BUFFER as usize - (sent - forwarded);
        let packet = credit.min(60_000).min(data.len() - sent);
        if packet > 0 {
            guest.send(ports, op::RW, 0, &data[sent..sent + packet]);
            sent += packet;
        } else {
            received.extend(read_now(&mut program));
        }
        guest.run();
        for (header, _) in guest.packets() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            forwarded = header.fwd_cnt as usize;
        }
    }
    assert!(received == data, "the data has changed");
    assert_eq!(guest.reports(), [""; 0]);
}

#[test]
fn a_guest_may_ask_for_its_credit() {
    let mut guest = Guest::new();
    let (_program, ports) = guest.called(5);
    guest.send(ports, op::RW, 0, &[1; 100]);
    guest.nothing_comes();
    guest.send(ports, op::CREDIT_REQUEST, 0, &[]);
    let update = guest.packet();
    assert_eq!(
        (update.op, update.buf_alloc, update.fwd_cnt),
        (op::CREDIT_UPDATE, BUFFER, 100)
    );
}

#[test]
fn a_stream_that_the_host_program_has_finished_goes_on_in_the_other_direction() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    program.write_all(b"last words").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        guest.drain(),
        (vec![op::RW, op::SHUTDOWN], b"last words".to_vec())
    );
    guest.send(ports, op::RW, 0, b"answer");
    assert_eq!(read(&mut program, 6), b"answer");
    drop(program);
    let end = guest.packet();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
    guest.send(ports, op::RST, 0, &[]);
    guest.send(ports, op::RW, 0, &[]);
    assert_eq!(guest.packet().op, op::RST, "it is gone");
}

#[test]
fn a_stream_that_the_guest_has_finished_goes_on_in_the_other_direction() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.calls();
    guest.send(ports, op::RW, 0, b"last words");
    guest.send(ports, op::SHUTDOWN, shutdown::SEND, &[]);
    assert_eq!(read(&mut program, 10), b"last words");
    at_its_end(&mut program);
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.drain(), (vec![op::RW], b"answer".to_vec()));
    guest.send(ports, op::SHUTDOWN, shutdown::RECEIVE, &[]);
    assert_eq!(guest.packet().op, op::RST);
}

#[test]
fn a_host_program_that_writes_to_a_guest_that_reads_no_more_is_told() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.calls();
    guest.send(ports, op::SHUTDOWN, shutdown::RECEIVE, &[]);
    assert_eq!(program.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(ports, op::RW, 0, b"still");
    assert_eq!(read(&mut program, 5), b"still");
}

#[test]
fn what_a_guest_sent_before_it_closed_is_delivered_though_nobody_reads_yet() {
    let mut guest = Guest::new();
    let (mut program, ports) = guest.called(5);
    let data = pattern(2 * BUFFER as usize);
    for packet in data.chunks(1 << 16) {
        guest.send(ports, op::RW, 0, packet);
    }
    guest.send(ports, op::SHUTDOWN, shutdown::BOTH, &[]);
    let (ops, _) = guest.drain();
    assert_eq!(ops.last(), Some(&op::RST));
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(read_now(&mut program));
        guest.run();
    }
    assert!(received == data, "the data has changed");
    at_its_end(&mut program);
    assert_eq!(guest.reports(), [""; 0]);
}

#[test]
fn a_host_program_that_goes_without_reading_takes_nothing_with_it() {
    let mut guest = Guest::new();
    let (program, ports) = guest.called(5);
    let (mut other, other_ports) = guest.called(6);
    for packet in pattern(2 * BUFFER as usize).chunks(1 << 16) {
        guest.send(ports, op::RW, 0, packet);
    }
    guest.drain();
    drop(program);
    let (ops, _) = guest.drain();
    assert!(
        ops.contains(&op::SHUTDOWN) || ops.contains(&op::RST),
        "the guest does not hear of it: {ops:?}"
    );
    guest.send(other_ports, op::RW, 0, b"here");
    assert_eq!(read(&mut other, 4), b"here");
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::without_buffers();
    guest.give_buffers(2);
    let (mut talker, _) = guest.called(5);
    let (mut other, _) = guest.called(6);
    talker.set_nonblocking(true).unwrap();
    while talker.write(&[1; 4096]).is_ok() {}
    other.write_all(&[2; 10]).unwrap();
    let mut packets = Vec::new();
    while !packets
        .iter()
        .any(|(_, data): &(_, Vec<u8>)| data.first() == Some(&2))
    {
        guest.run();
        packets.extend(guest.packets());
        assert!(packets.len() <= 5, "one stream has it all");
    }
}

#[test]
fn without_buffers_nothing_is_lost_and_nobody_spins() {
    let mut guest = Guest::without_buffers();
    let mut programs: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(guest.path()).unwrap())
        .collect();
    for program in &mut programs {
        program.write_all(b"CONNECT 7\n").unwrap();
    }
    // Ends only when no event is left.
    guest.run();
    guest.give_buffers(16);
    let (ops, _) = guest.drain();
    assert_eq!(ops, [op::REQUEST; 20]);
}

#[test]
fn there_is_a_limit_to_connections_and_ends_make_room() {
    // Both ends of them are in this process, which has 1024 descriptors at first.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most).unwrap();
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.called(5)).collect();
    let mut one_more = UnixStream::connect(guest.path()).unwrap();
    one_more.write_all(b"CONNECT 5\n").unwrap();
    guest.nothing_comes();
    at_its_end(&mut one_more);
    let _listener = UnixListener::bind(guest.directory.as_path().join("v.sock_77")).unwrap();
    let call = Ports {
        guest: 1,
        host: 77,
        read: 0,
    };
    guest.send(call, op::REQUEST, 0, &[]);
    assert_eq!(guest.packet().op, op::RST);
    let (_program, ports) = streams.pop().unwrap();
    guest.send(ports, op::RST, 0, &[]);
    guest.send(call, op::REQUEST, 0, &[]);
    assert_eq!(guest.packet().op, op::RESPONSE);
}

#[test]
fn a_reset_ends_all_streams_and_the_next_driver_finds_a_device_that_works() {
    let mut guest = Guest::new();
    let (mut program, _) = guest.called(5);
    let states = guest.started.stop();
    assert_eq!(
        states.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    at_its_end(&mut program);
    guest
        .memory
        .write_slice(&[0; 0x8000], GuestAddress(QUEUES))
        .unwrap();
    guest.started = Started::new(&guest.device, &guest.memory, QUEUES, QUEUE_SIZE, 0);
    (guest.given, guest.sent) = (0, 0);
    guest.incoming.clear();
    guest.give_buffers(16);
    guest.called(6);
}

#[test]
fn the_guest_finds_its_cid_and_streams_only() {
    let guest = Guest::new();
    let mut cid = [0; 8];
    guest.device.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), u64::from(CID));
    assert_eq!(guest.device.features(), 1);
}

#[test]
fn a_socket_that_nobody_listens_at_is_replaced_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("v.sock");
    drop(UnixListener::bind(&path).unwrap());
    let (_device, file) = Vsock::bind(&path, CID).unwrap();
    assert!(matches!(Vsock::bind(&path, CID), Err(BindError::InUse(_))));
    drop(file);
    assert!(!path.exists());

    std::fs::write(&path, "a file").unwrap();
    assert!(matches!(Vsock::bind(&path, CID), Err(BindError::NotASocket(_))));
    let long = directory.as_path().join("x".repeat(97));
    assert!(matches!(Vsock::bind(&long, CID), Err(BindError::TooLong(_))));
    let nowhere = directory.as_path().join("no/v.sock");
    let error = Vsock::bind(&nowhere, CID).err().unwrap();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn a_name_that_has_become_somebody_elses_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("v.sock");
    let (_device, file) = Vsock::bind(&path, CID).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(file);
    assert!(path.exists());
}

//! Guests that do things wrong, and a host's end that does.

use super::*;

#[test]
fn what_is_no_frame_is_dropped_and_told_once() {
    let mut bench = Bench::new(MERGEABLE);
    for len in [1, HEADER, HEADER + MIN_FRAME - 1, HEADER + MAX_FRAME + 1] {
        bench.guest.queues[TX].add(&[Buffer::Read(DATA, len as u32)]);
        bench.guest.ring(TX);
        assert_eq!(bench.guest.queues[TX].take_used().len(), 1, "{len}");
    }
    // A chain for the device to write is no frame either.
    bench.guest.queues[TX].add(&[Buffer::Write(DATA, 100)]);
    bench.send(DATA, &frame(1, 60));
    assert_eq!(bench.guest.queues[TX].take_used().len(), 2);
    assert_eq!(bench.received(), [frame(1, 60)]);
    assert!(bench.guest.recorder.faults().is_empty());
    let reports = bench.guest.recorder.reports();
    assert!(reports.iter().all(|(trouble, _)| *trouble == Trouble::Guest));
}

#[test]
fn a_receive_buffer_without_room_for_a_header_is_given_back() {
    let mut bench = Bench::new(MERGEABLE);
    bench.arrive(&frame(2, 100));
    bench.post(&[(DATA, HEADER as u32 - 1)]);
    bench.guest.queues[RX].add(&[Buffer::Read(DATA, 2048)]);
    bench.post(&[(DATA + PAGE, 2048)]);
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 0), (1, 0), (2, 112)]);
    assert_eq!(bench.read(DATA + PAGE + 12, 100), frame(2, 100));
    assert!(bench.guest.recorder.faults().is_empty());
}

#[test]
fn a_frame_larger_than_its_buffer_is_dropped_and_the_next_one_comes() {
    let mut bench = Bench::new(0);
    bench.post(&[(DATA, 512)]);
    bench.arrive(&frame(3, 1000));
    assert_eq!(bench.guest.queues[RX].take_used(), []);
    bench.arrive(&frame(4, 500));
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 512)]);
    bench.expect_header(DATA, 1);
    assert_eq!(bench.read(DATA + 12, 500), frame(4, 500));
    bench.expect_reports(&[(Trouble::Guest, "did not fit")]);
}

#[test]
fn a_driver_that_never_posts_enough_for_the_largest_frame_gets_smaller_ones() {
    let mut bench = Bench::new(MERGEABLE);
    for n in 0..3 {
        bench.post(&[(DATA + n * PAGE, 600)]);
    }
    bench.arrive(&frame(5, 3000));
    bench.arrive(&frame(6, 900));
    assert_eq!(bench.guest.queues[RX].take_used(), [(0, 600), (1, 312)]);
    bench.expect_header(DATA, 2);
    bench.expect_reports(&[(Trouble::Guest, "did not fit")]);
}

#[test]
fn a_driver_that_has_posted_enough_before_is_waited_for_and_loses_no_large_frame() {
    let mut bench = Bench::new(MERGEABLE);
    for n in 0..6 {
        bench.post(&[(DATA + n * PAGE, 600)]);
    }
    for (number, len) in [(5, 1500), (6, 500), (7, 1500)] {
        bench.arrive(&frame(number, len));
    }
    let used = bench.guest.queues[RX].take_used();
    assert_eq!(
        used,
        [(0, 600), (1, 600), (2, 312), (3, 512)],
        "two are left, too small"
    );
    bench.post(&[(DATA + 6 * PAGE, 600)]);
    let used = bench.guest.queues[RX].take_used();
    assert_eq!(used, [(4, 600), (5, 600), (6, 312)]);
    bench.expect_reports(&[]);
}

#[test]
fn a_malformed_queue_stops_the_device_until_it_is_reset() {
    type Wrong = fn(&mut Started);
    let wrongs: [Wrong; 4] = [
        |guest| guest.queues[TX].jump(SIZE + 1),
        |guest| {
            guest.queues[TX].descriptor(0, DATA, 100, 1, 0);
            guest.queues[TX].publish(0);
        },
        |guest| {
            guest.queues[TX].add(&[Buffer::Read(u64::MAX - 4, 100)]);
        },
        |guest| {
            guest.queues[RX].add(&[Buffer::Write(MEMORY as u64 - 8, 100)]);
        },
    ];
    for (number, wrong) in wrongs.into_iter().enumerate() {
        let mut bench = Bench::new(MERGEABLE);
        wrong(&mut bench.guest);
        bench.arrive(&frame(7, 100));
        bench.guest.ring(RX);
        bench.guest.ring(TX);
        assert_eq!(bench.guest.recorder.faults().len(), 1, "wrong {number}");
        bench.guest.stop();
        bench.guest = Started::new(&bench.net, &bench.memory, QUEUES, SIZE, MERGEABLE);
        bench.send(DATA, &frame(8, 100));
        assert_eq!(bench.received(), [frame(8, 100)], "wrong {number}");
    }
}

#[test]
fn buffers_that_overlap_each_other_or_the_queue_are_the_guests_own_trouble() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(&[(DATA, 700), (DATA + 100, 700)]);
    bench.post(&[(QUEUES, 4096)]);
    bench.arrive(&frame(9, 1200));
    bench.arrive(&frame(10, 1400));
    bench.guest.ring(TX);
    bench.guest.stop();
}

#[test]
fn more_pieces_than_one_call_takes_are_no_obstacle() {
    let mut bench = Bench::new(MERGEABLE);
    for _ in 0..20 {
        for n in 0..4 {
            bench.post(&[
                (DATA + n * 64, 13),
                (DATA + n * 64 + 13, 1),
                (DATA + n * 64 + 14, 1),
                (DATA + n * 64 + 15, 1),
            ]);
        }
        bench.arrive(&frame(11, 50));
        assert_eq!(bench.guest.queues[RX].take_used().len(), 4);
    }
    assert!(bench.guest.recorder.faults().is_empty());
}

#[test]
fn lengths_that_no_frame_has_end_the_stream() {
    for prefix in [0, 1, MIN_FRAME as u32 - 1, MAX_FRAME as u32 + 1, u32::MAX] {
        let mut bench = Bench::new(MERGEABLE);
        bench.post(&[(DATA, 2048)]);
        bench.host.write_all(&prefix.to_be_bytes()).unwrap();
        bench.guest.turns.run();
        assert!(!bench.link_is_up(), "{prefix}");
        bench.expect_reports(&[(Trouble::Host, "a frame of")]);
        bench.guest.turns.run();
    }
}

#[test]
fn a_device_without_its_queues_does_not_start() {
    let bench = Bench::new(MERGEABLE);
    let activation = Activation {
        features: MERGEABLE,
        queues: vec![None, None],
        interrupt: bench.guest.recorder.clone(),
    };
    let error = bench.net.start(activation).err().map(|error| error.kind());
    assert_eq!(error, Some(ErrorKind::InvalidInput));
}

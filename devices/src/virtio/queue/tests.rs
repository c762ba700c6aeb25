//! Tests of queues and chains: sound ones come through whole, malformed ones are told apart.

use super::*;
use crate::virtio::testing::{Buffer, DriverQueue, INDIRECT, NEXT, Recorder, WRITE, memory};

const BASE: u64 = 0x1000;
const DATA: u64 = 0x8000;
const TABLE: u64 = 0xc000;
const MEMORY: usize = 0x1_0000;
const SIZE: u16 = 8;

/// A driver and the device's side of its queue.
fn pair(event_idx: bool) -> (DriverQueue, Queue, Arc<Recorder>) {
    let driver = DriverQueue::new(&memory(MEMORY), BASE, SIZE);
    let recorder = Arc::new(Recorder::default());
    let queue = driver.device_side(0, recorder.clone(), event_idx).unwrap();
    (driver, queue, recorder)
}

/// What a device finds when the driver has done `prepare`.
fn pop_after(prepare: impl FnOnce(&mut DriverQueue)) -> Result<Chain, QueueError> {
    let (mut driver, mut queue, _) = pair(false);
    prepare(&mut driver);
    let mut chain = Chain::new(SIZE);
    assert!(queue.pop(&mut chain)?, "something is available");
    Ok(chain)
}

#[test]
fn a_chain_comes_out_as_the_driver_made_it_and_goes_back_to_it() {
    let (mut driver, mut queue, _) = pair(false);
    let mut chain = Chain::new(SIZE);
    assert!(!queue.pop(&mut chain).unwrap());
    for round in 0..3 * u32::from(SIZE) {
        let buffers = [
            Buffer::Read(DATA, 16),
            Buffer::Read(DATA + 64, 4),
            Buffer::Write(DATA + 128, 100),
        ];
        let head = driver.add(&buffers);
        assert!(queue.has_available());
        assert!(queue.pop(&mut chain).unwrap());
        assert_eq!(
            (chain.head(), chain.readable().len(), chain.writable().len()),
            (head, 2, 1)
        );
        assert_eq!((chain.readable_len(), chain.writable_len()), (20, 100));
        queue.complete(head, round).unwrap();
        assert_eq!(driver.take_used(), [(head.into(), round)]);
    }
}

#[test]
fn bytes_are_copied_across_buffers_and_not_beyond_them() {
    let (mut driver, mut queue, _) = pair(false);
    let buffers = [
        Buffer::Read(DATA, 3),
        Buffer::Read(DATA + 8, 5),
        Buffer::Write(DATA + 16, 2),
        Buffer::Write(DATA + 32, 6),
    ];
    driver.add(&buffers);
    queue
        .memory()
        .write_slice(b"abc-----defgh---", GuestAddress(DATA))
        .unwrap();
    let mut chain = Chain::new(SIZE);
    queue.pop(&mut chain).unwrap();
    let mut read = [0; 8];
    assert!(chain.read(0, &mut read));
    assert_eq!(&read, b"abcdefgh");
    assert!(chain.read(2, &mut read[..3]));
    assert_eq!(&read[..3], b"cde");
    assert!(!chain.read(1, &mut read) && !chain.read(u32::MAX, &mut read));
    assert!(chain.write(1, b"12345"));
    assert!(!chain.write(0, &[0; 9]) && !chain.write(8, b"x") && chain.write(8, b""));
    let mut written = [0; 6];
    queue
        .memory()
        .read_slice(&mut written, GuestAddress(DATA + 32))
        .unwrap();
    assert_eq!(&written, b"2345\0\0");
}

#[test]
fn an_indirect_table_stands_for_its_descriptors_even_behind_others() {
    let chain = pop_after(|driver| {
        driver.descriptor(0, DATA, 8, NEXT, 3);
        driver.descriptor(3, TABLE, 2 * 16, INDIRECT, 0);
        driver.descriptor_at(TABLE, DATA + 16, 8, NEXT, 1);
        driver.descriptor_at(TABLE + 16, DATA + 32, 8, WRITE, 0);
        driver.publish(0);
    })
    .unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 8));
}

#[test]
fn malformed_chains_are_told_apart() {
    let single = |address: u64, len: u32, flags: u16| {
        pop_after(move |driver| {
            driver.descriptor(0, address, len, flags, 0);
            driver.publish(0);
        })
        .err()
    };
    let end = MEMORY as u64;
    for (address, len) in [
        (end, 1),
        (end - 4, 8),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
        (DATA, u32::MAX),
    ] {
        assert_eq!(
            single(address, len, 0),
            Some(QueueError::BadAddress { address, len })
        );
        assert_eq!(
            single(address, len, WRITE),
            Some(QueueError::BadAddress { address, len })
        );
    }
    assert_eq!(single(DATA, 0, 0), Some(QueueError::EmptyBuffer));
    assert_eq!(
        single(DATA, 4, NEXT),
        Some(QueueError::TooLong),
        "it leads to itself"
    );
    for (len, flags, error) in [
        (0, INDIRECT, QueueError::BadIndirect),
        (24, INDIRECT, QueueError::BadIndirect),
        (16, INDIRECT | NEXT, QueueError::BadIndirect),
        (16 * 9, INDIRECT, QueueError::TooLong),
        (u32::MAX - 15, INDIRECT, QueueError::TooLong),
    ] {
        assert_eq!(single(TABLE, len, flags), Some(error));
    }
}

#[test]
fn chains_that_lead_astray_are_told_apart() {
    let nested = pop_after(|driver| {
        driver.descriptor(0, TABLE, 16, INDIRECT, 0);
        driver.descriptor_at(TABLE, TABLE, 16, INDIRECT, 0);
        driver.publish(0);
    });
    assert_eq!(nested.err(), Some(QueueError::BadIndirect));
    let beyond = |next: u16| {
        pop_after(move |driver| {
            driver.descriptor(0, DATA, 4, NEXT, next);
            driver.publish(0);
        })
    };
    assert_eq!(beyond(SIZE).err(), Some(QueueError::NoSuchDescriptor(SIZE)));
    let head = pop_after(|driver| driver.publish(u16::MAX));
    assert_eq!(head.err(), Some(QueueError::NoSuchDescriptor(u16::MAX)));
    let inside = pop_after(|driver| {
        driver.descriptor(0, TABLE, 16, INDIRECT, 0);
        driver.descriptor_at(TABLE, DATA, 4, NEXT, 1);
        driver.publish(0);
    });
    assert_eq!(
        inside.err(),
        Some(QueueError::NoSuchDescriptor(1)),
        "the table has one entry"
    );
    let direction = pop_after(|driver| {
        driver.add(&[Buffer::Write(DATA, 4), Buffer::Read(DATA + 8, 4)]);
    });
    assert_eq!(direction.err(), Some(QueueError::ReadAfterWrite));
    let jump = pop_after(|driver| driver.jump(SIZE + 1));
    assert_eq!(jump.err(), Some(QueueError::IndexJump));
}

#[test]
fn indirect_descriptors_need_the_feature() {
    let driver = DriverQueue::new(&memory(MEMORY), BASE, SIZE);
    let parts = QueueParts {
        index: 0,
        memory: memory(MEMORY),
        doorbell: EventFd::new(0).unwrap(),
        interrupt: Arc::new(Recorder::default()),
        indirect: false,
        counts: Arc::default(),
    };
    let mut queue = Queue::new(driver.state(), parts).unwrap();
    let mut driver = DriverQueue::new(queue.memory(), BASE, SIZE);
    driver.descriptor(0, TABLE, 16, INDIRECT, 0);
    driver.publish(0);
    assert_eq!(
        queue.pop(&mut Chain::new(SIZE)),
        Err(QueueError::IndirectNotNegotiated)
    );
}

#[test]
fn a_queue_that_is_not_all_in_memory_or_not_aligned_is_refused() {
    let check = |change: fn(&mut QueueState)| {
        let mut state = DriverQueue::new(&memory(MEMORY), BASE, SIZE).state();
        change(&mut state);
        let parts = QueueParts {
            index: 0,
            memory: memory(MEMORY),
            doorbell: EventFd::new(0).unwrap(),
            interrupt: Arc::new(Recorder::default()),
            indirect: true,
            counts: Arc::default(),
        };
        Queue::new(state, parts).err()
    };
    assert_eq!(check(|_| ()), None);
    assert_eq!(check(|state| state.size = 0), Some(QueueError::Size(0)));
    assert_eq!(check(|state| state.size = 5), Some(QueueError::Size(5)));
    assert_eq!(check(|state| state.size = 16), Some(QueueError::Size(16)));
    assert_eq!(
        check(|state| state.desc_table += 8),
        Some(QueueError::Unaligned("descriptor table"))
    );
    assert_eq!(
        check(|state| state.avail_ring += 1),
        Some(QueueError::Unaligned("available ring"))
    );
    assert_eq!(
        check(|state| state.used_ring += 2),
        Some(QueueError::Unaligned("used ring"))
    );
    let outside: [fn(&mut QueueState); 5] = [
        |state| state.desc_table = MEMORY as u64 - 16,
        |state| state.avail_ring = MEMORY as u64 - 2,
        |state| state.used_ring = MEMORY as u64,
        |state| state.used_ring = u64::MAX - 3,
        |state| state.ready = false,
    ];
    for change in outside {
        assert_eq!(check(change), Some(QueueError::NotInMemory));
    }
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    let (mut driver, mut queue, recorder) = pair(false);
    let complete = |driver: &mut DriverQueue, queue: &mut Queue| {
        let head = driver.add(&[Buffer::Write(DATA, 4)]);
        let mut chain = Chain::new(SIZE);
        queue.pop(&mut chain).unwrap();
        queue.complete(head, 4).unwrap();
        queue.signal();
        recorder.queue_interrupts()
    };
    assert_eq!(complete(&mut driver, &mut queue), 1);
    driver.suppress_interrupts();
    assert_eq!(complete(&mut driver, &mut queue), 1);
}

#[test]
fn nothing_new_interrupts_nobody() {
    for event_idx in [false, true] {
        let (mut driver, mut queue, recorder) = pair(event_idx);
        queue.signal();
        assert_eq!(recorder.queue_interrupts(), 0);
        let head = driver.add(&[Buffer::Write(DATA, 4)]);
        queue.pop(&mut Chain::new(SIZE)).unwrap();
        queue.complete(head, 4).unwrap();
        queue.signal();
        queue.signal();
        assert_eq!(recorder.queue_interrupts(), 1);
    }
}

#[test]
fn with_event_idx_interrupts_and_doorbells_are_asked_for_by_index() {
    let (mut driver, mut queue, recorder) = pair(true);
    let mut chain = Chain::new(SIZE);
    driver.set_used_event(1);
    for expected in [0, 1, 1] {
        let head = driver.add(&[Buffer::Write(DATA, 4)]);
        queue.pop(&mut chain).unwrap();
        queue.complete(head, 4).unwrap();
        queue.signal();
        assert_eq!(recorder.queue_interrupts(), expected);
    }
    assert!(!queue.enable_doorbell());
    assert_eq!(driver.avail_event(), 3);
    driver.add(&[Buffer::Write(DATA, 4)]);
    assert!(queue.enable_doorbell(), "it came before the doorbell was enabled");
}

#[test]
fn a_chain_put_back_is_the_next_one_again() {
    let (mut driver, mut queue, _) = pair(false);
    let head = driver.add(&[Buffer::Read(DATA, 4)]);
    let mut chain = Chain::new(SIZE);
    assert!(queue.pop(&mut chain).unwrap() && !queue.pop(&mut chain).unwrap());
    queue.undo_pop();
    assert!(queue.pop(&mut chain).unwrap());
    assert_eq!(chain.head(), head);
    assert_eq!(queue.state().next_avail, 1);
}

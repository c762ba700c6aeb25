//! Tests of the entropy device.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::GuestMemory;
use crate::virtio::testing::{Buffer, Started, memory};

const DATA: u64 = 0x1_0000;
const QUEUE_SIZE: u16 = 8;

fn start() -> (Started, GuestMemory) {
    let memory = memory(0x20_0000);
    (
        Started::new(&Rng::default(), &memory, 0x1000, QUEUE_SIZE, 0),
        memory,
    )
}

fn bytes(memory: &GuestMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn buffers_are_filled_and_no_two_alike() {
    let (mut started, memory) = start();
    let head = started.queues[0].add(&[Buffer::Write(DATA, 16), Buffer::Write(DATA + 0x100, 48)]);
    started.queues[0].add(&[Buffer::Write(DATA + 0x200, 64)]);
    started.ring(0);
    assert_eq!(started.queues[0].take_used(), [(head.into(), 64), (2, 64)]);
    let first = [bytes(&memory, DATA, 16), bytes(&memory, DATA + 0x100, 48)].concat();
    let second = bytes(&memory, DATA + 0x200, 64);
    // By chance this fails once in 2^128 runs.
    assert!(first[..16] != [0; 16] && first[48..] != [0; 16] && first != second);
    assert_eq!(bytes(&memory, DATA + 16, 0xf0), [0; 0xf0], "behind the buffer");
}

#[test]
fn a_request_gets_64_kib_at_most() {
    let (mut started, memory) = start();
    started.queues[0].add(&[
        Buffer::Write(DATA, 0x8000),
        Buffer::Write(DATA + 0x8000, 0x1_0000),
    ]);
    started.ring(0);
    assert_eq!(started.queues[0].take_used(), [(0, MAX_BYTES as u32)]);
    assert_eq!(bytes(&memory, DATA + MAX_BYTES as u64, 0x8000), [0; 0x8000]);
}

#[test]
fn a_request_without_room_is_answered_with_nothing() {
    let (mut started, memory) = start();
    started.queues[0].add(&[Buffer::Read(DATA, 64)]);
    started.ring(0);
    assert_eq!(started.queues[0].take_used(), [(0, 0)]);
    assert_eq!(bytes(&memory, DATA, 64), [0; 64]);
}

#[test]
fn a_queueful_after_the_other_is_served() {
    let (mut started, _) = start();
    for _ in 0..3 {
        for _ in 0..QUEUE_SIZE {
            started.queues[0].add(&[Buffer::Write(DATA, 8)]);
        }
        started.ring(0);
        let used = started.queues[0].take_used();
        assert_eq!(used.len(), usize::from(QUEUE_SIZE));
        assert!(used.iter().all(|(_, len)| *len == 8));
    }
    assert_eq!(started.stop()[0].1.next_avail, 3 * QUEUE_SIZE);
}

#[test]
fn a_broken_chain_needs_a_reset_and_the_queue_is_not_looked_at_again() {
    let (mut started, _) = start();
    started.queues[0].add(&[Buffer::Write(DATA, 0)]);
    started.ring(0);
    started.queues[0].add(&[Buffer::Write(DATA, 8)]);
    started.ring(0);
    assert_eq!(started.recorder.faults().len(), 1);
    assert_eq!(started.queues[0].take_used(), []);
}

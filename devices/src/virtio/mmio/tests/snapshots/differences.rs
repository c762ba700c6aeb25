//! What a state is refused for, and devices that do not run.

use std::fs;

use super::*;
use crate::virtio::StateError;
use crate::virtio::block::BlockState;
use crate::virtio::net::NetState;

/// Why `device` does not take `state`.
#[track_caller]
fn refusal(device: Arc<dyn VirtioDevice>, state: TransportState) -> String {
    let other = Driver::new(device, RAM);
    let error: StateError = other.transport.restore(state).unwrap_err();
    error.to_string()
}

/// Of a device that is closed then.
fn state_of<S: Subject>(host: &Path) -> TransportState {
    let (_subject, guest) = Guest::boot::<S>(host);
    let state = guest.rest();
    drop(guest);
    state
}

#[test]
fn another_device_is_refused() {
    let host = TempDir::new().unwrap();
    let disk = state_of::<disk::Disk<false>>(host.as_path());
    let why = refusal(Arc::new(Rng::default()), disk.clone());
    assert!(
        why.starts_with("the snapshot does not fit entropy: in its place there was a device of type 2"),
        "{why}"
    );
    // A state that says of itself that it is another device's.
    let mut damaged = state_of::<entropy::Entropy>(host.as_path());
    damaged.device = disk.device;
    let why = refusal(Arc::new(Rng::default()), damaged);
    assert!(why.contains("damaged"), "{why}");
}

#[test]
fn other_queues_and_features_that_are_not_offered_are_refused() {
    let host = TempDir::new().unwrap();
    let good = state_of::<entropy::Entropy>(host.as_path());
    let mut other = good.clone();
    other.queues.push(other.queues[0]);
    let why = refusal(Arc::new(Rng::default()), other);
    assert!(why.contains("[64, 64]") && why.contains("[64]"), "{why}");
    let mut other = good.clone();
    other.driver_features |= 1 << 5;
    let why = refusal(Arc::new(Rng::default()), other.clone());
    assert!(why.contains("features") && why.contains("0x20"), "{why}");
    // Before they are agreed on they are only what somebody has written.
    other.status &= !FEATURES_OK;
    let machine = Driver::new(Arc::new(Rng::default()), RAM);
    assert_eq!(machine.transport.restore(other), Ok(()));
}

#[test]
fn a_disk_that_is_not_as_it_was_is_refused() {
    let host = TempDir::new().unwrap();
    let good = state_of::<disk::Disk<false>>(host.as_path());
    let path = host.as_path().join("disk");
    let DeviceState::Block(known) = good.device else {
        panic!("a disk's state: {good:?}");
    };
    let with = |known: BlockState| TransportState {
        device: DeviceState::Block(known),
        ..good.clone()
    };
    let coarser = BlockState { block: 256, ..known };
    let why = refusal(disk::open(&path, false, false), with(coarser));
    assert!(why.contains("256") && why.contains("512"), "{why}");
    let readonly = BlockState {
        readonly: true,
        ..known
    };
    let why = refusal(disk::open(&path, false, false), with(readonly));
    assert!(why.contains("make it read-only"), "{why}");
    let why = refusal(disk::open(&path, false, true), with(known));
    assert!(why.contains("here it is read-only"), "{why}");
    fs::write(&path, [0; 1024]).unwrap();
    let why = refusal(disk::open(&path, false, false), with(known));
    assert_eq!(
        why,
        "the snapshot does not fit disk 'root': it had 32768 bytes, and its image has 1024; \
         give it the image as it was, or a copy of that"
    );
}

#[test]
fn a_network_with_shorter_frames_is_refused() {
    let host = TempDir::new().unwrap();
    let mut state = state_of::<network::Network>(host.as_path());
    state.device = DeviceState::Net(NetState {
        mtu: 9000,
        link_up: true,
        pairs: 1,
    });
    let why = refusal(network::open(Some(1500)).1, state);
    assert!(why.contains("give it mtu=9000"), "{why}");
}

#[test]
fn a_driver_in_the_midst_of_its_start_goes_on_with_it() {
    let guest = machine(Arc::new(Rng::default()));
    guest.negotiate(1 << VIRTIO_F_VERSION_1);
    let mut queue = DriverQueue::new(&guest.memory, QUEUE, SIZE);
    guest.set_queue(0, &queue.state());
    guest.transport.pause();
    let state = guest.transport.save();
    assert!(!state.running);

    let other = Driver::in_memory(guest.memory.clone(), Arc::new(Rng::default()));
    other.transport.restore(state).unwrap();
    other.transport.resume().unwrap();
    assert_eq!(other.read(reg::QUEUE_READY), 1);
    queue.add(&[Buffer::Write(DATA, 8)]);
    other.ring(0);
    assert_eq!(queue.take_used(), [], "it does not run yet");
    other.write(reg::STATUS, RUNNING);
    other.ring(0);
    assert_eq!(queue.take_used().len(), 1);
}

#[test]
fn a_device_that_its_driver_has_stopped_stays_so() {
    let guest = machine(Arc::new(Rng::default()));
    let mut queue = start(&guest);
    guest.write(reg::QUEUE_READY, 0);
    guest.transport.pause();
    let state = guest.transport.save();
    guest.transport.restore(state).unwrap();
    guest.transport.resume().unwrap();
    queue.add(&[Buffer::Write(DATA, 8)]);
    guest.ring(0);
    assert_eq!((queue.take_used(), guest.status()), (vec![], RUNNING));
}

#[test]
fn a_device_that_needs_a_reset_rests_until_it_gets_one_wherever_it_is() {
    for elsewhere in [false, true] {
        let guest = machine(Arc::new(Rng::default()));
        let mut queue = start(&guest);
        queue.jump(SIZE + 1);
        guest.ring(0);
        guest.line.take_pulses();
        guest.transport.pause();
        if elsewhere {
            guest.transport.restore(guest.transport.save()).unwrap();
        }
        guest.transport.resume().unwrap();
        guest.ring(0);
        assert_eq!(guest.status(), RUNNING | DEVICE_NEEDS_RESET);
        assert_eq!(guest.line.take_pulses(), u64::from(elsewhere));
        guest.write(reg::STATUS, 0);
        guest.memory.write_slice(&[0; 4096], GuestAddress(QUEUE)).unwrap();
        let mut queue = start(&guest);
        queue.add(&[Buffer::Write(DATA, 8)]);
        guest.ring(0);
        assert_eq!((queue.take_used().len(), guest.status()), (1, RUNNING));
    }
}

#[test]
fn queues_that_are_nowhere_in_memory_are_an_error_and_no_fault() {
    let host = TempDir::new().unwrap();
    let mut state = state_of::<entropy::Entropy>(host.as_path());
    state.queues[0].desc_table = RAM as u64;
    let other = Driver::new(Arc::new(Rng::default()), RAM);
    other.transport.restore(state).unwrap();
    assert!(other.transport.resume().is_err());
    assert_eq!(other.status(), RUNNING | DEVICE_NEEDS_RESET);
}

#[test]
fn a_pause_and_a_resume_too_many_change_nothing() {
    let guest = machine(Arc::new(Rng::default()));
    guest.transport.pause();
    guest.transport.resume().unwrap();
    let mut queue = start(&guest);
    guest.transport.resume().unwrap();
    guest.transport.pause();
    guest.transport.pause();
    guest.transport.resume().unwrap();
    guest.transport.resume().unwrap();
    queue.add(&[Buffer::Write(DATA, 8)]);
    guest.ring(0);
    assert_eq!((queue.take_used().len(), guest.status()), (1, RUNNING));
}

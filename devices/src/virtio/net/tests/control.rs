//! The control queue of a network with two pairs of queues. Sockets stand in for the tap's.

use std::os::unix::net::UnixDatagram;

use super::*;

const SEVERAL: u64 = MERGEABLE | 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
const SECOND_TX: usize = 3;
const CONTROL: usize = 4;
const ANSWER: u64 = DATA + PAGE;

struct TwoPairs {
    memory: GuestMemory,
    guest: Started,
    hosts: [UnixDatagram; 2],
}

impl TwoPairs {
    fn new() -> Self {
        let pairs = [(); 2].map(|()| UnixDatagram::pair().unwrap());
        for (device, host) in &pairs {
            device.set_nonblocking(true).unwrap();
            host.set_nonblocking(true).unwrap();
        }
        let [(first, first_host), (second, second_host)] = pairs;
        let tap = Tap::on_sockets([first.into(), second.into()]);
        let net = Net::on_tap("network 'test'".into(), options(), tap);
        assert_eq!(net.features() & SEVERAL, SEVERAL);
        let memory = memory(MEMORY);
        Self {
            guest: Started::new(&net, &memory, QUEUES, SIZE, SEVERAL),
            memory,
            hosts: [first_host, second_host],
        }
    }

    /// The answer to a command.
    fn command(&mut self, command: &[u8]) -> u32 {
        self.memory.write_slice(command, GuestAddress(DATA)).unwrap();
        self.memory.write_slice(&[0xff], GuestAddress(ANSWER)).unwrap();
        let chain = [Buffer::Read(DATA, command.len() as u32), Buffer::Write(ANSWER, 1)];
        let head = self.guest.queues[CONTROL].add(&chain);
        self.guest.ring(CONTROL);
        assert_eq!(self.guest.queues[CONTROL].take_used(), [(head.into(), 1)]);
        self.memory.read_obj::<u8>(GuestAddress(ANSWER)).unwrap().into()
    }

    /// Whether a frame that goes into the second pair comes out of the tap's second queue. The guest has it back in any case.
    fn second_pair_sends(&mut self) -> bool {
        self.guest.queues[SECOND_TX].add(&[Buffer::Read(DATA, HEADER as u32 + 60)]);
        self.guest.ring(SECOND_TX);
        assert_eq!(self.guest.queues[SECOND_TX].take_used().len(), 1);
        assert!(
            self.hosts[0].recv(&mut [0; 100]).is_err(),
            "it is not the first's"
        );
        self.hosts[1].recv(&mut [0; 100]).is_ok()
    }
}

#[test]
fn a_pair_is_used_once_the_driver_says_so_and_until_it_says_otherwise() {
    let mut bench = TwoPairs::new();
    assert!(!bench.second_pair_sends());
    for _ in 0..3 {
        assert_eq!(bench.command(&[4, 0, 2, 0]), VIRTIO_NET_OK);
        assert!(bench.second_pair_sends());
        assert_eq!(bench.command(&[4, 0, 1, 0]), VIRTIO_NET_OK);
        assert!(!bench.second_pair_sends());
    }
    assert!(bench.guest.recorder.reports().is_empty());
}

#[test]
fn commands_that_are_none_are_refused_and_change_nothing() {
    let mut bench = TwoPairs::new();
    assert_eq!(bench.command(&[4, 0, 2, 0]), VIRTIO_NET_OK);
    let wrong: [&[u8]; 9] = [
        &[4],
        &[4, 0],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 1, 1],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[0xff; 4],
    ];
    for command in wrong {
        assert_eq!(bench.command(command), VIRTIO_NET_ERR, "{command:?}");
        assert!(bench.second_pair_sends(), "{command:?}");
    }
    assert!(bench.guest.recorder.faults().is_empty());
}

#[test]
fn a_command_without_room_for_an_answer_comes_back_without_one() {
    let mut bench = TwoPairs::new();
    let head = bench.guest.queues[CONTROL].add(&[Buffer::Read(DATA, 4)]);
    bench.guest.ring(CONTROL);
    assert_eq!(bench.guest.queues[CONTROL].take_used(), [(head.into(), 0)]);
    assert!(bench.guest.recorder.faults().is_empty());
}

#[test]
fn a_malformed_control_queue_needs_a_reset() {
    let mut bench = TwoPairs::new();
    bench.guest.queues[CONTROL].jump(SIZE + 1);
    bench.guest.ring(CONTROL);
    assert_eq!(bench.guest.recorder.faults().len(), 1);
}

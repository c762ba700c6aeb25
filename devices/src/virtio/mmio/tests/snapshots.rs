//! Every device at rest: it goes on in place, in another process, and in its own past. And what a state is refused for.

mod balloon;
mod differences;
mod disk;
mod entropy;
mod network;
mod sockets;

use std::path::Path;

use vmm_sys_util::tempdir::TempDir;

use super::*;

/// RAM of these guests: queues, then what the tests put there.
const RAM: usize = 1 << 20;
/// Entries of each queue.
const ENTRIES: u16 = 16;
/// Requests after a rest: the rings are gone round several times.
const USES: usize = 3 * ENTRIES as usize;

/// A kind of device, what its driver does with it, and what the host has of it. To be tested it is listed at the end of
/// this file.
trait Subject: Sized {
    /// Requests that were begun.
    type Begun;

    /// A device on what there is at `host`, as each process opens it anew.
    fn open(host: &Path) -> (Self, Arc<dyn VirtioDevice>);

    /// What a driver does once it has started the device.
    fn set_up(&mut self, _guest: &mut Guest) {}

    /// Uses the device for what it is for, and sees that it does that.
    fn use_it(&mut self, guest: &mut Guest);

    /// Makes requests. Some are under way, some not taken yet when it returns, as the device likes it.
    fn begin(&mut self, guest: &mut Guest) -> Self::Begun;

    /// Sees that everything begun is done once and right, by a device that has only rested.
    fn end(&mut self, guest: &mut Guest, begun: Self::Begun);

    /// The same, by a device in another process.
    fn end_elsewhere(&mut self, guest: &mut Guest, begun: Self::Begun) {
        self.settle(guest);
        self.end(guest, begun);
    }

    /// What a driver does when it is told that it is somewhere else.
    fn settle(&mut self, _guest: &mut Guest) {}
}

/// A guest with one device, which it has started with all features.
struct Guest {
    machine: Driver,
    queues: Vec<DriverQueue>,
}

impl Guest {
    fn boot<S: Subject>(host: &Path) -> (S, Self) {
        let (mut subject, device) = S::open(host);
        let count = device.queue_sizes().len();
        let machine = Driver::new(device, RAM);
        machine.negotiate(machine.offered());
        let queue = |n| DriverQueue::new(&machine.memory, QUEUE + n * DriverQueue::bytes(ENTRIES), ENTRIES);
        let queues: Vec<_> = (0..count as u64).map(queue).collect();
        for (index, queue) in (0..).zip(&queues) {
            machine.set_queue(index, &queue.state());
        }
        machine.let_work();
        let mut guest = Self { machine, queues };
        subject.set_up(&mut guest);
        guest.check();
        (subject, guest)
    }

    /// Makes a chain available and rings; nobody listens yet.
    fn ask(&mut self, index: usize, buffers: &[Buffer]) -> u32 {
        let head = self.queues[index].add(buffers);
        self.machine.write(reg::QUEUE_NOTIFY, index as u32);
        head.into()
    }

    fn run(&self) {
        self.machine.turns.run();
    }

    /// What a queue has used once it is `count` chains: they may need time.
    #[track_caller]
    fn used(&mut self, index: usize, count: usize) -> Vec<(u32, u32)> {
        const ROUNDS: usize = 1000;
        let mut used = Vec::new();
        for _ in 0..ROUNDS {
            self.run();
            used.extend(self.queues[index].take_used());
            if used.len() >= count {
                assert_eq!(used.len(), count);
                return used;
            }
            self.machine.turns.run_within(10);
        }
        let status = self.machine.status();
        panic!("only {used:?} of {count} chains came back, the status is {status:#x}")
    }

    fn write_bytes(&self, at: u64, bytes: &[u8]) {
        self.machine.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.machine
            .memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Everything is as the driver has set it up.
    #[track_caller]
    fn check(&self) {
        assert_eq!(self.machine.status(), RUNNING);
    }

    /// Brings the device to rest; returns its state, which is no other later.
    fn rest(&self) -> TransportState {
        self.machine.transport.pause();
        let state = self.machine.transport.save();
        self.run();
        assert_eq!(
            self.machine.transport.save(),
            state,
            "a device at rest does nothing"
        );
        assert!(state.running);
        state
    }
}

fn use_often<S: Subject>(subject: &mut S, guest: &mut Guest) {
    for _ in 0..USES {
        subject.use_it(guest);
    }
    guest.check();
}

fn goes_on_in_place<S: Subject>() {
    let host = TempDir::new().unwrap();
    let (mut subject, mut guest) = Guest::boot::<S>(host.as_path());
    for _ in 0..3 {
        let begun = subject.begin(&mut guest);
        guest.rest();
        guest.machine.transport.resume().unwrap();
        subject.end(&mut guest, begun);
        use_often(&mut subject, &mut guest);
    }
}

fn goes_on_in_another_process<S: Subject>() {
    let host = TempDir::new().unwrap();
    let (mut subject, mut guest) = Guest::boot::<S>(host.as_path());
    for _ in 0..3 {
        use_often(&mut subject, &mut guest);
        let begun = subject.begin(&mut guest);
        let state = serde_json::to_string(&guest.rest()).unwrap();
        let (memory, queues) = (guest.machine.memory.clone(), guest.queues);
        drop((guest.machine, subject));

        let device;
        (subject, device) = S::open(host.as_path());
        let machine = Driver::in_memory(memory, device);
        guest = Guest { machine, queues };
        let transport = &guest.machine.transport;
        transport.restore(serde_json::from_str(&state).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&transport.save()).unwrap(), state);
        let pending = guest.machine.read(reg::INTERRUPT_STATUS) != 0;
        transport.resume().unwrap();
        assert!(
            !pending || guest.machine.line.take_pulses() > 0,
            "what the driver has not acknowledged is signalled again"
        );
        subject.end_elsewhere(&mut guest, begun);
        use_often(&mut subject, &mut guest);
    }
}

fn goes_back_in_time<S: Subject>() {
    let host = TempDir::new().unwrap();
    let (mut subject, mut guest) = Guest::boot::<S>(host.as_path());
    use_often(&mut subject, &mut guest);
    let (past, memory, queues) = (guest.rest(), guest.bytes(0, RAM), guest.queues.clone());
    guest.machine.transport.resume().unwrap();
    for _ in 0..3 {
        use_often(&mut subject, &mut guest);
        guest.rest();
        guest.write_bytes(0, &memory);
        guest.queues = queues.clone();
        guest.machine.transport.restore(past.clone()).unwrap();
        guest.machine.transport.resume().unwrap();
        subject.settle(&mut guest);
    }
    use_often(&mut subject, &mut guest);
}

macro_rules! devices {
    ($($name:ident: $subject:ty,)*) => {$(
        mod $name {
            #[test]
            fn goes_on_in_place() {
                super::goes_on_in_place::<$subject>();
            }

            #[test]
            fn goes_on_in_another_process() {
                super::goes_on_in_another_process::<$subject>();
            }

            #[test]
            fn goes_back_in_time() {
                super::goes_back_in_time::<$subject>();
            }
        }
    )*};
}

devices! {
    a_balloon: super::balloon::Pages,
    a_disk: super::disk::Disk<false>,
    a_disk_with_a_limit: super::disk::Disk<true>,
    a_source_of_entropy: super::entropy::Entropy,
    a_network: super::network::Network,
    sockets_between_guest_and_host: super::sockets::Sockets,
}

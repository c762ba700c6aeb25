//! Tests of the balloon: what the guest hands over is gone from the host's memory, and nothing else is.

mod restored;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::pages::MAX_PAGES;
use super::*;
use crate::virtio::GuestMemory;
use crate::virtio::testing::{Buffer, DriverQueue, Recorder, Started};

const PAGE: u64 = PAGE_SIZE;
/// RAM, a hole and RAM again.
const LOW_END: u64 = 0x80_0000;
const HIGH: u64 = 0x100_0000;
const HIGH_END: u64 = HIGH + 0x40_0000;
const QUEUES: u64 = 0x1000;
const LIST: u64 = 0x10_0000;
/// The first page that tests hand over; all before it is the driver's.
const FREE: u64 = 0x20_0000;
const QUEUE_SIZE: u16 = 32;

const EVERYTHING: BalloonOptions = BalloonOptions {
    pages: 0x1234,
    deflate_on_oom: true,
    free_page_reporting: true,
    stats: Some(Duration::from_millis(20)),
};

/// A guest whose every page has been written to.
struct Guest {
    device: Balloon,
    started: Started,
    memory: GuestMemory,
}

impl Guest {
    fn new() -> Self {
        let ranges = [
            (GuestAddress(0), LOW_END as usize),
            (GuestAddress(HIGH), (HIGH_END - HIGH) as usize),
        ];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        memory
            .write_slice(&vec![0; FREE as usize], GuestAddress(0))
            .unwrap();
        for page in pages(FREE, LOW_END).chain(pages(HIGH, HIGH_END)) {
            memory.write_obj(!page, GuestAddress(page)).unwrap();
        }
        let device = Balloon::new(EVERYTHING);
        Self {
            started: Started::new(&device, &memory, QUEUES, QUEUE_SIZE, device.features()),
            device,
            memory,
        }
    }

    /// Sends a list of page frame numbers to queue `index`.
    fn send(&mut self, index: usize, pfns: &[u32]) {
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        self.memory.write_slice(&bytes, GuestAddress(LIST)).unwrap();
        let head = self.started.queues[index].add(&[Buffer::Read(LIST, bytes.len() as u32)]);
        self.started.ring(index);
        assert_eq!(self.started.queues[index].take_used(), [(head.into(), 0)]);
    }

    /// The pages that have lost what was written to them.
    fn gone(&self) -> Vec<u64> {
        pages(FREE, LOW_END)
            .chain(pages(HIGH, HIGH_END))
            .filter(
                |page| match self.memory.read_obj::<u64>(GuestAddress(*page)).unwrap() {
                    0 => true,
                    kept => {
                        assert_eq!(kept, !page);
                        false
                    }
                },
            )
            .collect()
    }

    fn reports(&self) -> Vec<(Trouble, String)> {
        self.started.recorder.reports()
    }
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start..end).step_by(PAGE as usize)
}

fn pfn(page: u64) -> u32 {
    (page / PAGE) as u32
}

/// Which of the pages that tests hand over are in the host's memory.
fn resident(memory: &GuestMemory) -> Vec<u64> {
    let ranges = [(FREE, LOW_END), (HIGH, HIGH_END)];
    let of_range = |(start, end): (u64, u64)| {
        let mut there = vec![0; ((end - start) / PAGE) as usize];
        let host = memory.get_host_address(GuestAddress(start)).unwrap();
        // SAFETY: the range is mapped, and the vector has a byte for each of its pages (mincore(2)).
        let result = unsafe { libc::mincore(host.cast(), (end - start) as usize, there.as_mut_ptr()) };
        assert_eq!(result, 0);
        pages(start, end)
            .zip(there)
            .filter_map(|(page, there)| (there & 1 != 0).then_some(page))
    };
    ranges.into_iter().flat_map(of_range).collect()
}

#[test]
fn what_is_handed_over_is_the_hosts_and_the_rest_stays() {
    let mut guest = Guest::new();
    // Not in order, and some of it twice.
    let mut handed: Vec<u64> = pages(FREE, FREE + 256 * PAGE).collect();
    handed.reverse();
    handed.push(FREE);
    handed.push(HIGH);
    let pfns: Vec<_> = handed.iter().map(|page| pfn(*page)).collect();
    guest.send(INFLATE, &pfns);
    handed.sort_unstable();
    handed.dedup();
    let kept = pages(FREE, LOW_END)
        .chain(pages(HIGH, HIGH_END))
        .filter(|page| !handed.contains(page));
    assert_eq!(resident(&guest.memory), kept.collect::<Vec<_>>());
    assert_eq!(guest.gone(), handed);
    assert_eq!(guest.reports(), []);
}

#[test]
fn what_is_taken_back_can_be_used() {
    let mut guest = Guest::new();
    guest.send(INFLATE, &[pfn(FREE)]);
    guest.send(DEFLATE, &[pfn(FREE), u32::MAX]);
    guest.memory.write_obj(!FREE, GuestAddress(FREE)).unwrap();
    assert_eq!(guest.gone(), [0; 0]);
    assert_eq!(guest.reports(), []);
}

#[test]
fn pages_that_are_no_memory_are_left_out_and_told() {
    let mut guest = Guest::new();
    guest.send(
        INFLATE,
        &[
            u32::MAX,
            pfn(LOW_END),
            pfn(LOW_END - PAGE),
            pfn(HIGH - PAGE),
            pfn(HIGH),
        ],
    );
    assert_eq!(guest.gone(), [LOW_END - PAGE, HIGH]);
    let reports = guest.reports();
    assert!(reports.iter().all(|(trouble, _)| *trouble == Trouble::Guest));
    assert!(reports[0].1.contains("no memory"), "{reports:?}");
}

#[test]
fn a_list_that_is_too_long_or_ends_within_a_number_is_taken_as_far_as_it_goes() {
    let mut guest = Guest::new();
    let free = pfn(FREE);
    let mut list = vec![free; MAX_PAGES];
    list.push(free + 1);
    guest.send(INFLATE, &list);
    assert_eq!(guest.gone(), [FREE]);
    guest.started.queues[INFLATE].add(&[Buffer::Read(LIST, 3)]);
    guest.started.queues[INFLATE].add(&[Buffer::Write(LIST, 4096)]);
    guest.started.ring(INFLATE);
    assert_eq!(guest.started.queues[INFLATE].take_used().len(), 2);
    assert_eq!((guest.gone().len(), guest.reports().len()), (1, 2));
}

#[test]
fn more_requests_than_a_turn_has_are_all_served() {
    let mut guest = Guest::new();
    guest.memory.write_obj(pfn(FREE), GuestAddress(LIST)).unwrap();
    for _ in 0..QUEUE_SIZE {
        guest.started.queues[INFLATE].add(&[Buffer::Read(LIST, 4)]);
    }
    guest.started.ring(INFLATE);
    assert_eq!(
        guest.started.queues[INFLATE].take_used().len(),
        usize::from(QUEUE_SIZE)
    );
}

#[test]
fn reported_buffers_are_the_hosts_as_far_as_they_are_whole_pages() {
    let mut guest = Guest::new();
    guest.started.queues[REPORTING].add(&[
        Buffer::Write(FREE, 3 * PAGE as u32),
        Buffer::Write(FREE + 8 * PAGE + 1, 2 * PAGE as u32),
        Buffer::Write(HIGH + 16, 100),
    ]);
    // Not for the device to write.
    guest.started.queues[REPORTING].add(&[Buffer::Read(HIGH, PAGE as u32)]);
    guest.started.ring(REPORTING);
    assert_eq!(guest.started.queues[REPORTING].take_used().len(), 2);
    let expected = [0, 1, 2, 9].map(|n| FREE + n * PAGE);
    assert_eq!(guest.gone(), expected);
}

/// Starts the balloon with those of its queues that a driver has; the reporting queue is the driver's last.
fn reports_by(queues: &[u16], features: u64) -> Vec<u64> {
    let guest = Guest::new();
    let recorder = Arc::new(Recorder::default());
    let mut drivers: Vec<_> = (0..)
        .zip(queues)
        .map(|(n, index)| {
            let base = QUEUES + n * DriverQueue::bytes(QUEUE_SIZE);
            (*index, DriverQueue::new(&guest.memory, base, QUEUE_SIZE))
        })
        .collect();
    let mut sides: Vec<_> = QUEUE_SIZES.iter().map(|_| None).collect();
    for (index, driver) in &drivers {
        sides[usize::from(*index)] = Some(driver.device_side(*index, recorder.clone(), false).unwrap());
    }
    let reporting = drivers.last_mut().unwrap();
    reporting.1.add(&[Buffer::Write(FREE, PAGE as u32)]);
    sides[usize::from(reporting.0)].as_ref().unwrap().ring();
    let turns = crate::virtio::testing::Turns::new();
    let activation = Activation {
        features,
        queues: sides,
        interrupt: recorder,
    };
    for worker in guest.device.start(activation).unwrap() {
        crate::virtio::IoThreads::run(&turns, worker).unwrap();
    }
    turns.run();
    guest.gone()
}

#[test]
fn the_reporting_queue_is_found_where_the_specification_and_where_linux_has_it() {
    let (stats, reporting) = (1 << F_STATS_VQ, 1 << F_PAGE_REPORTING);
    assert_eq!(reports_by(&[0, 1, 4], reporting), [FREE]);
    assert_eq!(reports_by(&[0, 1, 2, 4], reporting | stats), [FREE]);
    assert_eq!(reports_by(&[0, 1, 2], reporting), [FREE]);
    assert_eq!(reports_by(&[0, 1, 2, 3], reporting | stats), [FREE]);
}

#[test]
fn a_driver_without_its_queues_is_refused() {
    let activation = || Activation {
        features: 1 << F_PAGE_REPORTING,
        queues: Vec::new(),
        interrupt: Arc::new(Recorder::default()),
    };
    let refused = Balloon::new(EVERYTHING).start(activation()).err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_driver_finds_what_is_asked_for_and_says_what_it_has_done() {
    let device = Balloon::new(EVERYTHING);
    let read = |device: &Balloon| {
        let mut config = [0xff; 20];
        device.read_config(0, &mut config[..CONFIG_SIZE]);
        config
    };
    assert_eq!(read(&device)[..8], [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
    device.write_config(CONFIG_ACTUAL as u64, &[1, 2, 3, 4]);
    device.write_config(CONFIG_ACTUAL as u64 + 3, &[5, 6, 7]);
    device.write_config(2, &[8, 9, 10]);
    for offset in [0, 100, u64::MAX - 1, u64::MAX] {
        device.write_config(offset, &[11]);
    }
    assert_eq!(read(&device)[..9], [0x34, 0x12, 0, 0, 10, 2, 3, 5, 0]);
    device.reset();
    assert_eq!(read(&device)[4..8], [0; 4]);
    assert_eq!(Balloon::new(BalloonOptions::default()).features(), 0);
}

#[test]
fn statistics_are_asked_for_by_giving_the_buffer_back_and_nobody_who_does_not_answer_is_asked_again() {
    let mut guest = Guest::new();
    let head = guest.started.queues[STATS].add(&[Buffer::Read(LIST, 100)]);
    guest.started.ring(STATS);
    assert_eq!(guest.started.queues[STATS].take_used(), []);
    guest.started.turns.run_within(10_000);
    assert_eq!(guest.started.queues[STATS].take_used(), [(head.into(), 0)]);
    guest.started.turns.run_within(10_000);
    assert_eq!(guest.started.queues[STATS].take_used(), []);
    // Of several buffers one is held, and put back at the end.
    for len in [1, 10, 4096] {
        guest.started.queues[STATS].add(&[Buffer::Read(LIST, len)]);
    }
    guest.started.ring(STATS);
    assert_eq!(guest.started.queues[STATS].take_used().len(), 2);
    let states = guest.started.stop();
    assert_eq!(guest.started.queues[STATS].take_used(), []);
    let (index, stats) = states[STATS];
    assert_eq!(
        (states.len(), index, stats.next_avail, stats.next_used),
        (4, 2, 3, 3)
    );
}

#[test]
fn a_broken_queue_needs_a_reset_and_is_not_looked_at_again() {
    let mut guest = Guest::new();
    guest.started.queues[DEFLATE].jump(QUEUE_SIZE + 1);
    guest.started.ring(DEFLATE);
    guest.started.ring(INFLATE);
    assert_eq!(guest.started.recorder.faults().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn exactly_the_pages_of_a_list_go(
        list in prop::collection::vec(
            prop_oneof![pfn(FREE)..pfn(LOW_END), pfn(HIGH)..pfn(HIGH_END), any::<u32>().prop_map(|n| n | 1 << 31)],
            1..600,
        ),
    ) {
        let mut guest = Guest::new();
        guest.send(INFLATE, &list);
        let mut expected: Vec<u64> = list
            .iter()
            .map(|pfn| u64::from(*pfn) * PAGE)
            .filter(|page| *page < HIGH_END)
            .collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(guest.gone(), expected);
    }
}

#[test]
fn another_size_is_told_the_driver_that_is_there() {
    let guest = Guest::new();
    guest.device.resize(7);
    let mut pages = [0; 4];
    guest.device.read_config(0, &mut pages);
    assert_eq!(u32::from_le_bytes(pages), 7);
    assert_eq!(guest.device.pages(), (7, 0));
    assert_eq!(guest.started.recorder.config_interrupts(), 1);
    guest.device.reset();
    guest.device.resize(8);
    assert_eq!(
        guest.started.recorder.config_interrupts(),
        1,
        "nobody is there to be told"
    );
}

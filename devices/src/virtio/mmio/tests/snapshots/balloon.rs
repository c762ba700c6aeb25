//! A balloon: pages that the driver hands over, and the buffer of statistics that the device keeps.

use std::time::Duration;

use super::*;
use crate::virtio::balloon::{Balloon, BalloonOptions};

const INFLATE: usize = 0;
const STATS: usize = 2;
/// What the driver says that it has handed over: `actual` (§5.5.4).
const ACTUAL: u64 = reg::CONFIG + 4;
/// A page to hand over, and where the list with it lies.
const PAGE: u64 = 0x8_0000;
const LIST: u64 = DATA + 0x1000;
const OPTIONS: BalloonOptions = BalloonOptions {
    pages: 8,
    deflate_on_oom: true,
    free_page_reporting: true,
    stats: Some(Duration::from_secs(3600)),
};

pub struct Pages;

impl Pages {
    fn hand_over(guest: &mut Guest) -> u32 {
        guest.write_bytes(PAGE, &[0xaa; 4096]);
        guest.write_bytes(LIST, &((PAGE / 4096) as u32).to_le_bytes());
        guest.ask(INFLATE, &[Buffer::Read(LIST, 4)])
    }

    fn is_handed_over(guest: &mut Guest, head: u32) {
        assert_eq!(guest.used(INFLATE, 1), [(head, 0)]);
        assert_eq!(guest.bytes(PAGE, 4096), [0; 4096]);
    }
}

/// A page is to be handed over, one more than `actual` was, and the device holds a buffer of statistics.
pub struct Begun {
    handed: u32,
    actual: u32,
    held: u32,
}

impl Subject for Pages {
    type Begun = Begun;

    fn open(_host: &Path) -> (Self, Arc<dyn VirtioDevice>) {
        (Self, Arc::new(Balloon::new(OPTIONS)))
    }

    fn use_it(&mut self, guest: &mut Guest) {
        let head = Self::hand_over(guest);
        Self::is_handed_over(guest, head);
    }

    fn begin(&mut self, guest: &mut Guest) -> Self::Begun {
        let held = guest.ask(STATS, &[Buffer::Read(LIST, 10)]);
        guest.run();
        // The one of the last time, if there was one.
        guest.queues[STATS].take_used();
        let actual = guest.machine.read(ACTUAL) + 1;
        guest.machine.write(ACTUAL, actual);
        Begun {
            handed: Self::hand_over(guest),
            actual,
            held,
        }
    }

    fn end(&mut self, guest: &mut Guest, begun: Begun) {
        Self::is_handed_over(guest, begun.handed);
        assert_eq!(guest.machine.read(ACTUAL), begun.actual);
        assert_eq!(guest.queues[STATS].take_used(), [], "nobody has asked");
        guest.ask(STATS, &[Buffer::Read(LIST, 10)]);
        assert_eq!(guest.used(STATS, 1), [(begun.held, 0)], "of two it holds one");
    }
}

#[test]
fn a_driver_that_is_asked_for_another_number_of_pages_hears_of_it() {
    let host = TempDir::new().unwrap();
    let (_, guest) = Guest::boot::<Pages>(host.as_path());
    let state = guest.rest();
    let options = BalloonOptions { pages: 9, ..OPTIONS };
    let other = Driver::in_memory(guest.machine.memory.clone(), Arc::new(Balloon::new(options)));
    other.transport.restore(state).unwrap();
    other.transport.resume().unwrap();
    assert_eq!(other.read(reg::INTERRUPT_STATUS), reg::INTERRUPT_CONFIG);
    assert_eq!(other.read(reg::CONFIG), 9);
}

//! Entropy: buffers that the driver wants filled.

use super::*;

pub struct Entropy;

impl Entropy {
    fn ask(guest: &mut Guest, n: u64) -> (u32, u32) {
        let at = DATA + 64 * n;
        guest.write_bytes(at, &[0; 64]);
        (guest.ask(0, &[Buffer::Write(at, 64)]), 64)
    }
}

impl Subject for Entropy {
    type Begun = Vec<(u32, u32)>;

    fn open(_host: &Path) -> (Self, Arc<dyn VirtioDevice>) {
        (Self, Arc::new(Rng::default()))
    }

    fn use_it(&mut self, guest: &mut Guest) {
        let asked = Self::ask(guest, 0);
        assert_eq!(guest.used(0, 1), [asked]);
        assert_ne!(guest.bytes(DATA, 64), [0; 64]);
    }

    fn begin(&mut self, guest: &mut Guest) -> Self::Begun {
        (0..3).map(|n| Self::ask(guest, n)).collect()
    }

    fn end(&mut self, guest: &mut Guest, begun: Self::Begun) {
        assert_eq!(guest.used(0, begun.len()), begun);
    }
}

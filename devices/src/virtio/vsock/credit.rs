//! Flow control (§5.10.6.3): each side tells the other how much it keeps free and how much it has handed on, and neither
//! sends more than that leaves room for. Counters are modulo 2^32.

use super::packet::Header;

/// Bytes that a guest may have on their way to a host program that does not read: what a connection can cost.
pub const BUFFER: u32 = 128 << 10;

/// What the guest has room for.
#[derive(Debug, Default)]
pub struct ToGuest {
    buffer: u32,
    forwarded: u32,
    sent: u32,
    /// The guest has been asked for more room, and has not answered.
    asked: bool,
}

impl ToGuest {
    /// Takes what a packet of the guest's says.
    pub fn update(&mut self, header: &Header) {
        let before = self.room();
        (self.buffer, self.forwarded) = (header.buf_alloc, header.fwd_cnt);
        self.asked &= self.room() <= before;
    }

    /// Bytes that may be sent. None to a guest that claims more to have come than was sent.
    pub fn room(&self) -> u32 {
        self.buffer.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    pub fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Whether to ask for room, which needs to be done once.
    pub fn ask(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }
}

/// What the host has room for.
#[derive(Debug, Default)]
pub struct FromGuest {
    forwarded: u32,
    told: u32,
}

impl FromGuest {
    pub fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
    }

    /// Whether the guest should hear of the room that there is: it knows of less than half of it.
    pub fn is_news(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER / 2
    }

    /// What the next packet tells the guest.
    pub fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        (header.buf_alloc, header.fwd_cnt) = (BUFFER, self.forwarded);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Default::default()
        }
    }

    #[test]
    fn room_is_asked_for_once_until_there_is_some() {
        let mut credit = ToGuest::default();
        assert!(credit.ask());
        credit.update(&says(0, 0));
        assert!(!credit.ask());
        credit.update(&says(10, 0));
        assert_eq!(credit.room(), 10);
        credit.sent(10);
        assert!(credit.ask());
    }

    proptest! {
        /// A stream of any length, with a reader of any pace.
        #[test]
        fn never_is_more_on_its_way_than_the_guest_keeps_free(
            buffer in 1u32..1 << 20,
            start: u32,
            steps in prop::collection::vec((any::<u32>(), any::<u32>()), 1..200),
        ) {
            let mut credit = ToGuest { sent: start, forwarded: start, ..Default::default() };
            let (mut forwarded, mut in_flight) = (start, 0);
            for (wanted, read) in steps {
                credit.update(&says(buffer, forwarded));
                let sent = wanted.min(credit.room());
                credit.sent(sent);
                in_flight += sent;
                prop_assert!(in_flight <= buffer);
                let read = read.min(in_flight);
                forwarded = forwarded.wrapping_add(read);
                in_flight -= read;
            }
        }

        #[test]
        fn no_lie_of_the_guest_gives_it_more_than_it_says_it_has(buffer: u32, forwarded: u32, sent: u32) {
            let mut credit = ToGuest { sent, ..Default::default() };
            credit.update(&says(buffer, forwarded));
            prop_assert!(credit.room() <= buffer);
        }

        /// The guest hears of room before it has used up what it knows of.
        #[test]
        fn a_guest_that_keeps_to_its_credit_is_never_left_without(
            packets in prop::collection::vec(1..=BUFFER, 1..100),
        ) {
            let mut credit = FromGuest::default();
            let (mut sent, mut heard) = (0u32, 0u32);
            for packet in packets {
                let room = BUFFER - sent.wrapping_sub(heard);
                prop_assert!(room > 0);
                let packet = packet.min(room);
                sent = sent.wrapping_add(packet);
                credit.forwarded(packet);
                if credit.is_news() {
                    let mut header = Header::default();
                    credit.tell(&mut header);
                    heard = header.fwd_cnt;
                }
            }
        }
    }
}

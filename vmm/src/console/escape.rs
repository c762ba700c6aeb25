//! The keys that are the VMM's own: Ctrl-A and one more.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

const HELP: &str = "\
Ctrl-A x       end the guest
Ctrl-A Ctrl-A  send Ctrl-A to the guest
Ctrl-A h       this help
";
const DETACH_HELP: &str = "\
Ctrl-A d       leave; the guest goes on
Ctrl-A x       end the guest
Ctrl-A Ctrl-A  send Ctrl-A to the guest
Ctrl-A h       this help
";

/// What a user asks of the VMM by keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the guest.
    End,
    /// Show the keys.
    Help,
    /// Leave the guest alone.
    Detach,
}

/// Takes the VMM's own keys out of what is typed.
#[derive(Default)]
pub struct EscapeFilter {
    /// Ctrl-A has been typed and its second key has not.
    escaped: bool,
    /// Whoever types can leave.
    can_detach: bool,
}

impl EscapeFilter {
    /// For who is at a guest that goes on without him.
    pub fn for_attached() -> Self {
        Self {
            escaped: false,
            can_detach: true,
        }
    }

    /// What is shown for Ctrl-A h.
    pub fn help(&self) -> &'static str {
        if self.can_detach { DETACH_HELP } else { HELP }
    }

    /// Appends to `guest` what of `typed` is for the guest, and returns the first command in it. What comes
    /// after a command in the same piece is dropped: it was typed before its effect could be seen.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Command> {
        for &key in typed {
            if !std::mem::take(&mut self.escaped) {
                match key {
                    ESCAPE => self.escaped = true,
                    _ => guest.push(key),
                }
                continue;
            }
            match key {
                b'x' | b'X' => return Some(Command::End),
                b'h' | b'H' | b'?' => return Some(Command::Help),
                b'd' | b'D' if self.can_detach => return Some(Command::Detach),
                ESCAPE => guest.push(ESCAPE),
                other => guest.extend([ESCAPE, other]),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Option<Command>) {
        let mut filter = EscapeFilter::default();
        let mut guest = Vec::new();
        let command = pieces.iter().find_map(|piece| filter.filter(piece, &mut guest));
        (guest, command)
    }

    #[test]
    fn ordinary_keys_are_the_guests() {
        assert_eq!(filter(&[b"ls -l\r\x03\x04"]), (b"ls -l\r\x03\x04".to_vec(), None));
    }

    #[test]
    fn commands_are_the_vmms_even_in_two_pieces() {
        assert_eq!(filter(&[b"ab\x01x"]), (b"ab".to_vec(), Some(Command::End)));
        assert_eq!(filter(&[b"\x01", b"h"]), (vec![], Some(Command::Help)));
    }

    #[test]
    fn only_who_is_attached_can_leave() {
        let mut guest = Vec::new();
        let mut attached = EscapeFilter::for_attached();
        assert_eq!(attached.filter(b"ls\x01d", &mut guest), Some(Command::Detach));
        assert_eq!(guest, b"ls");
        assert_eq!(filter(&[b"\x01d"]), (b"\x01d".to_vec(), None));
    }

    #[test]
    fn a_doubled_or_unknown_escape_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01\x01x"]), (b"\x01x".to_vec(), None));
        assert_eq!(filter(&[b"\x01k"]), (b"\x01k".to_vec(), None));
    }
}

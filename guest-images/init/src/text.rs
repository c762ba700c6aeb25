//! A line of text of bounded length, so that init writes each message to the console with one system call.

use core::fmt;

/// A buffer for one message. What does not fit is cut off.
pub struct Text {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl Text {
    /// The longest message, in bytes.
    pub const CAPACITY: usize = 256;

    /// An empty message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: [0; Self::CAPACITY],
            length: 0,
        }
    }

    /// The message so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Adds bytes that need not be UTF-8, such as a file name.
    pub fn push(&mut self, bytes: &[u8]) -> &mut Self {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let count = bytes.len().min(room.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.length += count;
        self
    }

    /// Adds a number in decimal. (`core::fmt` would double the size of the program.)
    pub fn number(&mut self, mut value: u64) -> &mut Self {
        let mut digits = [0; 20];
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            // A remainder of ten fits a byte.
            *digit = b'0' + (value % 10) as u8;
            count += 1;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.push(digits.get(digits.len() - count..).unwrap_or_default())
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Text").field(&self.as_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal() {
        let mut text = Text::new();
        text.number(0).push(b" ").number(1024).push(b" ").number(u64::MAX);
        assert_eq!(text.as_bytes(), b"0 1024 18446744073709551615");
    }

    #[test]
    fn what_does_not_fit_is_cut_off() {
        let mut text = Text::new();
        text.push(&[b'a'; Text::CAPACITY - 1]).push(b"bcd").number(7);
        assert_eq!(text.as_bytes().len(), Text::CAPACITY);
        assert_eq!(text.as_bytes().last(), Some(&b'b'));
    }
}

//! The command line: the virtio devices that the host lists, the program to run, and that program's `key=value` words.

use core::fmt;

#[cfg(test)]
mod tests;

/// A command line.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a>(&'a str);

/// Where a virtio-mmio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Address of its registers.
    pub base: u32,
    /// Bytes of registers and configuration space.
    pub size: u32,
    /// Its pin of the I/O APIC.
    pub irq: u32,
}

/// A word that is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadWord<'a> {
    key: &'a str,
    value: &'a str,
    want: &'static str,
}

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}: give {}", self.key, self.value, self.want)
    }
}

impl<'a> Arguments<'a> {
    /// Takes a command line as the boot protocol hands it over.
    pub const fn new(line: &'a str) -> Self {
        Self(line)
    }

    fn all(&self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter_map(move |(found, value)| (found == key).then_some(value))
    }

    /// The value of `key`. The last one counts, as in Linux.
    pub fn text(&self, key: &'a str) -> Option<&'a str> {
        self.all(key).last()
    }

    /// The value of `key` as a number, in decimal or, after `0x`, hexadecimal; `K`, `M` and `G` stand for powers of 1024.
    pub fn number(&self, key: &'a str) -> Result<Option<u64>, BadWord<'a>> {
        let Some(value) = self.text(key) else {
            return Ok(None);
        };
        number(value).map(Some).ok_or(BadWord {
            key,
            value,
            want: "a number, such as 10, 4K or 0x1000",
        })
    }

    /// Which of `choices` the value of `key` is; the first one if there is none.
    pub fn choice<T: Copy>(
        &self,
        key: &'a str,
        choices: &[(&str, T)],
        want: &'static str,
    ) -> Result<T, BadWord<'a>> {
        let bad = |value| BadWord { key, value, want };
        match self.text(key) {
            None => choices.first().map(|(_, choice)| *choice).ok_or(bad("")),
            Some(value) => choices
                .iter()
                .find_map(|(name, choice)| (*name == value).then_some(*choice))
                .ok_or(bad(value)),
        }
    }

    /// The devices, in the order of the command line (Linux, drivers/virtio/virtio_mmio.c: `SIZE@BASE:IRQ[:ID]`).
    pub fn devices(&self) -> impl Iterator<Item = Result<Placement, BadWord<'a>>> {
        const KEY: &str = "virtio_mmio.device";
        self.all(KEY).map(|value| {
            placement(value).ok_or(BadWord {
                key: KEY,
                value,
                want: "SIZE@BASE:IRQ, such as 4K@0xd0000000:5",
            })
        })
    }
}

fn placement(value: &str) -> Option<Placement> {
    let (size, rest) = value.split_once('@')?;
    let mut rest = rest.split(':');
    Some(Placement {
        base: number(rest.next()?)?.try_into().ok()?,
        size: number(size)?.try_into().ok()?,
        irq: number(rest.next()?)?.try_into().ok()?,
    })
}

fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    value.ok()?.checked_mul(1 << shift)
}

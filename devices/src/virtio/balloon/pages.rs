//! The lists of pages that a driver sends (§5.5.6): page frame numbers, made into as few ranges as they are.

use super::PAGE_SIZE;
use super::release::{ReleaseError, release_pages};
use crate::virtio::{Chain, GuestMemory, Trouble};

/// Bytes of a page frame number: 32 bits, little-endian.
const ENTRY: usize = size_of::<u32>();
/// Most pages of one request that are looked at: 16 times what Linux sends.
pub const MAX_PAGES: usize = 4096;
/// Bytes read from the guest at a time.
const CHUNK: usize = 1024;

/// One request's page frame numbers, with room for [`MAX_PAGES`].
pub struct PageList(Vec<u32>);

impl PageList {
    /// Empty.
    pub fn new() -> Self {
        Self(Vec::with_capacity(MAX_PAGES))
    }

    /// Reads what the driver sent, up to [`MAX_PAGES`] of it.
    pub fn read(&mut self, chain: &Chain) -> Result<(), (Trouble, String)> {
        self.0.clear();
        let len = chain.readable_len() as usize;
        let taken = len.min(MAX_PAGES * ENTRY) / ENTRY * ENTRY;
        let mut chunk = [0; CHUNK];
        for at in (0..taken).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(taken - at)];
            if chain.read(at as u32, chunk) {
                let (entries, _) = chunk.as_chunks::<ENTRY>();
                self.0
                    .extend(entries.iter().map(|entry| u32::from_le_bytes(*entry)));
            }
        }
        if taken == len {
            return Ok(());
        }
        let what = format!("a list of pages of {len} bytes: of {MAX_PAGES} whole numbers at most");
        Err((Trouble::Guest, what))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Gives them back to the host.
    ///
    /// Few large ranges and not many pages, since each call to the host costs as much as a hundred pages in one.
    pub fn release(&mut self, memory: &GuestMemory) -> Result<(), (Trouble, String)> {
        self.0.sort_unstable();
        let mut outcome = Ok(());
        for range in self.0.chunk_by(|a, b| b - a <= 1) {
            let (Some(first), Some(last)) = (range.first(), range.last()) else {
                continue;
            };
            let (start, end) = (u64::from(*first) * PAGE_SIZE, (u64::from(*last) + 1) * PAGE_SIZE);
            if let Err(error) = release_pages(memory, start, end) {
                let whose = match error {
                    ReleaseError::NotRam => Trouble::Guest,
                    ReleaseError::Refused(_) => Trouble::Host,
                };
                outcome = Err((whose, error.to_string()));
            }
        }
        outcome
    }
}

//! The flushes of one queue of a disk over a base, which are several steps each: one is under way, and others wait for it.

use std::collections::VecDeque;
use std::io;

use crate::disk::{Commit, Overlay};

/// Flushes, each of a request that is under way.
pub struct Flushes {
    commit: Commit,
    /// The request whose turn it is.
    current: Option<u16>,
    waiting: VecDeque<u16>,
}

impl Flushes {
    /// Room for the flushes of `count` requests.
    pub fn new(count: u16) -> Self {
        Self {
            commit: Commit::default(),
            current: None,
            waiting: VecDeque::with_capacity(count.into()),
        }
    }

    /// Whether it is the turn of the request with this tag. If not, [`next`](Self::next) has it when it is.
    pub fn is_turn_of(&mut self, tag: u16, overlay: &Overlay) -> bool {
        if self.current.is_none() {
            self.current = Some(tag);
            self.commit.begin(overlay);
        } else if self.current != Some(tag) {
            self.waiting.push_back(tag);
        }
        self.current == Some(tag)
    }

    /// The fdatasync of the request whose turn it is has been done; returns whether that was the last one.
    ///
    /// # Errors
    /// The flush has failed.
    pub fn synced(&mut self, overlay: &Overlay) -> io::Result<bool> {
        self.commit.synced(overlay)
    }

    /// A request has ended, whatever it was.
    #[inline]
    pub fn ended(&mut self, tag: u16) {
        if self.current == Some(tag) {
            self.current = None;
        }
    }

    /// The next request whose turn it could be.
    pub fn next(&mut self) -> Option<u16> {
        match self.current {
            Some(_) => None,
            None => self.waiting.pop_front(),
        }
    }
}

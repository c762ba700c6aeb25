//! Sets of pages of guest memory, as a diff lists those that it has.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of a page: what KVM's dirty log has a bit for.
pub const PAGE_SIZE: u64 = 4096;

/// A set of pages: runs of them, each as (first page, number of pages), in ascending order, none empty, no two touching.
///
/// A page's number is its offset in the memory file divided by [`PAGE_SIZE`]; guest-physical addresses have holes, these
/// numbers have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct PageRanges(Vec<Range<u64>>);

/// A list of runs that are empty, out of order, or touch each other.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a list of pages that is not in order")]
pub struct NotInOrder;

impl PageRanges {
    /// Every page of `bytes` of memory; the last one counts although it may not be whole.
    pub fn all(bytes: u64) -> Self {
        let mut ranges = Self::default();
        ranges.push(0..bytes.div_ceil(PAGE_SIZE));
        ranges
    }

    /// The pages of a bitmap: bit n of word m is page `first` + 64 m + n.
    pub fn add_bitmap(&mut self, first: u64, words: impl IntoIterator<Item = u64>) {
        for (word, base) in words.into_iter().zip((first..).step_by(64)) {
            let mut rest = word;
            while rest != 0 {
                let from = rest.trailing_zeros();
                let to = from + (rest >> from).trailing_ones();
                self.push(base + u64::from(from)..base + u64::from(to));
                rest = if to == 64 { 0 } else { rest >> to << to };
            }
        }
    }

    /// Adds pages that are not before the last ones of the set.
    pub(super) fn push(&mut self, pages: Range<u64>) {
        match self.0.last_mut() {
            _ if pages.is_empty() => {}
            Some(last) if pages.start <= last.end => last.end = last.end.max(pages.end),
            _ => self.0.push(pages),
        }
    }

    /// The pages of either set.
    pub fn union(&self, other: &Self) -> Self {
        let mut runs: Vec<_> = self.0.iter().chain(&other.0).cloned().collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut union = Self::default();
        runs.into_iter().for_each(|run| union.push(run));
        union
    }

    /// A superset in at most `runs` runs: the smallest gaps are filled.
    #[must_use]
    pub fn in_at_most(self, runs: usize) -> Self {
        let Some(surplus) = self
            .0
            .len()
            .checked_sub(runs.max(1))
            .filter(|&surplus| surplus > 0)
        else {
            return self;
        };
        let gap = |pair: &[Range<u64>]| pair[1].start - pair[0].end;
        let mut gaps: Vec<u64> = self.0.windows(2).map(gap).collect();
        let (_, &mut largest, _) = gaps.select_nth_unstable(surplus - 1);
        self.with_gaps_filled(largest)
    }

    /// The set with the gaps in it that are of at most `pages` pages.
    #[must_use]
    pub fn with_gaps_filled(self, pages: u64) -> Self {
        let mut filled = Self::default();
        for run in self.0 {
            match filled.0.last_mut() {
                Some(last) if run.start - last.end <= pages => last.end = run.end,
                _ => filled.0.push(run),
            }
        }
        filled
    }

    /// Whether this page is one of them.
    pub fn contains(&self, page: u64) -> bool {
        let next = self.0.partition_point(|run| run.end <= page);
        self.0.get(next).is_some_and(|run| run.start <= page)
    }

    /// The runs, in pages.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<u64>> + '_ {
        self.0.iter().cloned()
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The page behind the last one, or 0.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |run| run.end)
    }
}

impl TryFrom<Vec<(u64, u64)>> for PageRanges {
    type Error = NotInOrder;

    fn try_from(runs: Vec<(u64, u64)>) -> Result<Self, NotInOrder> {
        let mut next = 0;
        let mut ranges = Vec::with_capacity(runs.len());
        for (first, count) in runs {
            let end = first.checked_add(count).ok_or(NotInOrder)?;
            if count == 0 || first < next || end > u64::MAX / PAGE_SIZE {
                return Err(NotInOrder);
            }
            ranges.push(first..end);
            // The next run leaves at least one page out.
            next = end + 1;
        }
        Ok(Self(ranges))
    }
}

impl From<PageRanges> for Vec<(u64, u64)> {
    fn from(ranges: PageRanges) -> Self {
        ranges
            .iter()
            .map(|run| (run.start, run.end - run.start))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &PageRanges) -> BTreeSet<u64> {
        ranges.iter().flatten().collect()
    }

    fn is_in_order(ranges: &PageRanges) -> bool {
        PageRanges::try_from(Vec::from(ranges.clone())).as_ref() == Ok(ranges)
    }

    #[test]
    fn lists_that_are_out_of_order_are_refused() {
        for runs in [
            vec![(0, 0)],
            vec![(0, 2), (1, 1)],
            vec![(0, 2), (2, 1)],
            vec![(5, 1), (3, 1)],
            vec![(u64::MAX, 1)],
            vec![(0, u64::MAX)],
        ] {
            assert_eq!(PageRanges::try_from(runs), Err(NotInOrder));
        }
    }

    #[test]
    fn a_list_is_checked_when_it_is_read() {
        let read = |text| toml::from_str::<BTreeMap<String, PageRanges>>(text);
        let ranges = PageRanges::try_from(vec![(0, 2), (3, 1), (700, 512)]).unwrap();
        assert_eq!(
            read("pages = [[0, 2], [3, 1], [700, 512]]").unwrap()["pages"],
            ranges
        );
        assert_eq!(Vec::from(ranges), [(0, 2), (3, 1), (700, 512)]);
        assert!(read("pages = [[2, 1], [0, 1]]").is_err());
    }

    proptest! {
        #[test]
        fn a_bitmap_becomes_exactly_its_pages(first in 0..100u64, words in prop::collection::vec(any::<u64>(), 0..6)) {
            let mut ranges = PageRanges::default();
            ranges.add_bitmap(first, words.iter().copied());
            let bit = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
            let expected: BTreeSet<u64> = (0..64 * words.len() as u64).filter(bit).map(|page| page + first).collect();
            prop_assert!((0..600).all(|page| ranges.contains(page) == expected.contains(&page)));
            prop_assert_eq!(set(&ranges), expected);
            prop_assert!(is_in_order(&ranges));
        }

        #[test]
        fn a_union_has_the_pages_of_both(a in any::<[u64; 3]>(), b in any::<[u64; 3]>()) {
            let (mut left, mut right) = (PageRanges::default(), PageRanges::default());
            left.add_bitmap(0, a);
            right.add_bitmap(0, b);
            let both = left.union(&right);
            prop_assert_eq!(set(&both), &set(&left) | &set(&right));
            prop_assert!(is_in_order(&both));
        }

        #[test]
        fn fewer_runs_have_all_the_pages_and_the_same_ends(words in any::<[u64; 3]>(), limit in 1..40usize) {
            let mut ranges = PageRanges::default();
            ranges.add_bitmap(7, words);
            let fewer = ranges.clone().in_at_most(limit);
            prop_assert!(fewer.runs() <= limit);
            prop_assert!(set(&fewer).is_superset(&set(&ranges)));
            prop_assert_eq!(fewer.end(), ranges.end());
            prop_assert!(is_in_order(&fewer));
            if ranges.runs() <= limit {
                prop_assert_eq!(fewer, ranges);
            }
        }
    }
}

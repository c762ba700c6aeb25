//! What integration tests and benchmarks share: guests of a page, and ways to run posada and watch it.

pub mod payload;

//! Snapshots: a guest on disk, and back again.

pub mod frozen;
pub mod image;
pub mod memory_file;
pub mod pages;
pub mod ranges;
#[cfg(test)]
mod testing;
mod write;

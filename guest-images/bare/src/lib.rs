//! The parts of the bare guest that are plain computation: what it reads from its command line, and how it counts and compares.
//! Everything that touches the machine is in the program (`main.rs`).
#![cfg_attr(not(test), no_std)]

pub mod arguments;
pub mod numbers;
pub mod rounds;

//! The parts of the guest's init that are plain computation: what it reads from the kernel's text files and what it writes
//! to the console. Everything that makes a system call is in the program (`main.rs`).
#![cfg_attr(not(test), no_std)]

pub mod parse;
pub mod text;

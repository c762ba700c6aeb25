//! What the floor and the benchmarks share: a virtual machine with nothing around it.

pub mod bare_vm;
pub mod programs;

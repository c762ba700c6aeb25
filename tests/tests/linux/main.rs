//! What needs Linux in a guest, and what goes with it: one program, so that two guests boot or work at a time.

mod agent;
mod at_work;
mod balloon;
mod boots;
mod console;
mod disks;
mod exceptions;
mod generations;
mod networks;
mod rng;
mod stop;
mod user_networks;

//! One virtual machine: KVM, vCPU threads, the I/O event loop and its lifecycle.
//!
//! [`foundation::Foundation::lay`] and [`vm::Vm::build`] make a machine of a [`config::VmConfig`], [`vm::Vm::start`] lets it
//! run, and [`console::attend`] connects it with a terminal until it ends.

pub mod api;
mod boot;
pub mod config;
pub mod console;
pub mod control;
pub mod dirty_log;
pub mod error;
pub mod events;
pub mod foundation;
pub mod generation;
pub mod host;
pub mod images;
pub mod io_thread;
pub mod lifecycle;
pub mod machine;
pub mod machine_state;
pub mod memory;
pub mod metrics;
pub mod mmds;
pub mod passt;
mod procfs;
pub mod pvm;
pub mod runtime;
pub mod snapshot;
pub mod state;
pub mod vcpu;
pub mod virtio;
pub mod vm;

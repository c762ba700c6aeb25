//! Everything that makes a paused machine what it is, but for its memory. A snapshot keeps it in a file; a rewind gives it
//! back to the machine that it was taken of.

use devices::rtc::{RtcState, RtcStateError};
use devices::serial::{SerialState, SerialStateError};
use devices::virtio::{StateError, TransportState};
use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::Error;
use crate::machine_state::MachineState;
use crate::vcpu::RequestError;
use crate::vcpu::state::VcpuState;

/// The state of a paused machine.
#[derive(Clone, Serialize, Deserialize)]
pub struct VmState {
    /// By index.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer and clock.
    pub machine: MachineState,
    /// The serial console.
    pub serial: SerialState,
    /// The CMOS clock.
    pub rtc: RtcState,
    /// The virtio devices, in the order in which the guest finds them.
    pub virtio: Vec<TransportState>,
}

/// Why a machine cannot become what a state says.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It has something more or less.
    #[error("the snapshot's machine has {theirs} {what}, this one has {ours}")]
    Shape {
        /// What is counted.
        what: &'static str,
        /// How many the state has.
        theirs: usize,
        /// How many the machine has.
        ours: usize,
    },
    /// A device is another one.
    #[error(transparent)]
    Device(#[from] StateError),
    /// The serial console cannot.
    #[error(transparent)]
    Serial(#[from] SerialStateError),
    /// The clock cannot.
    #[error(transparent)]
    Rtc(#[from] RtcStateError),
    /// A vCPU cannot.
    #[error(transparent)]
    Vcpu(#[from] RequestError),
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] Error),
}

impl VmState {
    /// What the guest is told of its CPU, by the first that it has.
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        self.vcpus.first().map_or(&[], |vcpu| &vcpu.cpuid)
    }

    /// Whether a machine with so many CPUs and virtio devices can become this.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_shape(&self, cpus: u32, virtio: usize) -> Result<(), LoadError> {
        let counts = [
            ("CPUs", self.vcpus.len(), cpus as usize),
            ("virtio devices", self.virtio.len(), virtio),
        ];
        match counts.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            Some((what, theirs, ours)) => Err(LoadError::Shape { what, theirs, ours }),
            None => Ok(()),
        }
    }
}

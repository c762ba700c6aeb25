//! What a snapshot has of the serial port.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The port's registers (16550D data sheet, table II), and the input that the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// DLL, the low half of the divisor latch.
    pub divisor_low: u8,
    /// DLM, the high half.
    pub divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR: which interrupts wait to be answered.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// The receiver's FIFO, oldest byte first.
    pub received: Vec<u8>,
}

/// Why a port does not go on from a state.
#[derive(Debug, Error)]
pub enum SerialStateError {
    /// More input than the FIFO can hold.
    #[error("the snapshot has more input for the serial port than there is room for; it is damaged")]
    Damaged,
    /// The host.
    #[error("cannot restore the serial port: {0}")]
    Host(#[from] io::Error),
}

impl From<vm_superio::serial::Error<io::Error>> for SerialStateError {
    fn from(error: vm_superio::serial::Error<io::Error>) -> Self {
        match error {
            vm_superio::serial::Error::FullFifo => Self::Damaged,
            vm_superio::serial::Error::Trigger(error) | vm_superio::serial::Error::IOError(error) => {
                Self::Host(error)
            }
        }
    }
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
    }
}

impl From<&SerialState> for vm_superio::SerialState {
    fn from(state: &SerialState) -> Self {
        Self {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        }
    }
}

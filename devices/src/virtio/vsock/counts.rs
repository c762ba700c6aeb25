//! What a socket device has carried.

use crate::counters;

counters! {
    /// Of the device, whose worker counts.
    pub(super) struct Counts {
        /// Packets that the guest received.
        rx_packets,
        /// Bytes of streams in these packets.
        rx_bytes,
        /// Packets that the guest sent.
        tx_packets,
        /// Bytes of streams in these packets.
        tx_bytes,
        /// Connections that were begun, by the guest or by host programs.
        connections,
        /// Packets of the guest's that were answered with a reset.
        refusals,
    }
}

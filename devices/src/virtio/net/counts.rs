//! What a network has carried.

use crate::counters;

counters! {
    /// Of one pair of queues, whose worker counts.
    pub(super) struct Counts {
        /// Frames that the guest received.
        rx_frames,
        /// Bytes of these frames.
        rx_bytes,
        /// Frames for the guest that were dropped, as they did not fit its buffers.
        rx_dropped,
        /// Times that the guest had no buffers for a frame that was there, or might have been.
        rx_starved,
        /// Times that the rate limit held back what the guest was to receive.
        rx_stalls,
        /// Frames that the guest sent.
        tx_frames,
        /// Bytes of these frames.
        tx_bytes,
        /// Frames of the guest's that were dropped: malformed ones, those that the host refused, and all while the link was down.
        tx_dropped,
        /// Times that the host took no more frames for a while.
        tx_full,
        /// Times that the rate limit held back what the guest sent.
        tx_stalls,
    }
}

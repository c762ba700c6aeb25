//! A balloon with everything that a balloon can have, but for the statistics' timer.

use std::sync::Arc;

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonOptions};

/// The guest has 32 pages, of which it is asked for some.
pub fn device() -> Arc<dyn VirtioDevice> {
    Arc::new(Balloon::new(BalloonOptions {
        pages: 8,
        deflate_on_oom: true,
        free_page_reporting: true,
        stats: None,
    }))
}

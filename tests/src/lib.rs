//! What integration tests and benchmarks share: guests of a page, and ways to run posada and watch it.

pub mod agent;
pub mod background;
pub mod booted;
pub mod button;
pub mod checks;
mod cores;
pub mod ended;
pub mod file_system;
pub mod guest;
pub mod http;
pub mod images;
pub mod memory_handler;
pub mod moments;
pub mod network;
pub mod owner;
pub mod payload;
pub mod posada;
pub mod running;
pub mod schemathesis;
pub mod script;
pub mod served;
pub mod stand_in;
pub mod stream;
pub mod terminal;
pub mod traveller;
pub mod tree;
pub mod usage;
pub mod vsock;

pub use background::Background;
pub use ended::Ended;
pub use guest::{Guest, posada};
pub use moments::Moments;
pub use owner::{is_left, owner};
pub use running::Running;
pub use script::Script;
pub use traveller::Traveller;

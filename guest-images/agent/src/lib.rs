//! The agent in a guest, by which `posada exec` runs commands there and `posada cp` moves files: what the two say to each other,
//! and what the agent does. Nothing here knows how their stream came about.

pub mod archive;
pub mod data;
pub mod frame;
pub mod landing;
pub mod request;
pub mod serve;
pub mod terminal;

//! What still has to be pushed from this machine: a queue in one SQLite file, which several processes write at once.
//!
//! What was added is there after a power cut. Never speaks to a server or to Nix, and never decides what is to be
//! pushed when: `watch` does. This SQL is the client's; the server's rows are in `db`.

mod error;
mod open;
mod paths;
mod seen;
mod status;

#[cfg(test)]
mod tests;

pub use error::QueueError;
pub use open::Queue;
pub use paths::Entry;
pub use status::{CacheStatus, Note, Status};

/// What every function of this layer answers.
pub type Result<T> = std::result::Result<T, QueueError>;

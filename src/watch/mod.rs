//! Keeping a cache in step with the local store: what is new is found, queued, and pushed.
//!
//! Never loses what it has found, whether the server is down or this process dies: everything goes through
//! [`crate::queue`]. How something is pushed is `client`'s business, and handed in.

mod drain;
mod local_nix;
mod store;
mod wake;

pub use drain::{Drain, Failed, Fault, Round, Whose};
pub use local_nix::{LocalNix, NixError};
pub use store::StoreWatch;
pub use wake::Wake;

/// Why a round or a look did not come to its end. Nothing is lost by it.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(transparent)]
    Queue(#[from] crate::queue::QueueError),
    #[error(transparent)]
    Nix(#[from] NixError),
}

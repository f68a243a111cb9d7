//! nix.conf: what files of it say together, and the one part of such a file that is ours.
//!
//! Plain texts in, plain texts out: never reads or writes a file, and never runs Nix.

mod part;
mod resolve;
mod syntax;
#[cfg(test)]
mod tests;

pub use part::{Part, Spelling, Used};
pub use resolve::{Place, Read, Resolved, Trouble};
pub use syntax::Line;

/// What Nix asks where nothing is configured.
pub const SUBSTITUTERS_DEFAULT: &[&str] = &["https://cache.nixos.org/"];

/// Whom Nix trusts where nothing is configured.
pub const PUBLIC_KEYS_DEFAULT: &[&str] = &["cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="];

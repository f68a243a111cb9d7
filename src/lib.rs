//! narvault: a key management service for Nix binary caches.

#![deny(unsafe_code)]

pub mod nix;
pub mod time;
pub mod tlog;

//! The formats of Nix binary caches, as pure values: parse, check, print.
//!
//! Never does I/O, never waits, never asks for the time. What is trusted is said by the type.

pub mod base32;
mod base64;
pub mod cache_info;
pub mod claim;
pub mod compression;
pub mod content_address;
pub mod debuginfo;
pub mod hash;
pub mod listing;
pub mod nar;
pub mod narinfo;
pub mod path_info;
pub mod realisation;
pub mod references;
pub mod signature;
pub mod store_path;
pub mod trust;

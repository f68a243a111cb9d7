//! The signature log, as pure values: an append-only Merkle tree (RFC 6962) over text leaves.
//!
//! Never does I/O, never asks for the time, never makes randomness: salts and times are handed in.

pub mod leaf;

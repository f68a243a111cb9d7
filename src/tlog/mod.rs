//! The signature log, as pure values: an append-only Merkle tree (RFC 6962) over text leaves, published as tiles,
//! signed checkpoints and proof files in the formats of C2SP, so that witnesses and mirrors that nobody wrote for
//! narvault work with it.
//!
//! Never does I/O, never asks for the time, never makes randomness, never sees a private key: hashes, tiles, salts,
//! times and signatures are handed in.
//!
//! | file | what | after |
//! |---|---|---|
//! | [`leaf`] | the text of one entry | – |
//! | [`hash`], [`tree`] | hashes of nodes, and where nodes stand | RFC 6962, 2.1 |
//! | [`frontier`] | the right edge: appends, and knows the root | – |
//! | [`proof`] | inclusion and consistency | RFC 6962, 2.1.1 and 2.1.2 |
//! | [`tile`], [`tile_hashes`], [`bundle`] | what is published, by which path | c2sp.org/tlog-tiles |
//! | [`edge`], [`tile_reader`] | making tiles; reading them, each checked against the root | c2sp.org/tlog-tiles |
//! | [`verifier_key`], [`note`] | public keys as text, texts with signatures | c2sp.org/signed-note |
//! | [`checkpoint`], [`cosignature`] | the signed root; what witnesses add | c2sp.org/tlog-checkpoint, tlog-cosignature |
//! | [`proof_file`] | a leaf's proof together with the checkpoint | c2sp.org/tlog-proof |
//! | [`policy`] | whose checkpoints are believed | Sigsum, torchwood |
//! | [`shown_leaf`] | a leaf together with what it leaves out | – |

mod base64;
pub mod bundle;
pub mod checkpoint;
pub mod cosignature;
pub mod edge;
pub mod frontier;
pub mod hash;
pub mod leaf;
pub mod note;
pub mod policy;
pub mod proof;
pub mod proof_file;
pub mod shown_leaf;
pub mod tile;
pub mod tile_hashes;
pub mod tile_reader;
pub mod tree;
pub mod verifier_key;

#[cfg(test)]
mod tests;

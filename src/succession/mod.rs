//! Succession of keys, as pure values: signed statements by which a client goes from a key that it trusts to the one
//! that comes after it, and the rules by which it does.
//!
//! Never does I/O, never asks for the time, never sees a private key. Whoever signs hands signatures in.
//!
//! | file | what |
//! |---|---|
//! | [`statement`] | `narvault/key-succession/v1`: one key comes after another |
//! | [`roots`] | `narvault/key-roots/v1`: whose word counts once a key is in other hands |
//! | [`signed`] | such a text with signatures (c2sp.org/signed-note), and one that still gathers them |
//! | [`chain`] | all of a cache in one document, as it is published |
//! | [`follow`](mod@follow) | what a client makes of it: The Update Framework's rules |
//!
//! A signature here cannot be one of Nix's or of a log: Nix signs texts that begin with `1;` (store paths) or `{` (build
//! trace entries), a log signs its own name and numbers, a witness `cosignature/v1`; these texts begin with `narvault/`,
//! which is no log's name.

pub mod chain;
pub mod follow;
mod lines;
pub mod roots;
pub mod signed;
pub mod statement;

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod testing;

pub use chain::{CHAIN_SIZE_BYTES_MAX, Chain, ChainError};
pub use follow::{Followed, Memory, Pending, Refusal, Seen, Waiting, follow};
pub use lines::ReadError;
pub use roots::{ROOT_KEYS_MAX, RootScope, Roots, RootsRef};
pub use signed::{Content, Document, Draft, NoteKeyError, Signed, note_key};
pub use statement::{CacheRef, LogHead, Reason, Statement};

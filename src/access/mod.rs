//! Who may do what, as plain values: names, scopes, callers, tokens and their check.
//!
//! Never does I/O, never asks for the time or for randomness, never holds a private key: public keys, moments and
//! random bytes are handed in. Whether a token's row is still live is asked elsewhere; here "verified" means no more
//! than "this server signed these claims and their time has not run out".

pub mod caller;
pub mod credential;
pub mod name;
pub mod scope;
pub mod secret;
pub mod token;

pub use caller::{Action, Caller, Denied, TokenCaller};
pub use credential::{Credential, Malformed};
pub use name::{CacheId, CacheName, ContributorId, ContributorName, GroupName, TokenId};
pub use scope::{Scope, Scopes};
pub use secret::{ClaimSecret, TokenText};
pub use token::{Claims, TokenError, TokenKeys};

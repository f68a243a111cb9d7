//! The user's side: typed calls over [`crate::api`], the login state that they need, and the texts that set Nix up.
//!
//! Never uses `service` or a database, and never prints: what people see is `cli`'s business.

pub mod audit;
mod calls;
mod error;
mod http;
pub mod login;
mod marked;
pub mod netrc;
pub mod nix_conf;
pub mod proved;
pub mod push;
mod server_url;
mod successions;
pub mod text_file;

pub use error::{Error, ErrorKind};
pub use http::{Client, FirstByte};
pub use marked::MarkError;
pub use server_url::{ParseServerUrlError, ServerUrl};

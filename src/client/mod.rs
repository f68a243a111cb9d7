//! The user's side: typed calls over [`crate::api`], and the login state that they need.
//!
//! Never uses `service` or a database, and never prints: what people see is `cli`'s business.

mod calls;
mod error;
mod http;
pub mod login;
mod server_url;

pub use error::{Error, ErrorKind};
pub use http::Client;
pub use server_url::{ParseServerUrlError, ServerUrl};

//! How what waits in a queue is pushed: with its closure, by the client.
//!
//! Never decides what is pushed when, and prints nothing.

use std::cell::RefCell;
use std::path::PathBuf;

use super::Context;
use super::failure::Failure;
use crate::client::push::{PushError, PushOptions, push};
use crate::client::{Client, ErrorKind};
use crate::heap;
use crate::nix::store_path::StorePath;
use crate::watch::{Failed, Fault, Whose};

/// A client with its options, for as long as the process lives.
pub struct Pusher<'a> {
    context: &'a Context,
    options: PushOptions,
    client: RefCell<Client>,
}

impl<'a> Pusher<'a> {
    /// With the server and the token that are known now. Fails without one.
    pub fn new(context: &'a Context, options: PushOptions) -> Result<Self, Failure> {
        let client = context.client()?;
        client.require_token()?;
        heap::give_large_blocks_back();
        Ok(Self { context, options, client: RefCell::new(client) })
    }

    /// Pushes paths with their closures.
    pub async fn push(&self, cache: &str, paths: &[StorePath]) -> Result<Failed, Fault> {
        let client = self.client.borrow().clone();
        let given: Vec<PathBuf> = paths.iter().map(|path| path.to_string().into()).collect();
        let report = push(&client, cache, &given, &self.options, &|_| {}).await.map_err(|error| {
            let fault = fault(&error);
            if fault.kind == ErrorKind::NotAuthorised {
                self.log_in_again();
            }
            fault
        })?;
        let failed = report.failed.into_iter().filter_map(|failed| {
            let path = StorePath::from_absolute(&failed.path).ok()?;
            let kind = match failed.status {
                Some(401 | 403) => ErrorKind::NotAuthorised,
                Some(_) => ErrorKind::Refused,
                None => ErrorKind::Other,
            };
            let text = format!("{}: {}", failed.path, failed.reason);
            Some((path, Fault { kind, whose: Whose::Path, text, hint: None }))
        });
        // What is refused of a closure is told of the path that needs it.
        Ok(failed.filter(|(path, _)| paths.contains(path)).collect())
    }

    /// Takes the token that `narvault login` or `token renew` has stored meanwhile, for the next push.
    fn log_in_again(&self) {
        if let Ok(client) = self.context.client() {
            self.client.replace(client);
        }
    }
}

fn fault(error: &PushError) -> Fault {
    let (kind, whose) = match error {
        PushError::Client(error) => (error.kind(), Whose::Cache),
        PushError::Store(_) => (ErrorKind::Other, Whose::Path),
    };
    Fault { kind, whose, text: error.to_string(), hint: error.hint() }
}

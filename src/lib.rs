//! narvault: a key management service for Nix binary caches. It alone holds the private keys; contributors push with
//! stock `nix copy` and a token of their own; what it signs it has measured itself, and every signature is attributed.
//!
//! This page is the map. Each module says on top of its file what it does and what it never does.
//!
//! # Layers
//!
//! Arrows only point downwards. `tests/it/tidy.rs` holds the same table against every `use crate::` line; a new arrow
//! is a design decision, made in that table and here.
//!
//! | layer | what | uses |
//! |---|---|---|
//! | [`cli`], `main` | one file per command; [`cli::server`] joins all sections into a running server | everything |
//! | [`config`] | one table of keys: flags, environment, file, defaults | nothing that runs |
//! | [`http`] | axum, status codes, the router on one screen | `service access api nix` |
//! | [`web`] | pages for people | `service access` |
//! | [`client`] | typed calls over [`api`], login state, pushing ([`client::push`]), the texts of nix.conf and netrc | `api nix tlog` |
//! | [`watch`] | what is new in the local store, queued and pushed | `client queue nix time` |
//! | [`queue`] | what waits to be pushed from this machine: a SQLite file of the client's | `nix time` |
//! | [`service`] | what a caller can ask for | `nix tlog time threads access succession vault storage db kms upstream webhook witness` |
//! | [`db`] | rows; the server's only SQL text; SQLite and Postgres from one text; reads a Nix client's memory too | `nix time threads access`, sealed types of `vault` |
//! | [`storage`] | objects in a folder or in S3; the only code that spells an object's path | `nix threads` |
//! | [`kms`] | a key management service, asked over the network to encrypt and decrypt slot keys of the vault | `vault` |
//! | [`upstream`] | other binary caches, asked over the network whether they hold a path | `nix` |
//! | [`webhook`] | messages to servers that an admin chose: where they may go, and how they are sent | – |
//! | [`witness`] | others who cosign the log's checkpoints, asked over the network | `tlog` |
//! | [`vault`] | the only code that sees a private key in clear | `nix succession` |
//! | [`succession`] | which key comes after which, as signed statements, and how a client follows them | `nix tlog time` |
//! | [`access`] | who may do what, as plain values: caller, action, scope, token | `time` |
//! | [`api`] | the JSON of `/api/v1` | `nix tlog` |
//! | [`nix`] | formats: base 32, hashes, store paths, NAR, narinfo, signatures | – |
//! | [`tlog`] | the signature log as values: leaves, Merkle tree, proofs, tiles, signed checkpoints | – |
//! | [`heap`] | what the allocator keeps of memory that was given back | – |
//! | [`threads`] | what a thread that looks after many tasks may do that takes its time | – |
//! | [`time`] | the clock | – |
//!
//! # Invariants
//!
//! - `nix`, `tlog`, `access`, `succession` and `api` do no I/O, are not async, and never ask for the time or for randomness.
//! - `vault` never returns a private key, and never talks to the database. Of its secrets, `kms` sees slot keys and nothing
//!   else. `db` knows only what is sealed.
//! - `storage` never shows a half-written object, and never relies on conditional writes.
//! - `db` never decides who may do what; `http` neither: it reads a credential, asks the service, spells the answer.
//! - In `service` one function reaches the key of a cache, `service::sign`. Three call it: `service::publish`, for a
//!   `Verified`, which only a comparison with measured values makes, `service::realisations`, for an output that is
//!   published, and `service::keys`, which signs again what a leaf of the log accounts for.
//! - No network or storage call happens inside a transaction, but for the snapshot of a backup, which only reads. Rows are
//!   the truth; storage follows through the outbox.
//! - Whatever signs, mints or records evidence passes the gate shared, as the first statement of its transaction;
//!   whatever revokes, suspends, quarantines, restores, deletes or seals passes it exclusive; bookkeeping that neither depends on rights nor
//!   changes them goes around it ([`db::Gate`]). The log's row is locked last.
//! - Signature, evidence, leaf and outbox row are committed together, or not at all.
//! - What is acknowledged is on the disk. Bookkeeping that is done once more where a power failure takes it waits for no
//!   flush (`Db::begin_lazy`, `Storage::put_soon`).
//! - Every sealed row names its key-encryption key, and whatever seals or wraps looks behind the gate whether its own is
//!   the newest (`service::rekey`): so the vault's keys are replaced while all of this goes on.
//! - Reads need no key: paths are signed when they are published. A sealed server reads and revokes.
//! - Shares of a slot key that were handed in lie in locked memory of one replica, for 15 minutes, and in no row
//!   (`service::shares`).
//! - A compromised key signs nothing, neither paths nor that another key comes after it: the vault takes statements in
//!   their typed form, and signs them only with a key whose word they need.
//! - A backup is read in one snapshot and opens with any secret of the vault; only one that was verified to its end is
//!   restored, and only into an empty database (`service::backup`).
//! - A request never panics the process; an error never holds a secret; each limit is stated, and named when it is hit.
//!
//! # The six ways through the house
//!
//! 1. **`PUT /push/{cache}/nar/…`** `http::binary_cache` authenticates, then `service::ingest`: right, admission, then one
//!    pass over the stream (`service::measure`): count and hash the file, decompress, count and hash the NAR, strict
//!    grammar, scan for store paths, while [`storage`] takes it as an upload. Only a file whose hash is its name is
//!    completed, and recorded in [`db::measured`].
//!    Many small ones come in one call (`service::batch`), large ones in parts (`service::uploads`): both end in the same
//!    verifier and the same two rows.
//! 2. **`PUT /push/{cache}/{hash}.narinfo`** `service::publish`: parse, find what was measured, compare every claim
//!    (`Verified::check`), keep foreign signatures that verify. One transaction, for all that wait at that moment
//!    (`publish::commit`): gate, tokens and cache again, references, the paths' rows, evidence, signatures, leaves, outbox.
//!    Another claim for a published path is recorded as a conflict instead. Then `service::release` writes the narinfo,
//!    and the answer waits for that at most 5 s.
//! 3. **`GET /{cache}/{hash}.narinfo`** from memory (`service::memory`, at most a second old) or rendered from rows
//!    (`service::read`). **`GET /{cache}/nar/…`** only if the rows say that a published path has it: streamed from
//!    [`storage`], whole or in part, or a redirect.
//! 4. **Revoke** `http::api` → `service::tokens`: gate exclusive, rows of the token and of what it issued, audit rows,
//!    leaves, and the change epoch, which makes every replica forget within a second what it remembered.
//! 5. **Take down** `http::api` → `service::takedown`: gate exclusive, one row of [`db::quarantines`], audit, leaf. Then
//!    `takedown::carry`, in batches, by this replica or by one that finds the row unfinished: tokens, evidence, paths
//!    without any (state, [`db::withdrawals`], what stands beside them put aside, leaf, outbox), dependents by choice. A
//!    restoration is the same the other way. The answer waits for the outbox at most 60 s.
//! 6. **First start** [`cli::server::Server::start`]: listen, open the database (migrations), storage (the mark of its
//!    owner), vault; `service::setup` makes what is absent in one transaction; then the workers begin: change epoch, seal
//!    epoch, release, sweeper, unfinished quarantines, last uses.
//!    A database with fewer leaves than the checkpoint in storage only reads (`service::rollback`), until
//!    `service::recover` has brought it up to that.
//!
//! # To add an endpoint
//!
//! 1. Its bodies in [`api`], with a doc comment on each field: they become the OpenAPI document.
//! 2. What it needs of the rows: a function in the [`db`] file of that table, with a test in `on_each_database!`.
//! 3. The use case in [`service`]: `require` the right first; if it changes something, one transaction that begins at the
//!    gate, asks `recheck`, and ends with `record` (audit row and leaf). Errors are [`service::Error`], without status.
//! 4. The handler in `http/api/<resource>.rs`, a few lines, and its route in that file's router. A new error variant makes
//!    `http/error.rs` ask for its status.
//! 5. The call in `client/calls.rs` and the command in `cli/<group>.rs`, with one example in its help.
//! 6. `NARVAULT_TEST_BLESS=1 cargo test --test it openapi`, and a test at the route in `tests/it`.

#![deny(unsafe_code)]

pub mod access;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod db;
pub mod heap;
pub mod http;
pub mod kms;
pub mod nix;
pub mod queue;
pub mod service;
pub mod storage;
pub mod succession;
pub mod threads;
pub mod time;
pub mod tlog;
pub mod upstream;
pub mod vault;
pub mod watch;
pub mod web;
pub mod webhook;
pub mod witness;

#[cfg(test)]
mod fuzz;

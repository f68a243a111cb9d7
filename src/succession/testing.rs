//! Keys whose secrets are known, and statements that they sign.

use ed25519_dalek::{Signer as _, SigningKey};

use super::chain::Chain;
use super::roots::{RootScope, Roots};
use super::signed::{Content, Draft, Signed, note_key};
use super::statement::{CacheRef, Reason, Statement};
use crate::nix::signature::PublicKey;
use crate::time::Timestamp;
use crate::tlog::note::Note;

pub const CACHE_ID: &str = "0199a1b2-0000-7000-8000-000000000001";

/// 2026-11-22T12:00:00Z.
pub const NOON: Timestamp = Timestamp(1_795_348_800_000);

pub const DAY_SECONDS: i64 = 24 * 3600;

/// Noon of another day.
pub fn day(number: i64) -> Timestamp {
    NOON.plus_seconds(number * DAY_SECONDS)
}

/// A key that anybody has.
pub struct TestKey {
    pub public: PublicKey,
    secret: SigningKey,
}

impl TestKey {
    /// Its secret follows from its name.
    pub fn named(name: &str) -> Self {
        let mut seed = [7; 32];
        for (at, byte) in name.bytes().enumerate() {
            seed[at % 32] ^= byte.rotate_left((at % 7) as u32);
        }
        let secret = SigningKey::from_bytes(&seed);
        let public = PublicKey::new(name.parse().unwrap(), secret.verifying_key().as_bytes()).unwrap();
        Self { public, secret }
    }

    /// As `nix key generate-secret` writes it.
    pub fn nix_secret(&self) -> String {
        let pair = self.secret.to_keypair_bytes();
        format!("{}:{}", self.public.name(), data_encoding::BASE64.encode(&pair))
    }

    /// The note that is `text`, signed by this key.
    pub fn sign(&self, text: &str) -> Note {
        let sign = |bytes: &[u8]| Ok::<_, std::convert::Infallible>(self.secret.sign(bytes).to_bytes());
        Note::sign(text.to_owned(), &note_key(&self.public).unwrap(), sign).unwrap()
    }
}

/// The content, signed by the keys of these names.
pub fn signed<T: Content>(content: &T, names: &[&str]) -> Signed<T> {
    let text = content.written().unwrap();
    let mut notes = names.iter().map(|name| TestKey::named(name).sign(&text));
    let first = Signed::of(notes.next().unwrap()).unwrap();
    notes.fold(first, |signed, note| signed.with(note.signatures()[0].clone()).unwrap())
}

/// The draft, signed by the keys of these names.
pub fn signed_draft(draft: &str, names: &[&str]) -> String {
    let draft = Draft::parse(draft).unwrap();
    let sign = |draft: Draft, name: &&str| {
        let note = TestKey::named(name).sign(draft.text());
        draft.with(note).unwrap()
    };
    names.iter().fold(draft, sign).encode()
}

pub fn cache() -> CacheRef {
    CacheRef { name: "main".into(), id: CACHE_ID.into() }
}

/// A planned statement of today, without root keys.
pub fn planned(seq: u64, old: &str, new: &str) -> Statement {
    Statement {
        cache: cache(),
        seq,
        old: TestKey::named(old).public,
        new: TestKey::named(new).public,
        reason: Reason::Planned,
        roots: None,
        not_before: NOON,
        retire_old: None,
        expires: day(730),
        log: None,
    }
}

/// A statement that the old key is in other hands.
pub fn compromise(seq: u64, old: &str, new: &str, roots: &Roots) -> Statement {
    Statement {
        reason: Reason::Compromise,
        roots: Some(roots.reference()),
        retire_old: Some(NOON),
        ..planned(seq, old, new)
    }
}

/// Root keys of the cache, by their names in order.
pub fn roots(version: u64, threshold: u64, names: &[&str]) -> Roots {
    let keys = names.iter().map(|name| TestKey::named(name).public).collect();
    Roots { scope: RootScope::Cache(cache()), version, threshold, keys }
}

/// A document of statements that both of their keys have signed.
pub fn chain(statements: &[Statement]) -> Chain {
    let both = |statement: &Statement| {
        signed(statement, &[statement.old.name().as_str(), statement.new.name().as_str()])
    };
    Chain { roots: Vec::new(), statements: statements.iter().map(both).collect() }
}

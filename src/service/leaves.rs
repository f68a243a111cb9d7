//! From what happened to a leaf of the log: what is public in clear, what is private behind salted hashes.
//!
//! Never puts a name, an address or a mail of a person into a leaf: those go into the opening of `detail`,
//! which can be erased. What a private cache holds goes into the opening of `private`.

use serde_json::{Value, json};

use super::{Call, Error, Result, Service};
use crate::access::{ContributorId, TokenCaller, TokenId};
use crate::db::caches::CacheRow;
use crate::db::log::LeafRow;
use crate::nix::claim::Claim;
use crate::nix::signature::{PublicKey, Signature};
use crate::time::Timestamp;
use crate::tlog::leaf::{
    self, Basis, CacheLine, ClaimLines, Commitment, Covered, Disclosed, Event, KeyEvent, PathLines,
    References, Salt, SignatureBytes, Signed, ValueError, Word,
};
use crate::vault::random;

/// What a leaf is made from.
pub(super) struct Leaf<'a> {
    pub call: &'a Call,
    pub by: Option<&'a TokenCaller>,
    pub cache: Option<&'a CacheRow>,
    /// The path that it is about, for the way back from a path to its leaves.
    pub path_id: Option<&'a str>,
    pub event: LeafEvent<'a>,
    /// Private particulars, beside the client's address and name, which are added.
    pub detail: Value,
    pub now: Timestamp,
}

/// What happened.
pub(super) enum LeafEvent<'a> {
    Sign { claim: &'a Claim, signature: &'a Signature, replaces: Option<i64> },
    Resign { claim: &'a Claim, signature: &'a Signature, replaces: Option<i64> },
    Realisation { output: &'a Claim, signature: &'a Signature },
    Conflict(&'a Claim),
    Delete(&'a Claim),
    Restore(&'a Claim),
    Withdraw(&'a Claim),
    Admin(AdminEvent),
}

/// An act of administration.
#[derive(Debug, Clone)]
pub(super) enum AdminEvent {
    AdminClaim,
    /// `detail` is what it commits to.
    AuditCommit,
    CacheCreate,
    CacheDelete,
    ContributorCreate(ContributorId),
    /// Also its end; `detail` tells.
    ContributorQuarantine(ContributorId),
    /// Also its end, and other changes of a contributor; `detail` tells.
    ContributorSuspend(ContributorId),
    KeyCreate {
        public_key: Box<PublicKey>,
        state: &'static str,
    },
    KeyState {
        public_key: Box<PublicKey>,
        state: &'static str,
    },
    /// The key that comes after another, and why.
    KeySuccession {
        public_key: Box<PublicKey>,
        reason: &'static str,
    },
    PolicyChange,
    TokenIssue(TokenId),
    TokenRevoke(TokenId),
    VaultSlot,
}

impl Service {
    /// The leaf as it will be appended.
    pub(super) fn leaf_row(&self, leaf: Leaf<'_>) -> Result<LeafRow> {
        let mut openings = Vec::new();
        let event = event(&leaf, &mut openings).map_err(|error| Error::Internal(error.into()))?;
        let detail = detail(leaf.detail, leaf.call).to_string();
        let salt: Salt = random::bytes();
        let word = |text: String| text.parse::<Word>().map(Some);
        let text = leaf::Leaf {
            event,
            time: leaf.now.rfc3339().parse().map_err(internal)?,
            by: leaf.by.map_or(Ok(None), |by| word(by.contributor.to_string())).map_err(internal)?,
            token: leaf.by.map_or(Ok(None), |by| word(by.token.to_string())).map_err(internal)?,
            detail: Some(Commitment::of(&salt, detail.as_bytes())),
        };
        openings.push(("detail", salt, detail));
        let (text, long_references) = text.fitted();
        Ok(LeafRow {
            event: text.event.name().to_owned(),
            leaf: text.encode().map_err(|error| Error::Internal(error.into()))?,
            path_id: leaf.path_id.map(str::to_owned),
            openings,
            long_references,
        })
    }
}

/// The public lines, and for a private cache their opening.
fn event(
    leaf: &Leaf<'_>,
    openings: &mut Vec<(&'static str, Salt, String)>,
) -> std::result::Result<Event, ValueError> {
    let cache = leaf.cache.map(|cache| cache.name.as_str().parse::<Word>()).transpose()?;
    let of_cache = || cache.clone().ok_or(ValueError::WordLength);
    let hidden = leaf.cache.is_some_and(|cache| !cache.public);
    let claim_lines = |claim: &Claim| {
        Ok(ClaimLines {
            cache: of_cache()?,
            path: claim.path.to_string().parse()?,
            nar_hash: Some(claim.nar_hash.to_string().parse()?),
            nar_size: Some(claim.nar_size),
            references: References::list(&claim.references_text())?,
        })
    };
    let path_lines = |claim: &Claim| {
        Ok(PathLines {
            cache: of_cache()?,
            path: claim.path.to_string().parse()?,
            nar_hash: Some(claim.nar_hash.to_string().parse()?),
        })
    };
    let policy = || "direct".parse::<Word>().map(Some);
    let mut signed = |claim: &Claim,
                      signature: &Signature,
                      replaces: Option<i64>|
     -> std::result::Result<Signed, ValueError> {
        Ok(Signed {
            claim: disclose(claim_lines(claim)?, hidden, openings),
            key: signature.name.as_str().parse()?,
            sig: SignatureBytes(signature.bytes),
            basis: Basis { policy: policy()?, replaces: replaces.and_then(|index| index.try_into().ok()) },
        })
    };
    let event = match &leaf.event {
        LeafEvent::Sign { claim, signature, replaces } => Event::Sign(signed(claim, signature, *replaces)?),
        LeafEvent::Resign { claim, signature, replaces } => {
            Event::Resign(signed(claim, signature, *replaces)?)
        }
        LeafEvent::Realisation { output, signature } => Event::Realisation(signed(output, signature, None)?),
        LeafEvent::Conflict(claim) => Event::Conflict(disclose(path_lines(claim)?, hidden, openings)),
        LeafEvent::Delete(claim) => Event::Delete(disclose(path_lines(claim)?, hidden, openings)),
        LeafEvent::Restore(claim) => Event::Restore(disclose(path_lines(claim)?, hidden, openings)),
        LeafEvent::Withdraw(claim) => Event::Withdraw(disclose(path_lines(claim)?, hidden, openings)),
        LeafEvent::Admin(admin) => {
            let cache = disclose(CacheLine { cache: cache.clone() }, hidden, openings);
            admin_event(admin, cache)?
        }
    };
    Ok(event)
}

fn admin_event(admin: &AdminEvent, cache: Disclosed<CacheLine>) -> std::result::Result<Event, ValueError> {
    Ok(match admin {
        AdminEvent::AdminClaim => Event::AdminClaim,
        AdminEvent::AuditCommit => Event::AuditCommit,
        AdminEvent::CacheCreate => Event::CacheCreate(cache),
        AdminEvent::CacheDelete => Event::CacheDelete(cache),
        AdminEvent::ContributorCreate(id) => Event::ContributorCreate(id.to_string().parse()?),
        AdminEvent::ContributorQuarantine(id) => Event::ContributorQuarantine(id.to_string().parse()?),
        AdminEvent::ContributorSuspend(id) => Event::ContributorSuspend(id.to_string().parse()?),
        AdminEvent::KeyCreate { public_key, state } => Event::KeyCreate(key_event(cache, public_key, state)?),
        AdminEvent::KeyState { public_key, state } => Event::KeyState(key_event(cache, public_key, state)?),
        AdminEvent::KeySuccession { public_key, reason } => {
            Event::KeySuccession(key_event(cache, public_key, reason)?)
        }
        AdminEvent::PolicyChange => Event::PolicyChange(cache),
        AdminEvent::TokenIssue(id) => Event::TokenIssue(id.to_string().parse()?),
        AdminEvent::TokenRevoke(id) => Event::TokenRevoke(id.to_string().parse()?),
        AdminEvent::VaultSlot => Event::VaultSlot,
    })
}

fn key_event(
    cache: Disclosed<CacheLine>,
    public_key: &PublicKey,
    state: &str,
) -> std::result::Result<KeyEvent, ValueError> {
    Ok(KeyEvent {
        cache,
        key: public_key.name().as_str().parse()?,
        public_key: Some(public_key.to_string().parse()?),
        state: Some(state.parse()?),
    })
}

/// In clear, or behind a commitment whose opening is kept.
fn disclose<T: Covered>(
    lines: T,
    hidden: bool,
    openings: &mut Vec<(&'static str, Salt, String)>,
) -> Disclosed<T> {
    if !hidden {
        return Disclosed::Open(lines);
    }
    let salt: Salt = random::bytes();
    let sealed = Disclosed::sealed(&lines, &salt);
    openings.push(("private", salt, lines.text()));
    sealed
}

/// The private particulars: what the act says, and where the call came from.
fn detail(own: Value, call: &Call) -> Value {
    let mut detail = match own {
        Value::Object(members) => members,
        Value::Null => serde_json::Map::new(),
        other => serde_json::Map::from_iter([("detail".to_owned(), other)]),
    };
    if let Some(address) = call.origin.address {
        detail.insert("address".into(), json!(address.to_string()));
    }
    if let Some(client) = &call.origin.client {
        detail.insert("client".into(), json!(client));
    }
    Value::Object(detail)
}

fn internal(error: ValueError) -> Error {
    Error::Internal(error.into())
}

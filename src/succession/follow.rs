//! What a client makes of a cache's statements: which keys it trusts from now on, and what it remembers of it.
//!
//! The rules are The Update Framework's: from a key that is trusted already, each number exactly one more than the last,
//! enough signatures for the reason, nothing that has ended, nothing older than what was seen. A refusal changes nothing.

use super::chain::Chain;
use super::roots::{RootScope, Roots, RootsRef, TextDigest};
use super::signed::Signed;
use super::statement::{CacheRef, Reason, Statement};
use crate::nix::signature::PublicKey;
use crate::time::Timestamp;

/// The newest statement that was followed, or stood there when the keys were taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// 0: there was none.
    pub seq: u64,
    /// Of its text.
    pub digest: Option<TextDigest>,
}

/// A key that is to be trusted no more from a moment on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub key: PublicKey,
    pub at: Timestamp,
}

/// What a client remembers of a cache beside the keys that it trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The cache's id, once it is known.
    pub cache: Option<String>,
    /// `None`: the keys were written by hand, or by a version that remembered nothing.
    pub seen: Option<Seen>,
    /// The root keys whose word counts; `None`: nobody's does.
    pub roots: Option<RootsRef>,
    pub pending: Vec<Pending>,
}

impl Memory {
    /// What is remembered by whoever takes a cache's keys over from a server that it trusts for this once: all
    /// statements that are there count as followed, and the newest root keys as those whose word counts.
    pub fn at_first_use(cache: &str, chain: &Chain) -> Result<Self, Refusal> {
        let cache = Some(cache.to_owned());
        in_order(chain, cache.as_deref())?;
        check_history(chain, 0)?;
        Ok(Self {
            seen: Some(seen_at(chain.statements.last())),
            roots: chain.roots.last().map(|roots| roots.content().reference()),
            pending: Vec::new(),
            cache,
        })
    }
}

/// A statement that says nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub seq: u64,
    pub not_before: Timestamp,
}

/// What following came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Never empty.
    pub trusted: Vec<PublicKey>,
    pub added: Vec<PublicKey>,
    pub removed: Vec<PublicKey>,
    pub memory: Memory,
    pub waiting: Option<Waiting>,
}

/// Why a client stays with the keys that it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("statement {missing} is missing: {found} comes instead")]
    Gap { missing: u64, found: u64 },
    #[error("there are two statements with the number {seq}")]
    Fork { seq: u64 },
    #[error("the newest statement is {found}, but {seen} was seen before")]
    Rollback { seen: u64, found: u64 },
    #[error("the statements are of the cache {found}, not of {expected}")]
    OtherCache { expected: String, found: String },
    #[error("statement {seq} goes out from {old}, which is not trusted here")]
    UnknownOld { seq: u64, old: String },
    #[error("none of the keys that are trusted here occurs in the statements")]
    NoneKnown,
    #[error("statement {seq} is not signed by the new key {new}")]
    UnsignedByNew { seq: u64, new: String },
    #[error("statement {seq} is not signed by the old key {old}")]
    UnsignedByOld { seq: u64, old: String },
    #[error("statement {seq} ended at {expires}")]
    Expired { seq: u64, expires: Timestamp },
    #[error(
        "statement {seq} says that a key is compromised, and no root keys are known here whose word would count"
    )]
    NoRoots { seq: u64 },
    #[error("statement {seq} is signed by {found} root keys, {needed} are needed")]
    TooFewRoots { seq: u64, found: u64, needed: u64 },
    #[error("statement {seq} names root keys of version {named}, which are not those known here")]
    OtherRoots { seq: u64, named: u64 },
    #[error("version {missing} of the root keys is missing")]
    RootsGap { missing: u64 },
    #[error("the root keys of version {version} are others than those that were seen before")]
    RootsFork { version: u64 },
    #[error("the newest root keys are of version {found}, but {seen} was seen before")]
    RootsRollback { seen: u64, found: u64 },
    #[error("the root keys of version {version} are not signed by enough of those before and of themselves")]
    RootsUnsigned { version: u64 },
    #[error("no key would be left to be trusted")]
    NothingLeft,
}

impl Refusal {
    /// What to do about it, in words.
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Rollback { .. } | Self::RootsRollback { .. } => {
                "the server was restored from an older backup, or somebody serves an older state; try again later, and \
                 ask the cache's administrators if it stays"
            }
            Self::Fork { .. } | Self::RootsFork { .. } | Self::OtherCache { .. } => {
                "somebody may hold a key of this cache: ask its administrators, on another way, which keys are right, and \
                 only then run `narvault unuse` and `narvault use`"
            }
            Self::UnknownOld { .. } | Self::NoneKnown | Self::NoRoots { .. } | Self::OtherRoots { .. } => {
                "ask the cache's administrators which keys are right, then run `narvault use` again, which takes them \
                 over from the server"
            }
            Self::Expired { .. } => {
                "this machine was away for too long, or somebody holds newer statements back: run `narvault use` again, \
                 which takes the keys over from the server"
            }
            Self::Gap { .. } | Self::RootsGap { .. } => {
                "a part is missing where these came from: try again later, or fetch from the server itself"
            }
            Self::UnsignedByNew { .. }
            | Self::UnsignedByOld { .. }
            | Self::TooFewRoots { .. }
            | Self::RootsUnsigned { .. }
            | Self::NothingLeft => {
                "tell the cache's administrators: nobody who could sign has signed this; the keys stay as they are"
            }
        }
    }
}

/// Goes on from the keys that are `trusted`, as far as the statements lead at `now`.
pub fn follow(
    trusted: &[PublicKey],
    memory: &Memory,
    chain: &Chain,
    now: Timestamp,
) -> Result<Followed, Refusal> {
    in_order(chain, memory.cache.as_deref())?;
    not_older(chain, memory)?;
    let mut walk = Walk::begin(trusted, memory, chain)?;
    let since = memory.seen.map_or(0, |seen| seen.seq);
    let mut waiting = None;
    for signed in chain.statements.iter().filter(|signed| signed.content().seq > since) {
        let statement = signed.content();
        if now < statement.not_before {
            waiting = Some(Waiting { seq: statement.seq, not_before: statement.not_before });
            break;
        }
        walk.step(signed)?;
    }
    walk.end(waiting, now)
}

/// The numbers are 1, 2, 3 …, and all is of one cache.
fn in_order(chain: &Chain, cache: Option<&str>) -> Result<(), Refusal> {
    let mut next = 1;
    for statement in chain.statements.iter().map(Signed::content) {
        match statement.seq {
            seq if seq > next => return Err(Refusal::Gap { missing: next, found: seq }),
            seq if seq < next => return Err(Refusal::Fork { seq }),
            _ => next += 1,
        }
    }
    let of_roots = chain.roots.iter().filter_map(|roots| match &roots.content().scope {
        RootScope::Cache(cache) => Some(cache),
        RootScope::Server(_) => None,
    });
    let named = chain.statements.iter().map(|signed| &signed.content().cache);
    let mut all: Vec<&CacheRef> = named.chain(of_roots).collect();
    all.dedup_by(|one, other| one.id == other.id);
    let expected = cache.or_else(|| all.first().map(|cache| cache.id.as_str()));
    match all.iter().find(|cache| Some(cache.id.as_str()) != expected) {
        Some(found) => Err(Refusal::OtherCache {
            expected: expected.unwrap_or_default().to_owned(),
            found: found.id.clone(),
        }),
        None => Ok(()),
    }
}

/// What was seen before is there still, and the same.
fn not_older(chain: &Chain, memory: &Memory) -> Result<(), Refusal> {
    if let Some(Seen { seq: seen, digest }) = memory.seen.filter(|seen| seen.seq > 0) {
        let Some(signed) = chain.statements.iter().find(|signed| signed.content().seq == seen) else {
            return Err(Refusal::Rollback { seen, found: chain.head() });
        };
        if digest.is_some_and(|digest| digest != signed.digest()) {
            return Err(Refusal::Fork { seq: seen });
        }
    }
    let Some(pinned) = &memory.roots else { return Ok(()) };
    match chain.roots.iter().find(|roots| roots.content().version == pinned.version) {
        None => {
            let found = chain.roots.last().map_or(0, |roots| roots.content().version);
            Err(Refusal::RootsRollback { seen: pinned.version, found })
        }
        Some(roots) if roots.digest() != pinned.digest => Err(Refusal::RootsFork { version: pinned.version }),
        Some(_) => Ok(()),
    }
}

/// The versions of root keys are 1, 2, 3 …, of one scope, and each after `known` is signed by enough keys of the one
/// before and of itself; the first by enough of itself.
fn check_history(chain: &Chain, known: u64) -> Result<(), Refusal> {
    let mut before: Option<&Roots> = None;
    for signed in &chain.roots {
        let roots = signed.content();
        let next = before.map_or(1, |before| before.version + 1);
        match roots.version {
            version if version > next => return Err(Refusal::RootsGap { missing: next }),
            version if version < next => return Err(Refusal::RootsFork { version }),
            _ => {}
        }
        let of_one_scope = before.is_none_or(|before| before.scope == roots.scope);
        let is_signed =
            signed.has_threshold_of(roots) && before.is_none_or(|before| signed.has_threshold_of(before));
        if roots.version > known && !(of_one_scope && is_signed) {
            return Err(Refusal::RootsUnsigned { version: roots.version });
        }
        before = Some(roots);
    }
    Ok(())
}

fn seen_at(signed: Option<&Signed<Statement>>) -> Seen {
    Seen { seq: signed.map_or(0, |signed| signed.content().seq), digest: signed.map(Signed::digest) }
}

/// On the way from statement to statement.
struct Walk<'a> {
    chain: &'a Chain,
    trusted: Vec<PublicKey>,
    before: Vec<PublicKey>,
    memory: Memory,
    /// Whether there was no memory, and no statement has touched a trusted key yet: those of the time before this
    /// client are passed over.
    is_searching: bool,
    /// The last one that told something new.
    last: Option<&'a Statement>,
    /// Whether any led on from a trusted key.
    is_followed: bool,
    /// The first of those, after the last one that was followed, that are about keys which are not trusted here. A cache
    /// may have several keys, each with a way of its own: they are passed over if the way goes on behind them.
    unknown: Option<Refusal>,
}

impl<'a> Walk<'a> {
    fn begin(trusted: &[PublicKey], memory: &Memory, chain: &'a Chain) -> Result<Self, Refusal> {
        if trusted.is_empty() {
            return Err(Refusal::NothingLeft);
        }
        // Without a set that is known, none is looked at: who writes into a bucket could put any there.
        if let Some(pinned) = &memory.roots {
            check_history(chain, pinned.version)?;
        }
        Ok(Self {
            chain,
            trusted: trusted.to_vec(),
            before: trusted.to_vec(),
            memory: memory.clone(),
            is_searching: memory.seen.is_none(),
            last: None,
            is_followed: false,
            unknown: None,
        })
    }

    fn step(&mut self, signed: &'a Signed<Statement>) -> Result<(), Refusal> {
        let statement = signed.content();
        let Statement { seq, old, new, .. } = statement;
        let (knows_old, knows_new) = (self.trusted.contains(old), self.trusted.contains(new));
        if !knows_old && !knows_new {
            if !self.is_searching {
                let unknown = || Refusal::UnknownOld { seq: *seq, old: old.to_string() };
                self.unknown.get_or_insert_with(unknown);
            }
            return Ok(());
        }
        if !signed.is_signed_by(new) {
            return Err(Refusal::UnsignedByNew { seq: *seq, new: new.to_string() });
        }
        // Where the old key is not trusted and the new one is, nothing is left to be told, and nobody but the new key's
        // holder could have it told.
        if knows_old {
            match statement.reason {
                Reason::Planned => self.planned(signed)?,
                Reason::Compromise => self.compromised(signed)?,
            }
            self.last = Some(statement);
            self.memory.pending.retain(|pending| pending.key != *new);
            if !knows_new {
                self.trusted.push(new.clone());
            }
            if let Some(at) = statement.retire_old {
                self.memory.pending.push(Pending { key: old.clone(), at });
            }
        }
        self.is_searching = false;
        self.is_followed = true;
        self.unknown = None;
        self.memory.seen = Some(seen_at(Some(signed)));
        self.memory.cache = Some(statement.cache.id.clone());
        Ok(())
    }

    /// The old key's word counts, also for the root keys that are in force.
    fn planned(&mut self, signed: &Signed<Statement>) -> Result<(), Refusal> {
        let Statement { seq, old, roots, .. } = signed.content();
        if !signed.is_signed_by(old) {
            return Err(Refusal::UnsignedByOld { seq: *seq, old: old.to_string() });
        }
        let Some(named) = roots else { return Ok(()) };
        if self.set_named(named).is_none() {
            return Err(Refusal::OtherRoots { seq: *seq, named: named.version });
        }
        if self.memory.roots.is_none() {
            check_history(self.chain, named.version.saturating_sub(1))?;
            self.memory.roots = Some(named.clone());
        }
        Ok(())
    }

    /// The word of enough root keys counts, of a set that is not older than the one known here.
    fn compromised(&self, signed: &Signed<Statement>) -> Result<(), Refusal> {
        let Statement { seq, roots, .. } = signed.content();
        let pinned = self.memory.roots.as_ref().ok_or(Refusal::NoRoots { seq: *seq })?;
        let named = roots.as_ref().ok_or(Refusal::NoRoots { seq: *seq })?;
        let set = self.set_named(named).filter(|_| named.version >= pinned.version);
        let set = set.ok_or(Refusal::OtherRoots { seq: *seq, named: named.version })?;
        let found = signed.signers_among(set);
        if found < set.threshold {
            return Err(Refusal::TooFewRoots { seq: *seq, found, needed: set.threshold });
        }
        Ok(())
    }

    /// The set of root keys that is meant, in exactly this text.
    fn set_named(&self, named: &RootsRef) -> Option<&'a Roots> {
        let mut all = self.chain.roots.iter();
        let found = all.find(|roots| roots.content().version == named.version)?;
        (found.digest() == named.digest).then_some(found.content())
    }

    fn end(mut self, waiting: Option<Waiting>, now: Timestamp) -> Result<Followed, Refusal> {
        let nothing_known = self.is_searching && waiting.is_none() && !self.chain.statements.is_empty();
        if nothing_known {
            return Err(Refusal::NoneKnown);
        }
        if let Some(unknown) = self.unknown.filter(|_| !self.is_followed) {
            return Err(unknown);
        }
        if let Some(last) = self.last.filter(|last| last.expires <= now) {
            return Err(Refusal::Expired { seq: last.seq, expires: last.expires });
        }
        let (due, pending): (Vec<Pending>, Vec<Pending>) =
            self.memory.pending.into_iter().partition(|pending| pending.at <= now);
        self.memory.pending = pending;
        self.trusted.retain(|key| due.iter().all(|due| due.key != *key));
        if self.trusted.is_empty() {
            return Err(Refusal::NothingLeft);
        }
        if self.memory.roots.is_some() {
            self.memory.roots = self.chain.roots.last().map(|roots| roots.content().reference());
        }
        let not_in = |keys: &[PublicKey], others: &[PublicKey]| {
            keys.iter().filter(|key| !others.contains(key)).cloned().collect::<Vec<_>>()
        };
        Ok(Followed {
            added: not_in(&self.trusted, &self.before),
            removed: not_in(&self.before, &self.trusted),
            trusted: self.trusted,
            memory: self.memory,
            waiting,
        })
    }
}

#[cfg(test)]
mod tests;

//! A signature log read critically, leaf by leaf: whether each signature is its key's, whether the log announced that
//! key, and whether the token behind it was issued and not yet revoked. With a `ledger`, also what lies in a bucket,
//! held against the leaves.
//!
//! Never reads a file, never asks a server, and never remembers a leaf: what it keeps is keys and tokens. That the
//! leaves are those that the log signed is for whoever reads them.

mod ledger;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use self::ledger::Ledger;
pub use self::ledger::{Awaited, Fault, Judged};
use crate::nix::signature::{PublicKey, Signature, verify_all};
use crate::tlog::leaf::{
    ClaimLines, Commitment, Covered, Disclosed, Event, KeyEvent, Leaf, LeafError, PathLines, References,
    Salt, Signed, Word,
};

/// Findings that are named; more are counted.
pub const FINDINGS_NAMED_MAX: usize = 1000;

/// Signatures that are verified together. More make each of them cheaper, up to about here.
const BATCH: usize = 1024;

/// What is wrong with a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Leaves are missing, so that nobody can read what was signed.
    Gap,
    /// What was published is not what the root stands for.
    Tampered,
    /// A text that is no leaf.
    Unparsable,
    /// A signature that is not its key's over the claim of its leaf.
    Signature,
    /// A claim that Nix could not have signed.
    Claim,
    /// A signature by a key that no leaf before it announced, or a key that was announced badly.
    UnknownKey,
    /// An act with a token that was revoked before.
    AfterRevocation,
    /// An act with a token that no leaf before it issued.
    UnissuedToken,
    /// The list of references that the leaf has the digest of is missing, or is another.
    References,
    /// What was shown for a commitment is not what it is to.
    Opening,
    /// `replaces` does not name a leaf before.
    Replaces,
    /// A narinfo that no leaf signed.
    NarinfoUnaccounted,
    /// A narinfo that is not as its leaf has it, or not as narvault writes one.
    NarinfoDiffers,
    /// A path that is to be served has no narinfo.
    NarinfoMissing,
    /// A cache that leaves tell of openly may not be read, so that nothing in it was looked at.
    CacheHidden,
    /// A narinfo of a path that a leaf took away.
    NarinfoWithdrawn,
    /// The NAR that a narinfo names is not there.
    NarMissing,
    /// It has another size than the narinfo says.
    NarDiffers,
    /// A build trace entry that no leaf signed.
    EntryUnaccounted,
    /// A build trace entry that is not what its leaf signed.
    EntryDiffers,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// The leaf, where it is about one.
    pub index: Option<u64>,
    pub what: String,
}

/// A leaf of an event that this version does not know: shown, not refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    pub index: u64,
    pub event: String,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub leaves: u64,
    /// Signatures over store paths that verify.
    pub signatures: u64,
    /// Signatures whose claim stands behind a commitment that was not opened.
    pub hidden: u64,
    /// Signatures over build trace entries, which the leaf does not show.
    pub realisations: u64,
    /// Those of them that verify over an entry in the bucket that was looked at.
    pub realisations_verified: u64,
    /// Public paths whose narinfo in that bucket has the signature of its leaf.
    pub narinfos: u64,
    /// How many leaves there are of each event.
    pub events: BTreeMap<String, u64>,
    /// At most [`FINDINGS_NAMED_MAX`] of them.
    pub unknown: Vec<Unknown>,
    /// At most [`FINDINGS_NAMED_MAX`] of them.
    pub findings: Vec<Finding>,
    pub finding_count: u64,
}

/// What a leaf leaves out, as far as it was to be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// The list that the leaf, or its private lines, have the digest of.
    pub references: Option<String>,
    /// Salt and lines of the commitment.
    pub private: Option<(Salt, String)>,
}

/// What has to come beside a leaf for its signature to be checked, and for what it does to a path to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// The list of references with this digest.
    References([u8; 32]),
    /// The opening of its private lines.
    Opening,
}

/// What has to come beside `leaf`, if anything.
pub fn needed(leaf: &Leaf) -> Option<Needed> {
    let hides = match &leaf.event {
        Event::Sign(signed) | Event::Resign(signed) => match &signed.claim {
            Disclosed::Open(ClaimLines { references: References::Digest(digest), .. }) => {
                return Some(Needed::References(*digest));
            }
            claim => is_private(claim),
        },
        Event::Realisation(signed) => is_private(&signed.claim),
        Event::Withdraw(lines) | Event::Delete(lines) | Event::Restore(lines) => is_private(lines),
        Event::CacheDelete(line) => is_private(line),
        _ => false,
    };
    hides.then_some(Needed::Opening)
}

fn is_private<T: Covered>(lines: &Disclosed<T>) -> bool {
    matches!(lines, Disclosed::Private(_))
}

/// A signature that waits for others.
struct Waiting {
    index: u64,
    /// In [`Auditor::announced`].
    key: usize,
    message: String,
    signature: Signature,
}

/// Takes the leaves of a log in their order, from the first on.
#[derive(Default)]
pub struct Auditor {
    announced: Vec<PublicKey>,
    by_name: HashMap<String, usize>,
    issued: HashSet<Word>,
    /// And the leaf that revoked it.
    revoked: HashMap<Word, u64>,
    waiting: Vec<Waiting>,
    ledger: Option<Ledger>,
    report: Report,
}

impl Auditor {
    /// Begins before the first leaf.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something that was found about the log beside its leaves, or by who reads them.
    pub fn finding(&mut self, kind: FindingKind, index: Option<u64>, what: String) {
        self.report.finding_count += 1;
        if self.report.findings.len() < FINDINGS_NAMED_MAX {
            self.report.findings.push(Finding { kind, index, what });
        }
    }

    /// Takes the leaf at `index`, and what it leaves out.
    pub fn leaf(&mut self, index: u64, leaf: Result<Leaf, LeafError>, beside: &Beside) {
        self.report.leaves += 1;
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(error) => return self.finding(FindingKind::Unparsable, Some(index), error.to_string()),
        };
        self.count(index, &leaf);
        self.check_token(index, &leaf);
        if let Some(ledger) = &mut self.ledger {
            ledger.leaf(index, &leaf, beside);
        }
        match &leaf.event {
            Event::Sign(signed) | Event::Resign(signed) => {
                self.check_replaces(index, signed);
                self.check_signed(index, signed, beside);
            }
            Event::Realisation(signed) => {
                self.report.realisations += 1;
                if !self.by_name.contains_key(signed.key.as_str()) {
                    self.unknown_key(index, &signed.key);
                }
            }
            Event::KeyCreate(key) => self.announce(index, key),
            Event::TokenIssue(token) => {
                self.issued.insert(token.clone());
            }
            Event::TokenRevoke(token) => {
                self.revoked.entry(token.clone()).or_insert(index);
            }
            Event::Withdraw(lines) | Event::Delete(lines) | Event::Restore(lines) => {
                self.check_path(index, lines, beside);
            }
            _ => {}
        }
    }

    /// What came out, once every leaf was taken.
    pub fn finish(mut self) -> Report {
        self.verify_waiting();
        if let Some(ledger) = &self.ledger {
            self.report.realisations_verified = ledger.verified_entries();
            self.report.narinfos = ledger.narinfos();
        }
        self.report.findings.sort_by_key(|finding| finding.index);
        self.report
    }

    fn count(&mut self, index: u64, leaf: &Leaf) {
        let event = leaf.event.name();
        let events = &mut self.report.events;
        if let Some(count) = events.get_mut(event) {
            *count += 1;
        // A hostile log may have a name of its own for each leaf.
        } else if events.len() < FINDINGS_NAMED_MAX {
            events.insert(event.to_owned(), 1);
        }
        if matches!(leaf.event, Event::Unknown(_)) && self.report.unknown.len() < FINDINGS_NAMED_MAX {
            self.report.unknown.push(Unknown { index, event: event.to_owned() });
        }
    }

    fn check_token(&mut self, index: u64, leaf: &Leaf) {
        let Some(token) = &leaf.token else { return };
        // One call that revokes many is several leaves, and its own token may be among the first. What a takedown does to
        // paths comes batch by batch, and early versions wrote down who had asked for it: alive then, maybe not any more.
        let is_late = matches!(leaf.event, Event::TokenRevoke(_) | Event::Withdraw(_) | Event::Restore(_));
        if let Some(revoked) = self.revoked.get(token)
            && !is_late
        {
            let event = leaf.event.name();
            let what = format!("{event} with token {token}, which leaf {revoked} had revoked");
            self.finding(FindingKind::AfterRevocation, Some(index), what);
        }
        if !self.issued.contains(token) {
            let what = format!("{} with token {token}, which no leaf issued", leaf.event.name());
            self.finding(FindingKind::UnissuedToken, Some(index), what);
        }
    }

    fn check_replaces(&mut self, index: u64, signed: &Signed) {
        if let Some(replaces) = signed.basis.replaces.filter(|replaces| *replaces >= index) {
            let what = format!("it replaces leaf {replaces}, which does not come before it");
            self.finding(FindingKind::Replaces, Some(index), what);
        }
    }

    /// Whether what was shown for a path that a leaf moves is what that hides.
    fn check_path(&mut self, index: u64, lines: &Disclosed<PathLines>, beside: &Beside) {
        if let Disclosed::Private(commitment) = lines
            && let Err(Unclear::Wrong(kind, what)) = opened::<PathLines>(commitment, beside)
        {
            self.finding(kind, Some(index), what.to_owned());
        }
    }

    fn check_signed(&mut self, index: u64, signed: &Signed, beside: &Beside) {
        let Some(&key) = self.by_name.get(signed.key.as_str()) else {
            return self.unknown_key(index, &signed.key);
        };
        let claim = match shown_claim(&signed.claim, beside) {
            Ok(claim) => claim,
            Err(Unclear::Hidden) => return self.report.hidden += 1,
            Err(Unclear::Wrong(kind, what)) => return self.finding(kind, Some(index), what.to_owned()),
        };
        let Some(message) = claim.fingerprint() else {
            return self.finding(FindingKind::Claim, Some(index), "a part of the claim is not known".into());
        };
        let signature = Signature { name: self.announced[key].name().clone(), bytes: signed.sig.0 };
        self.waiting.push(Waiting { index, key, message, signature });
        if self.waiting.len() >= BATCH {
            self.verify_waiting();
        }
    }

    fn verify_waiting(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        let announced = &self.announced;
        let parts = |one: &Waiting| announced[one.key].verify(one.message.as_bytes(), &one.signature);
        let all = waiting.iter().map(|one| (&announced[one.key], one.message.as_bytes(), &one.signature));
        let forged: Vec<(u64, String)> = if verify_all(all) {
            Vec::new()
        } else {
            let forged = waiting.iter().filter(|one| !parts(one));
            forged.map(|one| (one.index, one.signature.name.to_string())).collect()
        };
        self.report.signatures += (waiting.len() - forged.len()) as u64;
        for (index, key) in forged {
            let what = format!("the signature is not one of {key} over the claim in the leaf");
            self.finding(FindingKind::Signature, Some(index), what);
        }
    }

    fn announce(&mut self, index: u64, event: &KeyEvent) {
        let name = event.key.as_str();
        let parsed = event.public_key.as_ref().and_then(|key| key.as_str().parse::<PublicKey>().ok());
        match parsed.filter(|key| key.name().as_str() == name) {
            // Names are given once: a second key under one of them would sign for the first.
            Some(key) if !self.by_name.contains_key(name) => {
                self.by_name.insert(name.to_owned(), self.announced.len());
                self.announced.push(key);
            }
            Some(_) => {
                let what = format!("the key {name} is announced a second time");
                self.finding(FindingKind::UnknownKey, Some(index), what);
            }
            None => {
                let what = format!("the key {name} is announced without its public key");
                self.finding(FindingKind::UnknownKey, Some(index), what);
            }
        }
    }

    fn unknown_key(&mut self, index: u64, key: &Word) {
        let what = format!("it is signed by {key}, a key that no leaf before it announced");
        self.finding(FindingKind::UnknownKey, Some(index), what);
    }
}

/// Why there is no whole claim.
enum Unclear {
    Hidden,
    Wrong(FindingKind, &'static str),
}

/// The claim with its references, opened where it is private.
fn shown_claim<'a>(
    claim: &'a Disclosed<ClaimLines>,
    beside: &Beside,
) -> Result<Cow<'a, ClaimLines>, Unclear> {
    let lines = match claim {
        Disclosed::Open(lines) => Cow::Borrowed(lines),
        Disclosed::Private(commitment) => Cow::Owned(opened(commitment, beside)?),
    };
    if matches!(lines.references, References::List(_)) {
        return Ok(lines);
    }
    let list = beside.references.as_deref();
    let list = list.ok_or(Unclear::Wrong(FindingKind::References, "its list of references is missing"))?;
    let wrong = || Unclear::Wrong(FindingKind::References, "its list of references is another");
    let references = lines.references.resolved(list).ok_or_else(wrong)?;
    Ok(Cow::Owned(ClaimLines { references, ..lines.into_owned() }))
}

/// What a leaf says openly, or what was shown for it; `None` where that is nothing, or not what it hides.
fn shown<'a, T: Covered + Clone>(lines: &'a Disclosed<T>, beside: &Beside) -> Option<Cow<'a, T>> {
    match lines {
        Disclosed::Open(lines) => Some(Cow::Borrowed(lines)),
        Disclosed::Private(commitment) => opened(commitment, beside).ok().map(Cow::Owned),
    }
}

fn opened<T: Covered>(commitment: &Commitment, beside: &Beside) -> Result<T, Unclear> {
    let (salt, lines) = beside.private.as_ref().ok_or(Unclear::Hidden)?;
    if !commitment.opens(salt, lines.as_bytes()) {
        return Err(Unclear::Wrong(FindingKind::Opening, "what was shown for it is not what it commits to"));
    }
    T::parse(lines)
        .map_err(|_| Unclear::Wrong(FindingKind::Opening, "what it commits to is not what such a leaf hides"))
}

#[cfg(test)]
mod tests;

//! What a log's leaves account for, held against what lies in a bucket: narinfos and build trace entries, both ways.
//!
//! Never reads a bucket, and keeps no text: some 300 bytes for each path. What the log does not know of a narinfo
//! (`Deriver`, and which NAR of the right size it names) it cannot tell either.

use std::collections::HashMap;

use super::{Auditor, Beside, FindingKind, is_private, shown, shown_claim};
use crate::nix::compression::NarFileName;
use crate::nix::content_address::ContentAddress;
use crate::nix::hash::Sha256Digest;
use crate::nix::narinfo::{NarInfo, NarInfoText};
use crate::nix::realisation::{Realisation, RealisationKey};
use crate::nix::signature::Signature;
use crate::nix::store_path::{StorePath, StorePathHash};
use crate::tlog::leaf::{CacheLine, Disclosed, Event, Leaf, PathLines, Signed, Word};

/// Something that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FindingKind,
    /// The leaf that says otherwise, where there is one.
    pub leaf: Option<u64>,
    pub what: String,
}

/// What a narinfo came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    pub faults: Vec<Fault>,
    /// The NAR that it names, and how many bytes that has to have.
    pub nar: Option<(NarFileName, u64)>,
}

impl Judged {
    fn fault(&mut self, kind: FindingKind, leaf: Option<u64>, what: impl Into<String>) {
        self.faults.push(Fault { kind, leaf, what: what.into() });
    }

    fn only(kind: FindingKind, what: impl Into<String>) -> Self {
        let mut judged = Self::default();
        judged.fault(kind, None, what);
        judged
    }
}

/// A path that is to be served, by the leaves' word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// The leaf that signed it last.
    pub leaf: u64,
    /// The cache's name.
    pub cache: String,
    pub hash: StorePathHash,
}

/// 128 bits of a SHA-256: to find another text with the same is out of reach, and a million of them are 16 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Short([u8; 16]);

impl Short {
    fn of(bytes: &[u8]) -> Self {
        let mut short = [0; 16];
        short.copy_from_slice(&Sha256Digest::of(bytes).0[..16]);
        Self(short)
    }

    fn of_signature(key: &str, signature: &[u8; 64]) -> Self {
        Self::of(&[key.as_bytes(), &[0], signature].concat())
    }
}

/// A path, by the place of its cache in [`Ledger::caches`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    cache: usize,
    hash: StorePathHash,
}

/// The leaves that a signature is known for.
#[derive(Debug)]
struct Account {
    /// The last one.
    leaf: u64,
    /// How many.
    leaves: u64,
    /// Of the claim's fingerprint, or of the output path of an entry; `None`: the leaves hide it.
    about: Option<Short>,
    /// `None`: the leaves hide it.
    cache: Option<usize>,
    is_entry: bool,
    /// Whether an entry was seen that it verifies over.
    verified: bool,
}

/// How a path stands.
#[derive(Debug)]
struct Standing {
    /// The leaf that signed it last, and its signature.
    leaf: u64,
    signature: Short,
    /// The leaf that took it away.
    gone: Option<u64>,
    /// The last leaf that says how it stands, and whether that hides it from those who may not pull.
    told: u64,
    is_private: bool,
    /// Whether a narinfo with that signature was seen.
    seen: bool,
}

/// What the leaves so far account for.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Names, and the leaf that deleted the cache.
    caches: Vec<(String, Option<u64>)>,
    by_name: HashMap<String, usize>,
    accounts: HashMap<Short, Account>,
    paths: HashMap<Place, Standing>,
    /// The NarHash that each file was named for first.
    files: HashMap<NarFileName, Short>,
    /// The last leaf that takes a path of a private cache away, or brings one back, or does away with such a cache, and
    /// that was not opened.
    hidden: Option<u64>,
}

impl Ledger {
    pub fn leaf(&mut self, index: u64, leaf: &Leaf, beside: &Beside) {
        match &leaf.event {
            Event::Sign(signed) | Event::Resign(signed) => self.sign(index, signed, beside),
            Event::Realisation(signed) => {
                let claim = shown(&signed.claim, beside);
                let about = claim.map(|claim| Short::of(claim.path.as_str().as_bytes()));
                self.account(index, signed, about, true, beside);
            }
            Event::Withdraw(lines) | Event::Delete(lines) => {
                self.move_path(index, lines, Some(index), beside);
            }
            Event::Restore(lines) => self.move_path(index, lines, None, beside),
            Event::CacheDelete(line) => match shown(line, beside).as_deref() {
                Some(CacheLine { cache: Some(name) }) => {
                    let cache = self.cache(name);
                    self.caches[cache].1 = Some(index);
                }
                Some(CacheLine { cache: None }) => {}
                None => self.hidden = Some(index),
            },
            _ => {}
        }
    }

    fn sign(&mut self, index: u64, signed: &Signed, beside: &Beside) {
        let claim = shown_claim(&signed.claim, beside).ok();
        let about =
            claim.and_then(|claim| claim.fingerprint()).map(|fingerprint| Short::of(fingerprint.as_bytes()));
        let signature = self.account(index, signed, about, false, beside);
        // What nobody opened is not awaited: its withdrawal would not be known either.
        let Some(claim) = shown(&signed.claim, beside) else { return };
        if let Some(place) = self.place(&claim.cache, &claim.path) {
            let is_private = is_private(&signed.claim);
            let standing =
                Standing { leaf: index, signature, gone: None, told: index, is_private, seen: false };
            self.paths.insert(place, standing);
        }
    }

    fn account(
        &mut self,
        index: u64,
        signed: &Signed,
        about: Option<Short>,
        is_entry: bool,
        beside: &Beside,
    ) -> Short {
        let id = Short::of_signature(signed.key.as_str(), &signed.sig.0);
        let cache = shown(&signed.claim, beside).map(|claim| self.cache(&claim.cache));
        let new = Account { leaf: index, leaves: 0, about, cache, is_entry, verified: false };
        let account = self.accounts.entry(id).or_insert(new);
        account.leaf = index;
        account.leaves += 1;
        id
    }

    fn move_path(&mut self, index: u64, lines: &Disclosed<PathLines>, gone: Option<u64>, beside: &Beside) {
        let is_private = is_private(lines);
        let Some(lines) = shown(lines, beside) else {
            self.hidden = Some(index);
            return;
        };
        if let Some(place) = self.place(&lines.cache, &lines.path)
            && let Some(standing) = self.paths.get_mut(&place)
        {
            (standing.gone, standing.told, standing.is_private) = (gone, index, is_private);
        }
    }

    /// Whether a later leaf, which nobody opened, may say something else of a path.
    fn may_have_moved(&self, standing: &Standing) -> bool {
        standing.is_private && self.hidden > Some(standing.told)
    }

    fn cache(&mut self, name: &Word) -> usize {
        if let Some(&cache) = self.by_name.get(name.as_str()) {
            return cache;
        }
        self.caches.push((name.to_string(), None));
        self.by_name.insert(name.to_string(), self.caches.len() - 1);
        self.caches.len() - 1
    }

    fn place(&mut self, cache: &Word, path: &Word) -> Option<Place> {
        let hash = StorePath::from_absolute(path.as_str()).ok()?.hash();
        Some(Place { cache: self.cache(cache), hash })
    }

    /// How many leaves about build trace entries were verified by these.
    pub fn verified_entries(&self) -> u64 {
        self.accounts.values().filter(|account| account.verified).map(|account| account.leaves).sum()
    }

    /// Paths that a narinfo was seen for, as their leaves have it.
    pub fn narinfos(&self) -> u64 {
        self.paths.values().filter(|standing| standing.seen).count() as u64
    }
}

impl Auditor {
    /// Begins before the first leaf, and keeps what is needed to judge what lies in a bucket.
    pub fn with_ledger() -> Self {
        Self { ledger: Some(Ledger::default()), ..Self::default() }
    }

    /// Judges the narinfo that lies below `prefix` under the name of `hash`, by the leaves so far. May be asked again
    /// after more of them.
    pub fn narinfo(&mut self, prefix: &str, hash: StorePathHash, body: &[u8]) -> Judged {
        let narinfo = match NarInfo::parse(body) {
            Ok(narinfo) => narinfo,
            Err(error) => return Judged::only(FindingKind::NarinfoDiffers, error.to_string()),
        };
        if narinfo.claim.path.hash() != hash {
            return Judged::only(FindingKind::NarinfoDiffers, "it is of another path");
        }
        let mut judged = Judged::default();
        if let Some(what) = unlike_written(&narinfo, body) {
            judged.fault(FindingKind::NarinfoDiffers, None, what);
        }
        let ids: Vec<Short> = narinfo
            .signatures
            .iter()
            .map(|signature| Short::of_signature(signature.name.as_str(), &signature.bytes))
            .collect();
        self.judge_signatures(&narinfo, &ids, &mut judged);
        let Some(ledger) = &mut self.ledger else { return judged };
        ledger.judge_place(prefix, hash, &ids, &mut judged);
        judged.nar = narinfo.file_size.map(|size| (narinfo.file, size));
        let nar_hash = Short::of(narinfo.claim.nar_hash.to_string().as_bytes());
        if *ledger.files.entry(narinfo.file).or_insert(nar_hash) != nar_hash {
            let what = "its NAR is named for another NarHash too";
            judged.fault(FindingKind::NarinfoDiffers, None, what);
        }
        judged
    }

    /// Whether each signature that a leaf accounts for is over this claim.
    fn judge_signatures(&self, narinfo: &NarInfo, ids: &[Short], judged: &mut Judged) {
        let Some(ledger) = &self.ledger else { return };
        let fingerprint = narinfo.claim.fingerprint();
        let about = Short::of(fingerprint.as_bytes());
        for (signature, id) in narinfo.signatures.iter().zip(ids) {
            let Some(account) = ledger.accounts.get(id).filter(|account| !account.is_entry) else { continue };
            let is_it = match account.about {
                Some(expected) => expected == about,
                None => self.verifies(&fingerprint, signature),
            };
            if !is_it {
                let what = "its path, NarHash, NarSize or References are not what that leaf signed";
                judged.fault(FindingKind::NarinfoDiffers, Some(account.leaf), what);
            }
        }
    }

    /// Judges the build trace entry under `key`, and takes what its signatures are over for what their leaves are about.
    pub fn entry(&mut self, key: RealisationKey, body: &[u8]) -> Vec<Fault> {
        let fault = |kind, leaf, what: String| Fault { kind, leaf, what };
        let entry = match Realisation::parse(key, body) {
            Ok(entry) => entry,
            Err(error) => return vec![fault(FindingKind::EntryDiffers, None, error.to_string())],
        };
        let (fingerprint, output) = (entry.fingerprint(), Short::of(entry.out_path.to_string().as_bytes()));
        let mut faults = Vec::new();
        let mut is_known = false;
        for signature in &entry.signatures {
            let id = Short::of_signature(signature.name.as_str(), &signature.bytes);
            let verifies = self.verifies(&fingerprint, signature);
            let accounts = self.ledger.as_mut().map(|ledger| &mut ledger.accounts);
            let Some(account) = accounts.and_then(|accounts| accounts.get_mut(&id)) else { continue };
            is_known = true;
            if !account.is_entry || !verifies {
                let what = "it is not what that leaf signed".to_owned();
                faults.push(fault(FindingKind::EntryDiffers, Some(account.leaf), what));
            } else if account.about.is_some_and(|about| about != output) {
                let what = "its output is not the path of that leaf".to_owned();
                faults.push(fault(FindingKind::EntryDiffers, Some(account.leaf), what));
            } else {
                account.verified = true;
            }
        }
        if !is_known {
            let what = "no leaf accounts for any of its signatures".to_owned();
            faults.push(fault(FindingKind::EntryUnaccounted, None, what));
        }
        faults
    }

    /// Paths that are to be served, by the leaves so far, and whose narinfo was not seen as it should be. Of those of
    /// private caches the ones whose leaves were opened.
    pub fn awaited(&self) -> Vec<Awaited> {
        let Some(ledger) = &self.ledger else { return Vec::new() };
        let awaited = ledger.paths.iter().filter_map(|(place, standing)| {
            let (name, deleted) = &ledger.caches[place.cache];
            let is_served = standing.gone.is_none() && deleted.is_none();
            let is_awaited = is_served && !standing.seen && !ledger.may_have_moved(standing);
            is_awaited.then(|| Awaited { leaf: standing.leaf, cache: name.clone(), hash: place.hash })
        });
        let mut awaited: Vec<_> = awaited.collect();
        awaited.sort_by_key(|one| one.leaf);
        awaited
    }

    /// Whether the key of this name made `signature` over `message`. False where no leaf announced it.
    fn verifies(&self, message: &str, signature: &Signature) -> bool {
        let key = self.by_name.get(signature.name.as_str()).map(|&key| &self.announced[key]);
        key.is_some_and(|key| key.verify(message.as_bytes(), signature))
    }
}

impl Ledger {
    /// Whether a path of the cache that lies here is to be served, and with one of these signatures.
    fn judge_place(&mut self, prefix: &str, hash: StorePathHash, ids: &[Short], judged: &mut Judged) {
        let accounts = ids.iter().filter_map(|id| self.accounts.get(id)).filter(|account| !account.is_entry);
        let accounts: Vec<&Account> = accounts.collect();
        let Some(first) = accounts.first() else {
            let what = "no leaf accounts for any of its signatures";
            return judged.fault(FindingKind::NarinfoUnaccounted, None, what);
        };
        // A cache lies below its name, unless somebody wanted it elsewhere.
        let here = self.by_name.get(prefix).copied();
        let of_here = accounts.iter().find(|account| account.cache.is_some() && account.cache == here);
        let are_known = accounts.iter().all(|account| account.cache.is_some());
        if of_here.is_none() && here.is_some() && are_known {
            let what = "no leaf accounts for it in this cache";
            return judged.fault(FindingKind::NarinfoUnaccounted, Some(first.leaf), what);
        }
        let Some(cache) = of_here.unwrap_or(first).cache else { return };
        let deleted = self.caches[cache].1;
        let place = Place { cache, hash };
        if self.paths.get(&place).is_some_and(|standing| self.may_have_moved(standing)) {
            return;
        }
        let Some(standing) = self.paths.get_mut(&place) else { return };
        if let Some(gone) = standing.gone.or(deleted) {
            judged.fault(FindingKind::NarinfoWithdrawn, Some(gone), "that leaf took it away");
        } else if ids.contains(&standing.signature) {
            standing.seen = true;
        } else {
            let what = "it lacks the signature of that leaf, the last one about its path";
            judged.fault(FindingKind::NarinfoDiffers, Some(standing.leaf), what);
            // It is there, if not as it should be.
            standing.seen = true;
        }
    }
}

/// What narvault would not have written so: it prints each field once, in one order, and no `CA` that nobody checked.
fn unlike_written(narinfo: &NarInfo, body: &[u8]) -> Option<&'static str> {
    let NarInfo { claim, file, compression, file_size, deriver, signatures, ca } = narinfo;
    let Some(file_size) = *file_size else { return Some("it has no FileSize") };
    let (file, compression) = (*file, *compression);
    let text = NarInfoText {
        claim,
        file,
        compression,
        file_size,
        deriver: deriver.as_ref(),
        signatures,
        ca: ca.as_ref(),
    };
    if text.to_string().as_bytes() != body {
        return Some("narvault would not write its lines so");
    }
    let is_another = |ca: &ContentAddress| {
        let path = ca.store_path(claim.path.name(), &claim.references);
        !ca.is_recomputed(&claim.path, &claim.references) || path.as_ref() != Ok(&claim.path)
    };
    ca.as_ref().filter(|ca| is_another(ca)).map(|_| "its CA is not that of its path")
}

#[cfg(test)]
mod tests;

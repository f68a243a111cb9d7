//! Leaves of a path or a signature, looked for in a published log, and the proof of one: with nothing but the log's files,
//! so that neither the server nor a narinfo has to be left.
//!
//! Never finds what a private cache hides, but by its signature: those leaves name no path.

use std::str::FromStr;

use super::super::args::PathArg;
use super::super::failure::{Exit, Failure};
use super::place::{LogPlace, Trust};
use super::reader::{BUNDLES_AT_ONCE, LogReader, contradiction};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use crate::tlog::leaf::{ClaimLines, Disclosed, Event, Leaf, PathLines, References, Signed};
use crate::tlog::proof_file::ProofFile;
use crate::tlog::shown_leaf::ShownLeaf;
use crate::tlog::tile::TILE_WIDTH;

/// Which leaf, or leaves, of a log.
#[derive(Debug, Clone)]
pub enum LeafArg {
    /// By its place, counted from 0.
    Index(u64),
    /// All that name this path, in whichever cache.
    Path(PathArg),
    /// The one that tells of this signature, as it stands after `Sig: `.
    Signature(Signature),
}

/// Why a text names no leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("names no leaf: give its index, a store path or its hash, or a signature as `name:base64`")]
pub struct ParseLeafArgError;

impl FromStr for LeafArg {
    type Err = ParseLeafArgError;

    fn from_str(text: &str) -> Result<Self, ParseLeafArgError> {
        if let Ok(index) = text.parse() {
            return Ok(Self::Index(index));
        }
        if text.contains(':') {
            return text.parse().map(Self::Signature).map_err(|_| ParseLeafArgError);
        }
        text.parse().map(Self::Path).map_err(|_| ParseLeafArgError)
    }
}

/// What a leaf has to tell of.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `None`: in any cache.
    pub cache: Option<String>,
    pub path: Option<PathArg>,
    /// Made by the key of this name.
    pub key: Option<String>,
    pub signature: Option<Signature>,
}

impl Wanted {
    /// Whether a leaf is about this path, or this signature.
    pub fn is_in(&self, leaf: &Leaf) -> bool {
        let (cache, path) = match named(&leaf.event) {
            Some((cache, path)) => (Some(cache), StorePath::from_absolute(path).ok()),
            None => (None, None),
        };
        let is =
            |wanted: Option<&str>, found: Option<&str>| wanted.is_none_or(|wanted| found == Some(wanted));
        let signed = signed(&leaf.event);
        is(self.cache.as_deref(), cache)
            && is(self.key.as_deref(), signed.map(|signed| signed.key.as_str()))
            && self.path.is_none_or(|wanted| path.is_some_and(|path| path.hash() == wanted.0))
            && self.signature.as_ref().is_none_or(|wanted| {
                signed.is_some_and(|signed| {
                    signed.key.as_str() == wanted.name.as_str() && signed.sig.0 == wanted.bytes
                })
            })
    }
}

/// The cache and the path that an event is about, where it shows them.
fn named(event: &Event) -> Option<(&str, &str)> {
    match event {
        Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed) => claimed(&signed.claim),
        Event::Attest(attested) => claimed(&attested.claim),
        Event::Withdraw(Disclosed::Open(PathLines { cache, path, .. }))
        | Event::Delete(Disclosed::Open(PathLines { cache, path, .. }))
        | Event::Restore(Disclosed::Open(PathLines { cache, path, .. }))
        | Event::Conflict(Disclosed::Open(PathLines { cache, path, .. })) => {
            Some((cache.as_str(), path.as_str()))
        }
        _ => None,
    }
}

fn claimed(claim: &Disclosed<ClaimLines>) -> Option<(&str, &str)> {
    match claim {
        Disclosed::Open(ClaimLines { cache, path, .. }) => Some((cache.as_str(), path.as_str())),
        Disclosed::Private(_) => None,
    }
}

/// The signature that an event tells of, over a path or over a build trace entry.
fn signed(event: &Event) -> Option<&Signed> {
    match event {
        Event::Sign(signed) | Event::Resign(signed) | Event::Realisation(signed) => Some(signed),
        _ => None,
    }
}

/// Every leaf that `wanted` tells of, in order, with its index.
pub async fn leaves(reader: &mut LogReader<'_>, wanted: &Wanted) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
    let (mut found, mut next) = (Vec::new(), 0);
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            found.extend(in_bundle(reader, bundle, wanted)?);
        }
    }
    Ok(found)
}

fn in_bundle(
    reader: &mut LogReader<'_>,
    bundle: u64,
    wanted: &Wanted,
) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
    let entries = reader.entries(bundle).map_err(contradiction)?;
    let entries = (bundle * u64::from(TILE_WIDTH)..).zip(entries);
    Ok(entries.filter(|(_, text)| Leaf::parse(text).is_ok_and(|leaf| wanted.is_in(&leaf))).collect())
}

/// The proof of the newest signature over a path that `wanted` tells of: the log is read from its end.
pub async fn prove(place: &LogPlace, trust: &Trust, wanted: &Wanted) -> Result<ProofFile, Failure> {
    let (checkpoint, note) = place.checkpoint(&place.policy(trust).await?).await?;
    let mut reader = LogReader::open(place, &checkpoint).await?.map_err(contradiction)?;
    let mut end = reader.bundles();
    while end > 0 {
        let first = end.saturating_sub(BUNDLES_AT_ONCE);
        reader.fetch_bundles(first).await?;
        for bundle in (first..end).rev() {
            let found = in_bundle(&mut reader, bundle, wanted)?.into_iter().rev();
            let mut signatures = found.filter_map(|(index, text)| {
                let leaf = Leaf::parse(&text).ok()?;
                matches!(leaf.event, Event::Sign(_) | Event::Resign(_)).then_some((index, text, leaf))
            });
            let Some((index, text, leaf)) = signatures.next() else { continue };
            let hashes = reader.inclusion(index).await?.map_err(contradiction)?;
            let references = match signed(&leaf.event).map(|signed| &signed.claim) {
                Some(Disclosed::Open(ClaimLines { references: References::Digest(digest), .. })) => {
                    place.references(digest).await?
                }
                _ => None,
            };
            let leaf = String::from_utf8_lossy(&text).into_owned();
            let shown = ShownLeaf { leaf, references, private: None };
            return Ok(ProofFile {
                extra: Some(shown.encode().into_bytes()),
                index,
                hashes,
                checkpoint: note,
            });
        }
        end = first;
    }
    Err(nothing(checkpoint.size))
}

/// No leaf is about what was asked for.
pub fn nothing(size: u64) -> Failure {
    Failure::new(Exit::Failure, format!("none of the log's {size} leaves tells of it"))
        .hint("leaves of private caches do not name their paths; give the signature, or ask the server with a token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_a_path_and_a_signature_name_a_leaf_and_nothing_else_does() {
        let hash = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";
        let signature = format!("main-1:{}", data_encoding::BASE64.encode(&[7; 64]));
        assert!(matches!("17".parse(), Ok(LeafArg::Index(17))));
        for text in [hash.to_owned(), format!("{hash}-hello-2.12"), format!("/nix/store/{hash}-hello-2.12")] {
            assert!(matches!(text.parse(), Ok(LeafArg::Path(path)) if path.0.as_str() == hash), "{text}");
        }
        assert!(matches!(signature.parse(), Ok(LeafArg::Signature(_))));
        for text in ["", "-1", "main-1:", "/nix/store/x", "main-1:AAAA", "hello"] {
            assert!(text.parse::<LeafArg>().is_err(), "{text}");
        }
    }
}

//! What a proof file proves, to whoever trusts a log and the keys of a cache: checkpoint, inclusion, and the
//! signature over the claim that the leaf shows.
//!
//! Never reads a file and never asks a server.

use crate::nix::claim::{Claim, parse_references};
use crate::nix::signature::{KeyName, PublicKey, Signature};
use crate::nix::store_path::StorePath;
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::leaf::{ClaimLines, Leaf, LeafError, References};
use crate::tlog::policy::{DistrustError, Policy};
use crate::tlog::proof_file::{ProofFile, VerifyProofError};
use crate::tlog::shown_leaf::{ShownLeaf, ShownLeafError};

/// Why a proof file does not prove a signature.
#[derive(Debug, thiserror::Error)]
pub enum NotProved {
    #[error("the proof has no leaf with it")]
    NoLeaf,
    #[error("the checkpoint is not believed")]
    Checkpoint(#[from] DistrustError),
    #[error("the log does not have the leaf that comes with the proof")]
    Inclusion(#[from] VerifyProofError),
    #[error("the leaf does not show a signature")]
    Leaf(#[from] ShownLeafError),
    #[error("the leaf shows a claim that Nix does not know")]
    Claim,
    #[error("the leaf is of the key `{name}`, which is not among the trusted keys")]
    Untrusted { name: String },
    #[error("the signature in the leaf is not one of the trusted key `{name}`")]
    Forged { name: KeyName },
}

/// A signature that a log has, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// What Nix would accept because of it.
    pub claim: Claim,
    pub signature: Signature,
    /// The leaf's place in the log, counted from 0.
    pub index: u64,
    pub checkpoint: Checkpoint,
    /// When it was signed, by the server's clock.
    pub time: String,
    /// The id of the contributor who caused it.
    pub by: Option<String>,
    /// The id of the token that was used.
    pub token: Option<String>,
}

impl Proved {
    /// What `proof` proves under `policy`, to who trusts `keys`.
    pub fn check(proof: &ProofFile, policy: &Policy, keys: &[PublicKey]) -> Result<Self, NotProved> {
        let checkpoint = policy.open(&proof.checkpoint)?;
        let shown = ShownLeaf::parse(proof.extra.as_deref().ok_or(NotProved::NoLeaf)?)?;
        proof.proves(shown.leaf.as_bytes(), &checkpoint)?;

        let (signed, claim) = shown.signed()?;
        let claim = claim_of(&claim).ok_or(NotProved::Claim)?;
        let name = signed.key.as_str();
        let key = keys.iter().find(|key| key.name().as_str() == name);
        let key = key.ok_or_else(|| NotProved::Untrusted { name: name.to_owned() })?;
        let signature = Signature { name: key.name().clone(), bytes: signed.sig.0 };
        if !key.verify(claim.fingerprint().as_bytes(), &signature) {
            return Err(NotProved::Forged { name: key.name().clone() });
        }
        let leaf =
            Leaf::parse(shown.leaf.as_bytes()).map_err(|error: LeafError| ShownLeafError::from(error))?;
        Ok(Self {
            claim,
            signature,
            index: proof.index,
            checkpoint,
            time: leaf.time.to_string(),
            by: leaf.by.map(|by| by.to_string()),
            token: leaf.token.map(|token| token.to_string()),
        })
    }
}

/// The claim as Nix has it.
fn claim_of(lines: &ClaimLines) -> Option<Claim> {
    let References::List(words) = &lines.references else { return None };
    let references = words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
    Some(Claim {
        path: StorePath::from_absolute(lines.path.as_str()).ok()?,
        nar_hash: lines.nar_hash.as_ref()?.as_str().parse().ok()?,
        nar_size: lines.nar_size?,
        references: parse_references(&references).ok()?,
    })
}

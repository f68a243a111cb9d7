//! The signatures of a group, and the leaves that account for them.
//!
//! Many are made on another thread while the rows of their paths are written: behind the gate all the same, and thrown away
//! with a transaction that is given up. Nothing else in the service has the key of a cache sign a path that is pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::decide::{Accepted, Meets};
use super::group::Written;
use crate::db::log::LeafRow;
use crate::db::paths::MadeSignature;
use crate::db::signing_keys::KeyRow;
use crate::db::{Tx, log};
use crate::nix::signature::Signature;
use crate::service::leaves::LeafEvent;
use crate::service::memory::Signers;
use crate::service::{Error, Result, Service};

/// Leaves that wait for the log's lock, and the signatures that they account for.
#[derive(Default)]
pub(super) struct Leaves {
    pub rows: Vec<LeafRow>,
    /// Of each signature: its claim, itself, and its leaf's place among the rows.
    pub signatures: Vec<(String, Signature, usize)>,
    /// What their making took.
    pub took: Duration,
}

/// Signatures that are being made on another thread.
pub(super) struct Signing {
    accepted: usize,
    begun: Option<JoinHandle<Result<Aside>>>,
}

/// For each accepted path its signatures by all keys, or none.
type Aside = Vec<Option<Vec<Signature>>>;

impl Signing {
    /// Waits for them.
    pub async fn end(self) -> Result<Aside> {
        match self.begun {
            Some(begun) => begun.await.map_err(|panic| Error::Internal(panic.into()))?,
            None => Ok(vec![None; self.accepted]),
        }
    }
}

impl Service {
    /// Begins to sign those paths that never were here, where it pays.
    pub(super) fn sign_aside(&self, signers: &Arc<Signers>, accepted: &[Accepted<'_>]) -> Signing {
        let is_fresh = |one: &&Accepted<'_>| matches!(one.meets, Meets::Nothing);
        let signatures = accepted.iter().filter(is_fresh).count() * signers.keys.len();
        let begun = (signatures >= SIGNED_ASIDE_MIN).then(|| {
            let fingerprint = |one| is_fresh(&one).then(|| one.candidate.verified.claim().fingerprint());
            let fingerprints: Vec<Option<String>> = accepted.iter().map(fingerprint).collect();
            let (service, signers) = (self.clone(), Arc::clone(signers));
            tokio::task::spawn_blocking(move || {
                let sign = |fingerprint: String| {
                    let keys = signers.keys.iter();
                    keys.map(|key| service.sign_fingerprint(key, fingerprint.as_bytes()))
                        .collect::<Result<_>>()
                };
                fingerprints.into_iter().map(|fingerprint| fingerprint.map(sign).transpose()).collect()
            })
        });
        Signing { accepted: accepted.len(), begun }
    }

    /// Signs with each of `keys`, unless that has `begun`: one leaf for each signature.
    pub(super) async fn sign(
        &self,
        tx: &mut Tx,
        one: &Written<'_>,
        keys: &[&KeyRow],
        begun: Option<Vec<Signature>>,
        leaves: &mut Leaves,
    ) -> Result<Vec<Signature>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let claim = one.candidate.verified.claim();
        let replaces = if one.fresh { None } else { log::last_signature(tx, &one.path_id).await? };
        let made = match begun {
            Some(made) => made,
            None => {
                let fingerprint = claim.fingerprint();
                let sign = |key: &&KeyRow| self.sign_fingerprint(key, fingerprint.as_bytes());
                keys.iter().map(sign).collect::<Result<_>>()?
            }
        };
        for signature in &made {
            let event = LeafEvent::Sign { claim, signature, replaces };
            let making = Instant::now();
            let leaf = self.leaf_row(one.act.leaf(&one.path_id, event))?;
            leaves.took += making.elapsed();
            leaves.signatures.push((one.claim_id.clone(), signature.clone(), leaves.rows.len()));
            leaves.rows.push(leaf);
        }
        Ok(made)
    }
}

/// Writes leaves and signatures: the last lock.
pub(super) async fn append(tx: &mut Tx, leaves: &Leaves) -> Result<()> {
    let made = |first: i64| {
        let made = leaves.signatures.iter().map(|(claim_id, signature, at)| MadeSignature {
            claim_id: claim_id.clone(),
            signature: signature.clone(),
            leaf: first + i64::try_from(*at).unwrap_or(i64::MAX),
        });
        made.collect()
    };
    crate::service::log::append_signed(tx, &leaves.rows, made).await.map(drop)
}

/// So many signatures take longer than the way to another thread and back.
const SIGNED_ASIDE_MIN: usize = 4;

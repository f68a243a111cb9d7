//! Which signatures the log accounts for: made by a key whose row proves itself, over the claim as it stands now, and
//! told of by a leaf.
//!
//! What is signed again rests on this alone. A row that somebody wrote into the database has no such signature.

use std::collections::HashMap;

use crate::db::Connection;
use crate::db::paths::{PathRow, SignatureRow};
use crate::db::resigning;
use crate::db::signing_keys::{KeyRow, KeyState};
use crate::nix::signature::{PublicKey, Signature};
use crate::service::{Error, Result, Service};
use crate::tlog::leaf::{Event, Leaf};
use crate::vault::VaultError;

/// Public keys that belong to their sealed seeds, as the vault found.
pub(in crate::service) struct Proven(Vec<PublicKey>);

impl Proven {
    /// The key that bears the name of this signature, if the signature is its own over `message`.
    pub fn verifies(&self, signature: &Signature, message: &[u8]) -> bool {
        self.0.iter().any(|key| key.verify(message, signature))
    }

    fn has(&self, signature: &Signature) -> bool {
        self.0.iter().any(|key| *key.name() == signature.name)
    }
}

impl Service {
    /// Those of a cache's keys whose signatures count as made here: all that are to be trusted, and with `compromised`
    /// those as well that are not any more. One that does not prove itself is left out, and told of.
    pub(in crate::service) fn proven_keys(&self, keys: &[KeyRow], compromised: bool) -> Result<Proven> {
        let mut proven = Vec::new();
        for row in keys {
            let wanted = row.state.is_trusted() || compromised && row.state == KeyState::Compromised;
            // Of a destroyed key nothing is left to prove with, nor of one that was lost with a database: that the log
            // has its public half is what somebody could have written into the rows as well.
            if !wanted || row.is_erased() {
                continue;
            }
            self.require_open()?;
            match self.inner.keyring.prove(&row.key) {
                Ok(()) => proven.push(row.public_key.clone()),
                // It may well be genuine: this replica has to open the vault anew first.
                Err(VaultError::UnknownKek { .. }) if self.is_behind() => return Err(Error::Sealed),
                Err(error) => tracing::error!(
                    key = %row.public_key.name(),
                    error = &error as &dyn std::error::Error,
                    "the row of a key does not prove itself; its signatures count for nothing"
                ),
            }
        }
        Ok(Proven(proven))
    }

    /// The leaves that may account for the signatures on these paths.
    pub(super) async fn leaves_of(
        &self,
        connection: &mut Connection,
        proven: &Proven,
        signatures: &HashMap<String, Vec<SignatureRow>>,
    ) -> Result<HashMap<i64, String>> {
        let rows = signatures.values().flatten().filter(|row| proven.has(&row.signature));
        Ok(resigning::leaves_at(connection, rows.filter_map(|row| row.leaf)).await?)
    }
}

/// Whether one of `signatures` was made by a proven key over the claim of `path`, and has its leaf.
pub(super) fn is_accounted(
    path: &PathRow,
    signatures: &[SignatureRow],
    proven: &Proven,
    leaves: &HashMap<i64, String>,
) -> bool {
    let fingerprint = path.claim.fingerprint();
    signatures.iter().any(|row| {
        let leaf = row.leaf.and_then(|index| leaves.get(&index));
        leaf.is_some_and(|leaf| tells_of(leaf, &row.signature, Kind::Path))
            && proven.verifies(&row.signature, fingerprint.as_bytes())
    })
}

/// What a leaf's signature is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Path,
    Realisation,
}

/// Whether this leaf tells of this signature. With the signature the leaf tells of what was signed: no other claim has
/// it.
pub(super) fn tells_of(leaf: &str, signature: &Signature, kind: Kind) -> bool {
    let Ok(leaf) = Leaf::parse(leaf.as_bytes()) else { return false };
    let signed = match (&leaf.event, kind) {
        (Event::Sign(signed) | Event::Resign(signed), Kind::Path) => signed,
        (Event::Realisation(signed), Kind::Realisation) => signed,
        _ => return false,
    };
    signed.key.as_str() == signature.name.as_str() && signed.sig.0 == signature.bytes
}

//! A narinfo compared with what was measured.
//!
//! Never takes a value from a narinfo that could have been measured: it compares, and refuses where they differ.

use std::collections::BTreeSet;

use crate::db::measured::Measured;
use crate::db::paths::NewClaim;
use crate::nix::claim::Claim;
use crate::nix::content_address::ContentAddress;
use crate::nix::narinfo::{NarInfo, NarInfoText};
use crate::nix::signature::Signature;
use crate::nix::store_path::StorePath;
use crate::service::Rejection;
use crate::time::Timestamp;

/// A narinfo whose every claim was compared with what this server measured. Only [`Verified::check`]
/// makes one, and only a `Verified` can be signed.
pub(in crate::service) struct Verified {
    narinfo: NarInfo,
    measured: Measured,
    ca: Option<ContentAddress>,
    ca_dropped: Option<String>,
    /// Claimed references whose hash does not occur in the NAR.
    unfound_refs: String,
}

impl Verified {
    /// Compares every claim of the narinfo with what was measured.
    pub(in crate::service) fn check(
        narinfo: NarInfo,
        measured: Measured,
    ) -> std::result::Result<Self, Rejection> {
        let claim = &narinfo.claim;
        let mismatch = |field, claimed: String, measured: String| {
            if claimed == measured { Ok(()) } else { Err(Rejection::Mismatch { field, claimed, measured }) }
        };
        mismatch("NarHash", claim.nar_hash.to_string(), measured.nar_hash.to_string())?;
        mismatch("NarSize", claim.nar_size.to_string(), measured.nar_size.to_string())?;
        mismatch("Compression", narinfo.compression.to_string(), measured.compression.to_string())?;
        if let Some(file_size) = narinfo.file_size {
            mismatch("FileSize", file_size.to_string(), measured.file_size.to_string())?;
        }
        let (ca, ca_dropped) = check_content_address(&narinfo, &measured)?;
        let found: BTreeSet<&str> = measured.found_refs.split(' ').collect();
        let unfound = claim.references.iter().map(StorePath::hash).map(|hash| hash.to_string());
        let unfound: Vec<_> = if measured.found_refs_truncated {
            Vec::new()
        } else {
            unfound.filter(|hash| !found.contains(hash.as_str())).collect()
        };
        let unfound_refs = unfound.join(" ");
        Ok(Self { measured, ca, ca_dropped, unfound_refs, narinfo })
    }

    pub(in crate::service) fn narinfo(&self) -> &NarInfo {
        &self.narinfo
    }

    pub(in crate::service) fn claim(&self) -> &Claim {
        &self.narinfo.claim
    }

    pub(in crate::service) fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The narinfo as it is served, with these signatures.
    pub(in crate::service) fn text(&self, signatures: &[Signature]) -> String {
        let text = NarInfoText {
            claim: self.claim(),
            file: self.measured.file,
            compression: self.measured.compression,
            file_size: self.measured.file_size,
            deriver: self.narinfo.deriver.as_ref(),
            signatures,
            ca: self.ca.as_ref(),
        };
        text.to_string()
    }

    /// The claim as it is written down, at a path and with what its NAR mentions, has here, and does not claim.
    pub(in crate::service) fn new_claim<'a>(
        &'a self,
        id: String,
        path_id: String,
        undeclared_refs: &'a str,
        now: Timestamp,
    ) -> NewClaim<'a> {
        NewClaim {
            id,
            path_id,
            claim: self.claim(),
            claim_sha256: self.claim().sha256(),
            file: self.measured.file,
            compression: self.measured.compression,
            file_size: self.measured.file_size,
            deriver: self.narinfo.deriver.as_ref(),
            ca: self.ca.as_ref().map(ToString::to_string),
            ca_dropped: self.ca_dropped.clone(),
            undeclared_refs,
            unfound_refs: &self.unfound_refs,
            now,
        }
    }
}

/// Recomputes the content address where its method allows; any other loses its line.
fn check_content_address(
    narinfo: &NarInfo,
    measured: &Measured,
) -> std::result::Result<(Option<ContentAddress>, Option<String>), Rejection> {
    let Some(ca) = &narinfo.ca else { return Ok((None, None)) };
    let claim = &narinfo.claim;
    if !ca.is_recomputed(&claim.path, &claim.references) {
        return Ok((None, Some(ca.to_string())));
    }
    let of_other_kind = |why| Rejection::ContentAddressKind { path: claim.path.clone(), why };
    let measured_digest = match ca {
        ContentAddress::Recursive(_) => measured.nar_hash.0,
        _ => match measured.single_file {
            Some((digest, false)) => digest,
            Some((_, true)) => return Err(of_other_kind("it is an executable file")),
            None => return Err(of_other_kind("it is not one regular file")),
        },
    };
    let actual = match ca {
        ContentAddress::Text(_) => ContentAddress::Text(measured_digest),
        ContentAddress::Flat(_) => ContentAddress::Flat(measured_digest),
        _ => ContentAddress::Recursive(measured_digest),
    };
    if actual != *ca {
        return Err(of_other_kind("its hash is another one"));
    }
    let computed = actual
        .store_path(claim.path.name(), &claim.references)
        .map_err(|_| of_other_kind("a flat file has no references"))?;
    if computed != claim.path {
        return Err(Rejection::ContentAddress { path: claim.path.clone(), computed });
    }
    Ok((Some(actual), None))
}

//! `narvault verify`: that a store path or a narinfo is what a trusted key signed, and that the signature is in the
//! signature log. Everything from files: no server is asked.
//!
//! Never trusts a key that was not named on the command line.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Args;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::Context;
use super::failure::{Exit, Failure};
use super::text::Fields;
use crate::client::proved::Proved;
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::tlog::policy::{POLICY_SIZE_BYTES_MAX, Policy};
use crate::tlog::proof_file::{PROOF_FILE_SIZE_BYTES_MAX, ProofFile};
use crate::tlog::verifier_key::VerifierKey;

/// Largest narinfo that is read, in bytes.
const NARINFO_SIZE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault verify hello.narinfo --proof hello.tlog-proof --policy log.policy --trusted-key 'main-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY='"
)]
pub struct VerifyArgs {
    /// A path in `/nix/store`, which Nix dumps, or a file with a narinfo
    target: PathBuf,
    /// The proof file, from `narvault log proof`
    #[arg(long, value_name = "FILE")]
    proof: PathBuf,
    /// The log's public key, `name+hash+base64`
    #[arg(long, value_name = "KEY", required_unless_present = "policy", conflicts_with = "policy")]
    log_key: Option<VerifierKey>,
    /// Which logs are believed, and which witnesses must have cosigned: lines `log`, `witness`, `group`, `quorum`
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A public key of the cache, `name:base64`; may be repeated
    #[arg(long, value_name = "KEY", required = true)]
    trusted_key: Vec<PublicKey>,
}

/// What was found to be true.
#[derive(Debug, Serialize)]
struct Verified {
    path: String,
    nar_hash: String,
    key: String,
    log: String,
    log_index: u64,
    log_size: u64,
    signed_at: String,
    by: Option<String>,
    token: Option<String>,
}

pub async fn run(args: VerifyArgs, context: &Context) -> Result<(), Failure> {
    let policy = match (args.log_key, &args.policy) {
        (Some(key), _) => Policy::of_log(key),
        (None, Some(path)) => {
            let text = String::from_utf8(read(path, POLICY_SIZE_BYTES_MAX)?)
                .map_err(|error| Failure::caused(format!("{} is not UTF-8", path.display()), error))?;
            Policy::parse(&text)
                .map_err(|error| Failure::caused(format!("{} is not a policy", path.display()), error))?
        }
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "no log is trusted").hint("give `--log-key` or `--policy`"));
        }
    };
    let proof = ProofFile::parse(&read(&args.proof, PROOF_FILE_SIZE_BYTES_MAX)?)
        .map_err(|error| Failure::caused(format!("{} is not a proof", args.proof.display()), error))?;
    let proved = Proved::check(&proof, &policy, &args.trusted_key)
        .map_err(|error| Failure::caused("not verified".into(), error))?;
    match args.target.to_str().map(StorePath::from_absolute) {
        Some(Ok(path)) => check_path(&path, &proved).await?,
        _ => check_narinfo(&args.target, &proved, &args.trusted_key)?,
    }
    let verified = Verified {
        path: proved.claim.path.to_string(),
        nar_hash: proved.claim.nar_hash.to_string(),
        key: proved.signature.name.to_string(),
        log: proved.checkpoint.origin,
        log_index: proved.index,
        log_size: proved.checkpoint.size,
        signed_at: proved.time,
        by: proved.by,
        token: proved.token,
    };
    context.printer.answer(&verified, |verified| {
        Fields::default()
            .with("verified", &verified.path)
            .with("NAR hash", &verified.nar_hash)
            .with("signed by", &verified.key)
            .with("signed at", &verified.signed_at)
            .with("log", format!("{}, leaf {} of {}", verified.log, verified.log_index, verified.log_size))
            .with_some("contributor", verified.by.as_ref())
            .with_some("token", verified.token.as_ref())
            .text()
    })
}

/// The bytes in the store, as Nix dumps them, are those that were signed.
async fn check_path(path: &StorePath, proved: &Proved) -> Result<(), Failure> {
    if proved.claim.path != *path {
        return Err(other(format!("the proof is of {}, not of {path}", proved.claim.path)));
    }
    let (nar_hash, nar_size) = dump(path).await?;
    if nar_hash != proved.claim.nar_hash || nar_size != proved.claim.nar_size {
        let signed = proved.claim.nar_hash;
        return Err(other(format!("{path} in this store has NAR hash {nar_hash}, signed is {signed}")));
    }
    Ok(())
}

/// Hash and size of a path's NAR.
async fn dump(path: &StorePath) -> Result<(NarHash, u64), Failure> {
    let failed = |error| Failure::caused(format!("cannot dump {path} with `nix-store --dump`"), error);
    let mut child = tokio::process::Command::new("nix-store")
        .arg("--dump")
        .arg(path.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    if let Some(mut nar) = child.stdout.take() {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match nar.read(&mut buffer).await.map_err(failed)? {
                0 => break,
                length => {
                    hash.update(&buffer[..length]);
                    size += length as u64;
                }
            }
        }
    }
    let status = child.wait().await.map_err(failed)?;
    if !status.success() {
        let what = format!("`nix-store --dump {path}` failed");
        return Err(Failure::new(Exit::Failure, what).hint("is the path in this machine's store?"));
    }
    Ok((NarHash(Sha256Digest(hash.finalize().into())), size))
}

/// The narinfo says what was signed, and carries a signature of a trusted key.
fn check_narinfo(file: &Path, proved: &Proved, keys: &[PublicKey]) -> Result<(), Failure> {
    let narinfo = NarInfo::parse(&read(file, NARINFO_SIZE_BYTES_MAX)?)
        .map_err(|error| Failure::caused(format!("{} is not a narinfo", file.display()), error))?;
    if narinfo.claim != proved.claim {
        return Err(other(format!("{} says something else than was signed", file.display())));
    }
    let fingerprint = narinfo.claim.fingerprint();
    let signed = |key: &PublicKey| {
        narinfo.signatures.iter().any(|signature| key.verify(fingerprint.as_bytes(), signature))
    };
    if keys.iter().any(signed) {
        Ok(())
    } else {
        Err(other(format!("{} carries no signature of a trusted key", file.display())))
    }
}

fn other(what: String) -> Failure {
    Failure::new(Exit::Failure, what)
}

/// A whole file of at most `size_bytes_max`.
fn read(path: &Path, size_bytes_max: usize) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| Failure::caused(format!("cannot read {}", path.display()), error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, size_bytes_max as u64 + 1), &mut bytes)
        .map_err(failed)?;
    if bytes.len() > size_bytes_max {
        return Err(other(format!("{} is larger than {size_bytes_max} bytes", path.display())));
    }
    Ok(bytes)
}

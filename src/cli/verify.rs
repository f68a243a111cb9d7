//! `narvault verify`: that a store path or a narinfo is what a trusted key signed, and that the signature is in the
//! signature log. From files alone where a proof is given; otherwise the proof is fetched, and checked like any other.
//!
//! Never trusts a key that was not named on the command line or, without any, in this machine's nix.conf.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Args;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::Context;
use super::args::PathArg;
use super::failure::{Exit, Failure};
use super::local_nix::{Places, read_leniently};
use super::log::place::{LogPlace, Trust};
use super::log::prove::{Wanted, prove};
use super::text::Fields;
use crate::api::PathProofQuery;
use crate::client::nix_conf::PUBLIC_KEYS_DEFAULT;
use crate::client::proved::Proved;
use crate::nix::hash::{NarHash, Sha256Digest};
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::service::FIRST_CACHE;
use crate::tlog::policy::{POLICY_SIZE_BYTES_MAX, Policy};
use crate::tlog::proof_file::{PROOF_FILE_SIZE_BYTES_MAX, ProofFile};

/// Largest narinfo that is read, in bytes.
const NARINFO_SIZE_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault verify /nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-hello-2.12")]
pub struct VerifyArgs {
    /// A path in `/nix/store`, which Nix dumps, or a file with a narinfo
    target: PathBuf,
    /// The proof file, from `narvault log proof` [default: fetched]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "cache"])]
    proof: Option<PathBuf>,
    /// Where the proof is made from: a server, a mirror's address or folder, or a bucket [default: the server in use]
    #[arg(long, value_name = "URL|FOLDER")]
    from: Option<String>,
    /// The cache whose signature is looked for [default: `main` of the server in use, any with `--from`]
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
    #[command(flatten)]
    trust: Trust,
    /// A public key of the cache, `name:base64`; may be repeated [default: those that this machine's nix.conf trusts]
    #[arg(long, value_name = "KEY")]
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
    let target = Target::read(&args.target)?;
    let keys = trusted_keys(&args.trusted_key)?;
    let (proof, policy) = match &args.proof {
        Some(file) => {
            let proof = ProofFile::parse(&read(file, PROOF_FILE_SIZE_BYTES_MAX)?)
                .map_err(|error| Failure::caused(format!("{} is not a proof", file.display()), error))?;
            (proof, named_policy(&args.trust)?)
        }
        None => fetched(&args, target.path(), context).await?,
    };
    let proved = Proved::check(&proof, &policy, &keys)
        .map_err(|error| Failure::caused("not verified".into(), error))?;
    match &target {
        Target::Path(path) => check_path(path, &proved).await?,
        Target::Narinfo(narinfo) => check_narinfo(&args.target, narinfo, &proved, &keys)?,
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

/// What is verified.
enum Target {
    Path(StorePath),
    Narinfo(Box<NarInfo>),
}

impl Target {
    fn read(target: &Path) -> Result<Self, Failure> {
        if let Some(Ok(path)) = target.to_str().map(StorePath::from_absolute) {
            return Ok(Self::Path(path));
        }
        let narinfo = NarInfo::parse(&read(target, NARINFO_SIZE_BYTES_MAX)?)
            .map_err(|error| Failure::caused(format!("{} is not a narinfo", target.display()), error))?;
        Ok(Self::Narinfo(Box::new(narinfo)))
    }

    fn path(&self) -> &StorePath {
        match self {
            Self::Path(path) => path,
            Self::Narinfo(narinfo) => &narinfo.claim.path,
        }
    }
}

/// The keys that were named; or else those that Nix trusts here.
fn trusted_keys(named: &[PublicKey]) -> Result<Vec<PublicKey>, Failure> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let resolved = Places::of_this_user().resolve_user(&read_leniently);
    let texts = resolved.list("trusted-public-keys", PUBLIC_KEYS_DEFAULT);
    let keys: Vec<PublicKey> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if keys.is_empty() {
        return Err(Failure::new(Exit::Usage, "no key is trusted: nix.conf has no `trusted-public-keys`")
            .hint("give the cache's with `--trusted-key`"));
    }
    Ok(keys)
}

/// The policy that was named: a proof file says nothing of whom to believe.
fn named_policy(trust: &Trust) -> Result<Policy, Failure> {
    match (&trust.log_key, &trust.policy) {
        (Some(key), _) => Ok(Policy::of_log(key.clone())),
        (None, Some(path)) => {
            let text = String::from_utf8(read(path, POLICY_SIZE_BYTES_MAX)?)
                .map_err(|error| Failure::caused(format!("{} is not UTF-8", path.display()), error))?;
            Policy::parse(&text)
                .map_err(|error| Failure::caused(format!("{} is not a policy", path.display()), error))
        }
        (None, None) => {
            Err(Failure::new(Exit::Usage, "no log is trusted").hint("give `--log-key` or `--policy`"))
        }
    }
}

/// The proof of the path's newest signature, from the place that was named or by the server in use, and whom to believe
/// about it: without a key or a policy that place itself.
async fn fetched(
    args: &VerifyArgs,
    path: &StorePath,
    context: &Context,
) -> Result<(ProofFile, Policy), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let policy = place.policy(&args.trust).await?;
    if !args.trust.is_given() {
        context
            .printer
            .note("the log's key is believed as it is told there; `--log-key` or `--policy` pins it");
    }
    let proof = match (&place, &args.from) {
        (LogPlace::Server(client), None) => {
            let cache = args.cache.as_deref().unwrap_or(FIRST_CACHE);
            let query = PathProofQuery::default();
            let bytes = client.path_proof(cache, path.hash().as_str(), &query).await?;
            ProofFile::parse(&bytes)
                .map_err(|error| Failure::caused("the server's answer is not a proof".into(), error))?
        }
        _ => {
            let wanted =
                Wanted { cache: args.cache.clone(), path: Some(PathArg(path.hash())), ..Wanted::default() };
            prove(&place, &args.trust, &wanted).await?
        }
    };
    Ok((proof, policy))
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
fn check_narinfo(file: &Path, narinfo: &NarInfo, proved: &Proved, keys: &[PublicKey]) -> Result<(), Failure> {
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

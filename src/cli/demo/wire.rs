//! The requests that Nix sends, sent by hand: for machines without Nix, and to look at the answers ourselves.
//!
//! Order and form: a HEAD and a PUT of the NAR, then a PUT of its narinfo (`nix:src/libstore/binary-cache-store.cc`).

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::Method;

use super::packages::Package;
use crate::nix::compression::{NarExtension, NarFileName};
use crate::nix::hash::{FileHash, NarHash, Sha256Digest};
use crate::nix::narinfo::NarInfo;
use crate::nix::signature::PublicKey;
use crate::nix::store_path::StorePath;
use crate::storage::CacheObject;

/// Speaks to one server as Nix does.
#[derive(Clone)]
pub struct Wire {
    http: reqwest::Client,
    base: String,
}

/// Status and text of an answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Wire {
    /// To the server at `base`, such as `http://127.0.0.1:8750`.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(REQUEST_TIMEOUT).build()?;
        Ok(Self { http, base: base.to_owned() })
    }

    /// Asks for an object of a cache, as anybody.
    pub async fn get(&self, cache: &str, object: &CacheObject) -> anyhow::Result<Answer> {
        let request = self.http.get(format!("{}/{cache}/{object}", self.base));
        read(request.send().await?).await
    }

    /// Pushes a package. The first answer that is no success ends it.
    pub async fn push(&self, cache: &str, token: &str, package: &Package) -> anyhow::Result<Answer> {
        let file_bytes = zstd::stream::encode_all(package.nar.as_slice(), ZSTD_LEVEL)?;
        let file =
            NarFileName { hash: FileHash(Sha256Digest::of(&file_bytes)), extension: NarExtension::Zst };
        let nar = CacheObject::Nar(file);
        let narinfo = narinfo(package, &nar, file.hash, file_bytes.len());

        let present = self.send(Method::HEAD, cache, token, &nar, Vec::new()).await?;
        if !present.is_success() {
            let put = self.send(Method::PUT, cache, token, &nar, file_bytes).await?;
            if !put.is_success() {
                return Ok(put);
            }
        }
        let object = CacheObject::Narinfo(package.path.hash());
        self.send(Method::PUT, cache, token, &object, narinfo.into_bytes()).await
    }

    async fn send(
        &self,
        method: Method,
        cache: &str,
        token: &str,
        object: &CacheObject,
        body: Vec<u8>,
    ) -> anyhow::Result<Answer> {
        let url = format!("{}/push/{cache}/{object}", self.base);
        let request = self.http.request(method, url).basic_auth("demo", Some(token)).body(body);
        read(request.send().await?).await
    }

    /// Pulls a path and checks everything that its narinfo says: the signature by `key`, both hashes, both sizes.
    /// Gives the NAR.
    pub async fn pull(&self, cache: &str, path: &StorePath, key: &PublicKey) -> anyhow::Result<Vec<u8>> {
        let narinfo = self.get(cache, &CacheObject::Narinfo(path.hash())).await?;
        ensure!(narinfo.is_success(), "{} for the narinfo: {}", narinfo.status, narinfo.text());
        let narinfo = NarInfo::parse(&narinfo.body)?;
        ensure!(narinfo.claim.path == *path, "the narinfo is of another path");
        let fingerprint = narinfo.claim.fingerprint();
        let signed = narinfo.signatures.iter().any(|signature| key.verify(fingerprint.as_bytes(), signature));
        ensure!(signed, "no signature by {} holds", key.name());

        let file = self.get(cache, &CacheObject::Nar(narinfo.file)).await?;
        ensure!(file.is_success(), "{} for the NAR", file.status);
        ensure!(FileHash(Sha256Digest::of(&file.body)) == narinfo.file.hash, "the file has another hash");
        ensure!(narinfo.file_size == Some(file.body.len() as u64), "the file has another size");
        let nar = decompress(narinfo.file.extension, file.body, narinfo.claim.nar_size)?;
        ensure!(nar.len() as u64 == narinfo.claim.nar_size, "the NAR has another size");
        ensure!(NarHash(Sha256Digest::of(&nar)) == narinfo.claim.nar_hash, "the NAR has another hash");
        Ok(nar)
    }
}

/// The demo pushes zstd only. One byte past what is expected is enough to see that it is too much.
fn decompress(extension: NarExtension, file: Vec<u8>, nar_size: u64) -> anyhow::Result<Vec<u8>> {
    let mut nar = Vec::new();
    match extension {
        NarExtension::Zst => {
            let decoder = zstd::stream::Decoder::new(file.as_slice())?;
            decoder.take(nar_size.saturating_add(1)).read_to_end(&mut nar).context("zstd")?;
        }
        other => bail!("the NAR is .{other}, and was pushed as zstd"),
    }
    Ok(nar)
}

/// The narinfo that Nix would send.
fn narinfo(package: &Package, nar: &CacheObject, file_hash: FileHash, file_size: usize) -> String {
    let claim = package.claim();
    format!(
        "StorePath: {}\nURL: {nar}\nCompression: zstd\nFileHash: {file_hash}\nFileSize: {file_size}\n\
         NarHash: {}\nNarSize: {}\nReferences: {}\n",
        claim.path,
        claim.nar_hash,
        claim.nar_size,
        claim.references_text(),
    )
}

async fn read(response: reqwest::Response) -> anyhow::Result<Answer> {
    let status = response.status().as_u16();
    Ok(Answer { status, body: response.bytes().await?.to_vec() })
}

const ZSTD_LEVEL: i32 = 3;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

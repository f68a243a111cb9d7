//! A large file on its way, in parts: each sent and tried again by itself, those that the server has already not
//! sent again.
//!
//! Never knows the file's name before its last byte, and never holds a part longer than until it is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use super::super::error::Error;
use super::super::http::Client;
use super::News;
use super::pack::{Packed, Part};
use super::plan::Stored;
use super::retry::{Patience, persist};
use crate::api::{UploadComplete, UploadOpen, UploadPart, UploadView};
use crate::nix::compression::Compression;
use crate::nix::hash::NarHash;

/// Where parts may go without the server, for a whole push: what cannot be reached once is not tried again.
#[derive(Default)]
pub struct Bucket {
    is_given_up: AtomicBool,
}

impl Bucket {
    fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Whether this call was the first one to give it up.
    fn give_up(&self) -> bool {
        !self.is_given_up.swap(true, Ordering::Relaxed)
    }
}

/// How an upload stands with its server. What it was doing ends when it is dropped; its parts stay there for the next.
pub struct Upload {
    client: Client,
    cache: String,
    bucket: Arc<Bucket>,
    news: UnboundedSender<News>,
    view: UploadView,
    sending: JoinSet<Result<(), Error>>,
}

impl Upload {
    /// Opens an upload for a NAR with this compression and size of parts, or finds the one that an interrupted push left.
    pub async fn open(
        client: &Client,
        cache: &str,
        (nar_hash, compression, part_size_bytes): (NarHash, Compression, usize),
        bucket: Arc<Bucket>,
        news: UnboundedSender<News>,
    ) -> Result<Self, Error> {
        let body = UploadOpen {
            nar_hash: nar_hash.to_string(),
            compression: compression.to_string(),
            part_size_bytes: Some(part_size_bytes as u64),
        };
        let open = || client.upload_open(cache, &body);
        let (mut view, _) = persist(Patience::LONG, |retry| News::retry(&news, retry), open).await?;
        if view.part_size_bytes != part_size_bytes as u64 {
            // Left by a push that was told otherwise: parts of another size cannot be compared.
            client.upload_abort(cache, &view.id).await?;
            (view, _) = persist(Patience::LONG, |retry| News::retry(&news, retry), open).await?;
        }
        let (client, cache, sending) = (client.clone(), cache.to_owned(), JoinSet::new());
        Ok(Self { client, cache, bucket, news, view, sending })
    }

    /// Sends a part, unless the server has it; waits only while enough are under way.
    pub async fn send(&mut self, part: Part) -> Result<(), Error> {
        while self.sending.len() >= PARTS_AT_ONCE {
            self.one_sent().await?;
        }
        let size_bytes = part.bytes.len() as u64;
        let as_there = UploadPart { number: part.number, size_bytes, sha256: part.sha256.hex() };
        if self.view.parts.contains(&as_there) {
            let _ = self.news.send(News::Kept(size_bytes));
            return Ok(());
        }
        let (client, cache, id) = (self.client.clone(), self.cache.clone(), self.view.id.clone());
        let (news, bucket, direct) = (self.news.clone(), self.bucket.clone(), self.view.direct);
        self.sending.spawn(async move {
            let straight =
                || client.upload_part_direct(&cache, &id, part.number, part.sha256, part.bytes.clone());
            let mut is_sent = false;
            if direct && !bucket.is_given_up() {
                // Of its failures one line is told, not one for each try of each part.
                match persist(Patience::SHORT, drop, straight).await {
                    Ok(_) => is_sent = true,
                    // No obstacle: the server takes the part too.
                    Err(error) if bucket.give_up() => {
                        let _ = news.send(News::Rerouted { reason: error.to_string() });
                    }
                    Err(_) => {}
                }
            }
            if !is_sent {
                let put = || client.upload_part(&cache, &id, part.number, part.sha256, part.bytes.clone());
                persist(Patience::LONG, |retry| News::retry(&news, retry), put).await?;
            }
            let _ = news.send(News::Sent(size_bytes));
            Ok(())
        });
        Ok(())
    }

    /// Waits for the last part, and says what file they make; the server verifies it before it answers.
    pub async fn complete(mut self, packed: &Packed) -> Result<(), Error> {
        while !self.sending.is_empty() {
            self.one_sent().await?;
        }
        let Stored { file, file_size, .. } = packed.stored;
        let body = UploadComplete { file: file.to_string(), file_size_bytes: file_size, parts: packed.parts };
        let complete = || complete(&self.client, &self.cache, &self.view.id, &body);
        persist(Patience::LONG, |retry| News::retry(&self.news, retry), complete).await.map(drop)
    }

    /// Forgets the upload on the server too. That this fails harms nobody: it expires by itself.
    pub async fn abort(mut self) {
        self.sending.abort_all();
        let _ = self.client.upload_abort(&self.cache, &self.view.id).await;
    }

    async fn one_sent(&mut self) -> Result<(), Error> {
        match self.sending.join_next().await {
            Some(Ok(sent)) => sent,
            Some(Err(ended)) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            _ => Ok(()),
        }
    }
}

async fn complete(client: &Client, cache: &str, id: &str, body: &UploadComplete) -> Result<(), Error> {
    match client.upload_complete(cache, id, body).await {
        // An earlier answer may have been lost: then the upload is gone and the file is there.
        Err(error) if error.is_not_found() && client.has_nar(cache, &body.file).await? => Ok(()),
        result => result,
    }
}

/// Parts of one file under way: while one is verified the next one travels.
const PARTS_AT_ONCE: usize = 2;

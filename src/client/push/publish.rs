//! Publishing: many narinfos in one call, each answered by itself.
//!
//! Never signs, and never says more about a path than the store's database and the file that was made of it.

use tokio::sync::mpsc::UnboundedSender;

use super::super::error::{Error, is_passing};
use super::super::http::Client;
use super::News;
use super::plan::Stored;
use super::retry::{Patience, Retry, Waits, persist};
use crate::api::{PUBLISH_SIZE_BYTES_MAX, PublishOutcome, PublishRequest, Refused};
use crate::nix::narinfo::NarInfoText;
use crate::nix::path_info::PathInfo;

/// What became of a path.
pub enum Answered {
    /// `new` by this push, not before it.
    Published {
        new: bool,
        keys: Vec<String>,
    },
    Refused(Refused),
}

/// The narinfo of a path whose file is stored.
pub fn narinfo(info: &PathInfo, stored: Stored) -> String {
    let text = NarInfoText {
        claim: &info.claim,
        file: stored.file,
        compression: stored.compression,
        file_size: stored.file_size,
        deriver: info.deriver.as_ref(),
        signatures: &info.signatures,
        ca: info.ca.as_ref(),
    };
    text.to_string()
}

/// Publishes in this order. Gives for each narinfo, in their order, what became of it.
pub async fn send(
    client: &Client,
    cache: &str,
    narinfos: Vec<String>,
    news: &UnboundedSender<News>,
) -> Result<Vec<Answered>, Error> {
    let request = PublishRequest { narinfos };
    let mut found_new = vec![false; request.narinfos.len()];
    let mut waits = Waits::new(Patience::LONG);
    loop {
        let post = || client.publish(cache, &request);
        let (answer, attempts) = persist(Patience::LONG, |retry| News::retry(news, retry), post).await?;
        if answer.results.len() != found_new.len() {
            return Err(client.answer_of_another_form());
        }
        let (mut passing, mut asked_seconds) = (None, None);
        let mut answers = Vec::with_capacity(found_new.len());
        for (result, found_new) in answer.results.into_iter().zip(&mut found_new) {
            // After an answer that was lost, or a round before this one, "again" may be our own doing.
            *found_new |= result.outcome == PublishOutcome::New || attempts > 1;
            answers.push(match (result.outcome, result.refused) {
                (PublishOutcome::New | PublishOutcome::Again, _) => {
                    Answered::Published { new: *found_new, keys: result.keys }
                }
                (PublishOutcome::Refused, Some(refused)) => {
                    if is_passing(refused.status, &refused.kind) {
                        passing.get_or_insert_with(|| refused.detail.clone());
                        asked_seconds = asked_seconds.max(refused.retry_after_seconds);
                    }
                    Answered::Refused(refused)
                }
                (PublishOutcome::Refused, None) => return Err(client.answer_of_another_form()),
            });
        }
        let (Some(reason), Some(wait)) = (passing, waits.next(asked_seconds)) else { return Ok(answers) };
        News::retry(news, Retry { reason, wait });
        tokio::time::sleep(wait).await;
    }
}

/// Largest call, as the plan estimates narinfos: what remains is for the JSON around them.
pub const SIZE_BYTES_MAX: usize = PUBLISH_SIZE_BYTES_MAX as usize - 64 * 1024;

//! `narvault log audit`: a whole log read critically, from wherever it is published.
//!
//! Never needs a server, a login or a database: a key is enough. Where a login may pull from a private cache, its
//! leaves are opened too.

use std::collections::HashMap;

use clap::Args;
use data_encoding::BASE64;
use serde::Serialize;

use super::super::Context;
use super::super::failure::{Exit, Failure};
use super::super::text::Fields;
use super::place::{LogPlace, Trust};
use super::reader::{LogReader, PieceError};
use crate::api::LogOpeningsQuery;
use crate::client::audit::{Auditor, Beside, FindingKind, Needed, Report, needed};
use crate::tlog::leaf::Leaf;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log audit https://cache.example.org")]
pub struct AuditArgs {
    /// A server, a mirror's address or folder, or `s3://bucket/prefix?endpoint=…` [default: the server in use]
    #[arg(value_name = "URL|FOLDER")]
    from: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

/// A whole log, and what is wrong with it.
#[derive(Debug, Serialize)]
struct AuditAnswer {
    origin: String,
    size: u64,
    root: String,
    #[serde(flatten)]
    report: Report,
}

pub async fn audit(args: AuditArgs, context: &Context) -> Result<(), Failure> {
    let place = LogPlace::open(args.from.as_deref(), context).await?;
    let policy = place.policy(&args.trust).await?;
    let (checkpoint, _) = place.checkpoint(&policy).await?;
    let mut auditor = Auditor::new();
    match LogReader::open(&place, &checkpoint).await? {
        Ok(mut reader) => read_all(&place, &mut reader, &mut auditor).await?,
        Err(error) => auditor.finding(kind(&error), None, chain(&error)),
    }
    let report = auditor.finish();
    let count = report.finding_count;
    let answer = AuditAnswer {
        origin: checkpoint.origin,
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
        report,
    };
    context.printer.answer(&answer, text)?;
    if count == 0 {
        return Ok(());
    }
    let what = format!("the log has {count} findings");
    Err(Failure::new(Exit::Refused, what).hint("keep a mirror of it, and ask whoever runs the server"))
}

async fn read_all(
    place: &LogPlace,
    reader: &mut LogReader<'_>,
    auditor: &mut Auditor,
) -> Result<(), Failure> {
    let mut next = 0;
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let first = bundle * u64::from(TILE_WIDTH);
            match reader.entries(bundle) {
                Ok(entries) => take_bundle(place, first, &entries, auditor).await?,
                Err(error) => {
                    let what = format!("the leaves from {first} on cannot be read: {}", chain(&error));
                    auditor.finding(kind(&error), Some(first), what);
                }
            }
        }
    }
    Ok(())
}

/// Hands a bundle's leaves to the auditor, with all that can be had of what they leave out.
async fn take_bundle(
    place: &LogPlace,
    first: u64,
    entries: &[Vec<u8>],
    auditor: &mut Auditor,
) -> Result<(), Failure> {
    let leaves: Vec<_> = entries.iter().map(|entry| Leaf::parse(entry)).collect();
    let hides = |leaf: &Leaf| needed(leaf) == Some(Needed::Opening);
    let mut openings = if leaves.iter().flatten().any(hides) {
        openings(place, first, entries.len()).await?
    } else {
        HashMap::new()
    };
    for (index, leaf) in (first..).zip(leaves) {
        let beside = match leaf.as_ref().ok().and_then(needed) {
            None => Beside::default(),
            Some(Needed::Opening) => openings.remove(&index).unwrap_or_default(),
            Some(Needed::References(digest)) => {
                Beside { references: place.references(&digest).await?, private: None }
            }
        };
        auditor.leaf(index, leaf, &beside);
    }
    Ok(())
}

/// What stands behind the commitments of some leaves, as far as the place tells this caller.
async fn openings(place: &LogPlace, first: u64, count: usize) -> Result<HashMap<u64, Beside>, Failure> {
    let LogPlace::Server(client) = place else { return Ok(HashMap::new()) };
    if client.require_token().is_err() {
        return Ok(HashMap::new());
    }
    let limit = u32::try_from(count).unwrap_or(u32::MAX);
    let answer = client.log_openings(&LogOpeningsQuery { first, limit: Some(limit) }).await?;
    let opened = answer.items.into_iter().filter_map(|opening| {
        let salt = BASE64.decode(opening.salt.as_bytes()).ok()?.try_into().ok()?;
        let beside = Beside { private: Some((salt, opening.lines)), references: opening.references };
        Some((opening.index, beside))
    });
    Ok(opened.collect())
}

fn kind(error: &PieceError) -> FindingKind {
    if error.is_absence() { FindingKind::Gap } else { FindingKind::Tampered }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn text(answer: &AuditAnswer) -> String {
    let report = &answer.report;
    let place = |index: Option<u64>| index.map_or(String::new(), |index| format!("leaf {index}: "));
    let findings = report.findings.iter().map(|finding| format!("{}{}", place(finding.index), finding.what));
    let unknown = report.unknown.iter().map(|unknown| format!("leaf {}: {}", unknown.index, unknown.event));
    let events = report.events.iter().map(|(event, count)| format!("{event} {count}"));
    let or_none = |count: u64| (count > 0).then(|| count.to_string());
    let verdict = if report.finding_count == 0 {
        "nothing".to_owned()
    } else {
        format!("{} findings", report.finding_count)
    };
    Fields::default()
        .with("log", &answer.origin)
        .with("leaves", answer.size)
        .with("root", &answer.root)
        .with_all("events", events)
        .with("signatures that verify", report.signatures)
        .with_some("signatures that were not opened", or_none(report.hidden).as_ref())
        .with_some("signatures over build traces", or_none(report.realisations).as_ref())
        .with_all("events of a later version", unknown)
        .with_all("findings", findings)
        .with("wrong", verdict)
        .text()
}

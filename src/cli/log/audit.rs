//! `narvault log audit`: a whole log read critically, from wherever it is published, and what caches serve held against
//! it.
//!
//! Never needs a server, a login or a database: a key is enough. Where a login may pull from a private cache, its
//! leaves are opened too.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use data_encoding::BASE64;
use serde::Serialize;
use tokio::time::Instant;

use super::super::Context;
use super::super::args::Lifetime;
use super::super::failure::{Exit, Failure};
use super::super::text::Fields;
use super::mirror::{forked, rolled_back};
use super::objects::{Held, Objects};
use super::place::{LogPlace, Trust};
use super::reader::{LogReader, PieceError};
use crate::api::LogOpeningsQuery;
use crate::client::audit::{Auditor, Beside, FindingKind, Needed, Report, needed};
use crate::tlog::checkpoint::Checkpoint;
use crate::tlog::leaf::Leaf;
use crate::tlog::policy::Policy;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault log audit https://cache.example.org --storage /srv/nix-cache")]
pub struct AuditArgs {
    /// A server, a mirror's address or folder, or `s3://bucket/prefix?endpoint=…` [default: the server in use]
    #[arg(value_name = "URL|FOLDER")]
    from: Option<String>,
    /// Hold the narinfos and build trace entries there against the leaves too: a folder, `s3://…`, or a server, which is
    /// asked for what leaves tell of [default: the bucket or folder that the log lies in]
    #[arg(long, value_name = "URL|FOLDER")]
    storage: Option<String>,
    /// Leave alone what lies beside the log: a large bucket takes a while
    #[arg(long, conflicts_with = "storage")]
    log_only: bool,
    /// How long the log may take to have what lies in the storage already, where they do not agree
    #[arg(long, value_name = "TIME", default_value = "5s")]
    wait: Lifetime,
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
    let objects = match &args.storage {
        Some(text) => Some(Objects::open(text, context).await?),
        None if args.log_only => None,
        None => Objects::around(&place),
    };
    let policy = place.policy(&args.trust).await?;
    let (checkpoint, _) = place.checkpoint(&policy).await?;
    let auditor = if objects.is_some() { Auditor::with_ledger() } else { Auditor::new() };
    let mut audit = Audit { place: &place, policy, checkpoint, auditor };
    match LogReader::open(&place, &audit.checkpoint).await? {
        Ok(mut reader) => read_from(&place, 0, &mut reader, &mut audit.auditor).await?,
        Err(error) => audit.auditor.finding(kind(&error), None, chain(&error)),
    }
    if let Some(objects) = &objects {
        audit.hold(objects, Duration::from_secs(args.wait.as_seconds())).await?;
    }
    let Audit { checkpoint, auditor, .. } = audit;
    let report = auditor.finish();
    let count = report.finding_count;
    let answer = AuditAnswer {
        origin: checkpoint.origin,
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
        report,
    };
    context.printer.answer(&answer, |answer| text(answer, objects.as_ref()))?;
    if count == 0 {
        return Ok(());
    }
    let what = format!("the log has {count} findings");
    Err(Failure::new(Exit::Refused, what).hint("keep a mirror of it, and ask whoever runs the server"))
}

/// A log that is being read.
struct Audit<'a> {
    place: &'a LogPlace,
    policy: Policy,
    /// Of the leaves that the auditor has seen.
    checkpoint: Checkpoint,
    auditor: Auditor,
}

impl Audit<'_> {
    /// Holds what lies in a storage against the leaves. Where they do not agree, the log is given time to go on: a
    /// narinfo may come, or go, a second before its leaf is published.
    async fn hold(&mut self, objects: &Objects, wait: Duration) -> Result<(), Failure> {
        let mut held = Held::look(objects, &mut self.auditor).await?;
        let deadline = Instant::now() + wait;
        while held.is_suspicious(&self.auditor) {
            let grown = self.go_on().await?;
            held.look_again(&mut self.auditor).await?;
            if Instant::now() >= deadline {
                break;
            }
            if !grown && held.is_suspicious(&self.auditor) {
                tokio::time::sleep(PAUSE).await;
            }
        }
        held.tell(&mut self.auditor).await
    }

    /// Reads the leaves that came since. False: there are none.
    async fn go_on(&mut self) -> Result<bool, Failure> {
        let (new, _) = self.place.checkpoint(&self.policy).await?;
        let old = &self.checkpoint;
        if new == *old {
            return Ok(false);
        }
        if new.size < old.size {
            return Err(rolled_back(new.size, old.size));
        }
        match LogReader::open(self.place, &new).await? {
            Ok(mut reader) => {
                reader.goes_on_from(old).await?.map_err(|error| forked(old, error))?;
                read_from(self.place, old.size, &mut reader, &mut self.auditor).await?;
            }
            Err(error) => self.auditor.finding(kind(&error), None, chain(&error)),
        }
        self.checkpoint = new;
        Ok(true)
    }
}

/// Has the auditor take the leaves from `first` on.
async fn read_from(
    place: &LogPlace,
    first: u64,
    reader: &mut LogReader<'_>,
    auditor: &mut Auditor,
) -> Result<(), Failure> {
    let width = u64::from(TILE_WIDTH);
    let mut next = first / width;
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let start = (bundle * width).max(first);
            match reader.entries(bundle) {
                Ok(entries) => {
                    let known = usize::try_from(start - bundle * width).unwrap_or(usize::MAX);
                    let new = entries.get(known..).unwrap_or_default();
                    take_bundle(place, start, new, auditor).await?;
                }
                Err(error) => {
                    let what = format!("the leaves from {start} on cannot be read: {}", chain(&error));
                    auditor.finding(kind(&error), Some(start), what);
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

fn text(answer: &AuditAnswer, objects: Option<&Objects>) -> String {
    let report = &answer.report;
    let traces = (report.realisations > 0).then(|| match objects {
        Some(Objects::Bucket(_) | Objects::Folder(_)) => {
            let verified = report.realisations_verified;
            format!("{}, {verified} of which verify over their entries", report.realisations)
        }
        Some(Objects::Server(_)) | None => {
            format!("{}, not verified: name the bucket with --storage", report.realisations)
        }
    });
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
        .with_some("signatures over build traces", traces.as_ref())
        .with_some("paths served as their leaves say", objects.map(|_| report.narinfos))
        .with_all("events of a later version", unknown)
        .with_all("findings", findings)
        .with("wrong", verdict)
        .text()
}

/// Between two looks at a log that may go on.
const PAUSE: Duration = Duration::from_millis(500);

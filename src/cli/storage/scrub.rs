//! `narvault storage scrub`: the bucket's narinfos and NARs, the database's rows and the signature log, each held against
//! the others, on the server's own host.
//!
//! Never changes anything: what is wrong is told, by its object or its leaf.

use clap::Args;
use serde::Serialize;

use super::super::failure::{Exit, Failure};
use super::super::host::{HostArgs, told};
use super::super::log::place::LogPlace;
use super::super::log::reader::{LogReader, contradiction};
use super::super::text::{Fields, size};
use super::super::{Context, server};
use crate::config::Config;
use crate::service::{Call, Scrubbed, Service};
use crate::tlog::policy::Policy;
use crate::tlog::tile::TILE_WIDTH;
use crate::tlog::verifier_key::VerifierKey;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault storage scrub --data /var/lib/narvault --deep")]
pub struct ScrubArgs {
    #[command(flatten)]
    host: HostArgs,
    /// Read every NAR and hash it
    #[arg(long)]
    deep: bool,
    /// The log's public key, `name+hash+base64`; without it the database is believed about it
    #[arg(long, value_name = "KEY")]
    log_key: Option<VerifierKey>,
}

#[derive(Serialize)]
struct ScrubAnswer {
    leaves: u64,
    paths: u64,
    signatures: u64,
    nar_bytes: u64,
    findings: Vec<ScrubbedFinding>,
    finding_count: u64,
}

#[derive(Serialize)]
struct ScrubbedFinding {
    kind: &'static str,
    subject: String,
    what: String,
}

pub async fn scrub(args: ScrubArgs, context: &Context) -> Result<(), Failure> {
    let (config, service) = args.host.open(context).await?;
    let done = scrub_all(&service, &config, args.log_key, args.deep).await;
    service.shut_down().await;
    let (leaves, scrubbed) = done?;
    let count = scrubbed.finding_count;
    context.printer.answer(&answer(leaves, scrubbed), text)?;
    if count == 0 {
        return Ok(());
    }
    let what = format!("storage, rows and log do not agree in {count} places");
    Err(Failure::new(Exit::Refused, what).hint("find out who can write to the bucket, or to the database"))
}

async fn scrub_all(
    service: &Service,
    config: &Config,
    key: Option<VerifierKey>,
    deep: bool,
) -> Result<(u64, Scrubbed), Failure> {
    let failed = told::<crate::service::Error>;
    let mut scrubbed = Scrubbed::default();
    let call = Call::host();
    let place = LogPlace::Bucket(server::open_storage(config).await.map_err(told)?);
    let key = match key {
        Some(key) => key,
        None => service.log_verifier_key().await.map_err(failed)?,
    };
    let (checkpoint, _) = place.checkpoint(&Policy::of_log(key)).await?;
    let mut reader = LogReader::open(&place, &checkpoint).await?.map_err(contradiction)?;
    let mut next = 0;
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let first = bundle * u64::from(TILE_WIDTH);
            match reader.entries(bundle) {
                Ok(entries) => {
                    let leaves: Vec<String> =
                        entries.iter().map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
                    service.scrub_leaves(&call, first, &leaves, &mut scrubbed).await.map_err(failed)?;
                }
                Err(error) => scrubbed.finding("log-damaged", format!("leaf {first}"), error.to_string()),
            }
        }
    }
    service.scrub_objects(&call, deep, &mut scrubbed).await.map_err(failed)?;
    service.scrub_listing(&call, &mut scrubbed).await.map_err(failed)?;
    Ok((checkpoint.size, scrubbed))
}

fn answer(leaves: u64, scrubbed: Scrubbed) -> ScrubAnswer {
    let findings = scrubbed.findings.into_iter().map(|finding| ScrubbedFinding {
        kind: finding.kind,
        subject: finding.subject,
        what: finding.what,
    });
    ScrubAnswer {
        leaves,
        paths: scrubbed.paths,
        signatures: scrubbed.signatures,
        nar_bytes: scrubbed.nar_bytes,
        findings: findings.collect(),
        finding_count: scrubbed.finding_count,
    }
}

fn text(answer: &ScrubAnswer) -> String {
    let hashed = (answer.nar_bytes > 0).then(|| size(answer.nar_bytes));
    let findings = answer
        .findings
        .iter()
        .map(|finding| format!("{}: {} ({})", finding.subject, finding.what, finding.kind));
    Fields::default()
        .with("leaves", answer.leaves)
        .with("paths", answer.paths)
        .with("signatures that are those of their leaves", answer.signatures)
        .with_some("hashed", hashed.as_ref())
        .with_all("findings", findings)
        .text()
}

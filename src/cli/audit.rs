//! `narvault audit`: who did what, refusals included, and whether the rows that say so are those that the log commits to.
//!
//! Never shows more than the server does.

use clap::{Args, Subcommand};

use serde::Serialize;

use super::args::{ListArgs, OrderArg, Since};
use super::failure::{Exit, Failure};
use super::host::{HostArgs, told};
use super::list::print_list;
use super::log::place::{LogPlace, Trust};
use super::log::reader::{LogReader, contradiction};
use super::text::{Fields, moment};
use super::{Context, server};
use crate::api::{AuditQuery, AuditView};
use crate::config::Config;
use crate::service::{AuditCheck, Call, Service};
use crate::tlog::leaf::{Event, Leaf};
use crate::tlog::policy::Policy;
use crate::tlog::tile::TILE_WIDTH;

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List the newest entries, newest first unless told
    List(AuditListArgs),
    /// Hold the entries against the signature log, on the server's own host
    Verify(AuditVerifyArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault audit verify --data /var/lib/narvault")]
pub struct AuditVerifyArgs {
    #[command(flatten)]
    host: HostArgs,
    /// A mirror of the log, to hold the entries against instead of the server's own
    #[arg(long, value_name = "URL|FOLDER")]
    log: Option<String>,
    #[command(flatten)]
    trust: Trust,
}

/// What came of it.
#[derive(Serialize)]
struct AuditVerified {
    /// Commitments of the log that hold, the rows under them, and those of these that were erased.
    commitments: u64,
    rows: u64,
    erased: u64,
    /// Rows of the hour that has not ended.
    waiting: u64,
    findings: Vec<String>,
    finding_count: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault audit list --outcome denied --since 24h")]
pub struct AuditListArgs {
    /// Only what this contributor did
    #[arg(long, value_name = "NAME")]
    contributor: Option<String>,
    /// Only what was done with this token
    #[arg(long = "token-id", value_name = "ID")]
    token_id: Option<String>,
    /// Only acts of this kind, such as token-issue
    #[arg(long)]
    action: Option<String>,
    /// Only what was done, or only what was denied
    #[arg(long, value_parser = ["done", "denied"])]
    outcome: Option<String>,
    /// Only since then: RFC 3339, or how long ago, such as 7d
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Only what was before then, in the same words
    #[arg(long, value_name = "TIME")]
    until: Option<Since>,
    /// Only what was done to this: a name, a token's id, `cache/path`, as the list shows it
    #[arg(long)]
    subject: Option<String>,
    /// Only what came from this IP address
    #[arg(long, value_name = "IP")]
    address: Option<std::net::IpAddr>,
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(command: AuditCommand, context: &Context) -> Result<(), Failure> {
    match command {
        AuditCommand::List(args) => list(args, context).await,
        AuditCommand::Verify(args) => verify(args, context).await,
    }
}

async fn verify(args: AuditVerifyArgs, context: &Context) -> Result<(), Failure> {
    let (config, service) = args.host.open(context).await?;
    let checked = check(&service, &config, args.log.as_deref(), &args.trust, context).await;
    service.shut_down().await;
    let checked = checked?;
    let answer = AuditVerified {
        commitments: checked.commits,
        rows: checked.rows,
        erased: checked.erased,
        waiting: checked.waiting,
        findings: checked.findings,
        finding_count: checked.finding_count,
    };
    context.printer.answer(&answer, |answer| {
        Fields::default()
            .with("commitments that hold", answer.commitments)
            .with("rows under them", answer.rows)
            .with("of these erased", answer.erased)
            .with("not yet committed to", answer.waiting)
            .with_all("findings", answer.findings.clone())
            .text()
    })?;
    if answer.finding_count == 0 {
        return Ok(());
    }
    let what =
        format!("the audit rows are not those that the log commits to, in {} places", answer.finding_count);
    Err(Failure::new(Exit::Refused, what).hint("find out who can write to the database"))
}

/// Gathers the log's commitments to audit rows, and has the service hold its rows against them.
async fn check(
    service: &Service,
    config: &Config,
    log: Option<&str>,
    trust: &Trust,
    context: &Context,
) -> Result<AuditCheck, Failure> {
    let failed = told::<crate::service::Error>;
    let place = match log {
        Some(text) => LogPlace::open(Some(text), context).await?,
        None => LogPlace::Bucket(server::open_storage(config).await.map_err(told)?),
    };
    let policy = if log.is_some() || trust.is_given() {
        place.policy(trust).await?
    } else {
        Policy::of_log(service.log_verifier_key().await.map_err(failed)?)
    };
    let (checkpoint, _) = place.checkpoint(&policy).await?;
    let mut reader = LogReader::open(&place, &checkpoint).await?.map_err(contradiction)?;
    let (mut leaves, mut next) = (Vec::new(), 0);
    while next < reader.bundles() {
        let fetched = reader.fetch_bundles(next).await?;
        next = fetched.end;
        for bundle in fetched {
            let entries = reader.entries(bundle).map_err(contradiction)?;
            for (index, entry) in (bundle * u64::from(TILE_WIDTH)..).zip(entries) {
                let leaf = Leaf::parse(&entry);
                if leaf.is_ok_and(|leaf| leaf.event == Event::AuditCommit) {
                    leaves.push((index, String::from_utf8_lossy(&entry).into_owned()));
                }
            }
        }
    }
    service.verify_audit(&Call::host(), &leaves, checkpoint.size).await.map_err(failed)
}

async fn list(args: AuditListArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let since = args.since.map(|since| since.rfc3339(context.clock.now()));
    let until = args.until.map(|until| until.rfc3339(context.clock.now()));
    // Who looks here wants to know what has just happened.
    let list = ListArgs { order: args.list.order.or(Some(OrderArg::Desc)), ..args.list };
    let columns = ["AT", "OUTCOME", "ACTION", "SUBJECT", "CONTRIBUTOR", "ADDRESS", "DETAIL"];
    print_list(context.printer, &list, &columns, row, async |query| {
        let query = AuditQuery {
            contributor: args.contributor.clone(),
            token: args.token_id.clone(),
            action: args.action.clone(),
            outcome: args.outcome.clone(),
            since: since.clone(),
            until: until.clone(),
            subject: args.subject.clone(),
            address: args.address.map(|address| address.to_string()),
            cursor: query.cursor,
            limit: query.limit,
            order: query.order,
        };
        client.audit(&query).await
    })
    .await
}

fn row(entry: &AuditView) -> Vec<String> {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let detail = match &entry.detail {
        serde_json::Value::Null => String::new(),
        serde_json::Value::Object(fields) if fields.is_empty() => String::new(),
        detail => detail.to_string(),
    };
    vec![
        moment(&entry.at),
        entry.outcome.clone(),
        entry.action.clone(),
        entry.subject.clone(),
        or_dash(&entry.contributor),
        or_dash(&entry.address),
        detail,
    ]
}

//! `narvault audit`: who did what, refusals included.

use clap::{Args, Subcommand};

use super::Context;
use super::args::{ListArgs, OrderArg, Since};
use super::failure::Failure;
use super::list::print_list;
use super::text::moment;
use crate::api::{AuditQuery, AuditView};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List the newest entries, newest first unless told
    List(AuditListArgs),
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
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(command: AuditCommand, context: &Context) -> Result<(), Failure> {
    let AuditCommand::List(args) = command;
    let client = context.client()?;
    let since = args.since.map(|since| since.rfc3339(context.clock.now()));
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

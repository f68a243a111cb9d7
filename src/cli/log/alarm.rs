//! `narvault log clear-alarm`: after somebody has found out why the published log contradicted the database.

use clap::Args;
use serde::Serialize;

use super::super::Context;
use super::super::failure::Failure;
use super::super::host::{HostArgs, told};
use super::super::text::{Fields, plain};
use crate::service::Call;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault log clear-alarm --data /var/lib/narvault --reason 'tile put back from the mirror'"
)]
pub struct ClearAlarmArgs {
    #[command(flatten)]
    host: HostArgs,
    /// What was found and done, for the audit
    #[arg(long)]
    reason: String,
}

#[derive(Serialize)]
struct Cleared {
    /// What the alarm was; absent where there was none.
    alarm: Option<String>,
}

pub async fn clear(args: ClearAlarmArgs, context: &Context) -> Result<(), Failure> {
    let (_, service) = args.host.open(context).await?;
    let cleared = service.clear_log_alarm(&Call::host(), &args.reason).await;
    service.shut_down().await;
    let alarm = cleared.map_err(told)?;
    if alarm.is_none() {
        context.printer.note("there was no alarm");
    }
    context.printer.answer(&Cleared { alarm }, |cleared| {
        Fields::default().with_some("cleared", cleared.alarm.as_deref().map(plain)).text()
    })
}

//! `narvault recover`: after a database was restored from an older backup, on the server's own host.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::failure::Failure;
use super::host::{HostArgs, told};
use crate::service::{Call, Recovery};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault recover --data /var/lib/narvault")]
pub struct RecoverArgs {
    #[command(flatten)]
    pub host: HostArgs,
}

#[derive(Serialize)]
struct Recovered {
    leaves: u64,
    tokens_revoked: u64,
    contributors_suspended: u64,
    paths_withdrawn: u64,
    paths_adopted: u64,
    keys_changed: u64,
    successions_adopted: u64,
    caches_deleted: u64,
    quarantines: u64,
    lost: Vec<String>,
}

pub async fn run(args: RecoverArgs, context: &Context) -> Result<(), Failure> {
    let (_, service) = args.host.open(context).await?;
    let recovered = service.recover(&Call::host()).await;
    service.shut_down().await;
    let recovery = recovered.map_err(told)?;
    if recovery != Recovery::default() {
        context.printer.note("start the server anew: one that runs meanwhile only reads");
    }
    context.printer.answer(&Recovered::from(recovery), text)
}

impl From<Recovery> for Recovered {
    fn from(recovery: Recovery) -> Self {
        Self {
            leaves: recovery.leaves,
            tokens_revoked: recovery.tokens_revoked,
            contributors_suspended: recovery.contributors_suspended,
            paths_withdrawn: recovery.paths_withdrawn,
            paths_adopted: recovery.paths_adopted,
            keys_changed: recovery.keys_changed,
            successions_adopted: recovery.successions_adopted,
            caches_deleted: recovery.caches_deleted,
            quarantines: recovery.quarantines,
            lost: recovery.lost,
        }
    }
}

fn text(recovered: &Recovered) -> String {
    if recovered.leaves == 0 {
        return "the database has every leaf that was published: nothing to recover\n".to_owned();
    }
    let Recovered { leaves, tokens_revoked, contributors_suspended, paths_withdrawn, paths_adopted, .. } =
        recovered;
    let mut text = format!(
        "{leaves} leaves of the signature log are back\n\
         {tokens_revoked} tokens revoked again\n\
         {contributors_suspended} contributors suspended\n\
         {paths_withdrawn} paths withdrawn or deleted again\n\
         {paths_adopted} paths served again that were signed since the backup\n\
         {} keys in the state that they had\n\
         {} statements about keys that came after others\n\
         {} caches deleted again\n\
         {} contributors and paths quarantined again\n",
        recovered.keys_changed,
        recovered.successions_adopted,
        recovered.caches_deleted,
        recovered.quarantines
    );
    if !recovered.lost.is_empty() {
        text.push_str("not back:\n");
        recovered.lost.iter().for_each(|lost| text.push_str(&format!("- {lost}\n")));
    }
    text
}

//! `narvault key succession`: what clients are told of keys that come after others.
//!
//! Never signs: the vault does for planned rotations, root keys do elsewhere.

use std::path::PathBuf;

use clap::Args;

use crate::api::{SuccessionDraft, SuccessionStatementView, SuccessionView};
use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::root::write_draft;
use crate::cli::text::{Table, moment, plain};

#[derive(Debug, Args)]
#[command(after_help = "\
With --prepare, the statement is drafted that root keys sign after a compromise: `narvault root sign` adds a signature,
`narvault root submit` hands it in.

Example:
  narvault key succession main --prepare --output ./draft")]
pub struct SuccessionArgs {
    /// The cache's name
    cache: String,
    /// Draft what root keys are to sign after a compromise
    #[arg(long)]
    prepare: bool,
    /// The compromised key [default: the only one that clients were not told of]
    #[arg(long, value_name = "KEY", requires = "prepare")]
    key: Option<String>,
    /// From when on clients drop it, as 2026-11-22T13:00:00Z [default: at once]
    #[arg(long, value_name = "TIME", requires = "prepare")]
    retire_old: Option<String>,
    /// Where the draft is written [default: stdout]
    #[arg(long, value_name = "FILE", requires = "prepare")]
    output: Option<PathBuf>,
}

pub async fn run(args: SuccessionArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    if args.prepare {
        let body = SuccessionDraft { old: args.key, retire_old: args.retire_old };
        let draft = client.key_succession_draft(&args.cache, &body).await?.draft;
        return write_draft(&draft, args.output.as_deref(), context);
    }
    let told = client.key_succession(&args.cache).await?;
    context.printer.answer(&told, text)
}

/// The statements, a line for each.
pub fn text(told: &SuccessionView) -> String {
    if told.statements.is_empty() {
        return format!("nothing is told of the keys of {} yet\n", plain(&told.cache));
    }
    let name = |key: &str| key.split(':').next().unwrap_or_default().to_owned();
    let row = |statement: &SuccessionStatementView| {
        let end = statement.retire_old.as_deref().map_or_else(|| "-".to_owned(), moment);
        vec![
            statement.seq.to_string(),
            statement.reason.clone(),
            name(&statement.old),
            name(&statement.new),
            moment(&statement.not_before),
            end,
        ]
    };
    let columns = ["SEQ", "REASON", "OLD", "NEW", "SINCE", "OLD ENDS"].map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [columns].into_iter().chain(told.statements.iter().map(row)).collect();
    Table::default().text(&rows)
}

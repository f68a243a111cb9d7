//! What the commands that quarantine and restore have in common: their arguments, their questions, their answers.
//!
//! Never decides what falls: that is the server's, which `--dry-run` asks.

use clap::Args;

use super::Context;
use super::args::Since;
use super::ask::{self, Unattended};
use super::failure::{Exit, Failure};
use super::text::{Fields, plain};
use crate::api::{
    CachePath, QuarantineCreate, QuarantineOutcome, QuarantineQuery, RestoreCreate, RestoreOutcome,
};
use crate::client::Error as ClientError;

/// How anything is quarantined.
#[derive(Debug, Args)]
pub struct QuarantineHow {
    /// Why, for the audit
    #[arg(long)]
    reason: String,
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// Also withdraw what refers to a withdrawn path, directly or through others
    #[arg(long)]
    dependents: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// How a quarantine is ended.
#[derive(Debug, Args)]
pub struct RestoreHow {
    /// Why, for the audit
    #[arg(long)]
    reason: String,
}

/// Quarantines by `call`; on a terminal it shows first what would happen, and asks.
pub async fn quarantine(
    context: &Context,
    how: &QuarantineHow,
    since: Option<Since>,
    keep_issued: bool,
    call: impl AsyncFn(&QuarantineCreate, &QuarantineQuery) -> Result<QuarantineOutcome, ClientError>,
) -> Result<(), Failure> {
    let body = QuarantineCreate {
        reason: how.reason.clone(),
        since: since.map(|since| since.rfc3339(context.clock.now())),
        dependents: how.dependents,
        keep_issued,
    };
    let dry = QuarantineQuery { dry_run: true };
    if how.dry_run {
        let outcome = call(&body, &dry).await?;
        return context.printer.answer(&outcome, |outcome| dry_text(outcome, how.dependents));
    }
    if !how.yes && ask::is_attended() {
        let outcome = call(&body, &dry).await?;
        context.printer.note("this would happen:");
        context.printer.note_lines(&dry_text(&outcome, how.dependents));
    }
    ask::confirm("Quarantine it?", how.yes, Unattended::Proceed)?;
    let outcome = call(&body, &QuarantineQuery::default()).await?;
    context.printer.answer(&outcome, outcome_text)?;
    if !outcome.changed {
        context.printer.note("this quarantine stood already, and nothing was left to do");
    }
    if outcome.dependents > 0 && !how.dependents {
        context.printer.warning(
            "published paths refer to withdrawn ones, and cannot be pulled whole",
            "add `--dependents` to withdraw them too",
        );
    }
    unfinished(outcome.finished, outcome.paths_left, outcome.narinfos_left, ["withdrawn", "removed from"])
}

/// Ends a quarantine by `call`.
pub async fn restore(
    context: &Context,
    how: RestoreHow,
    call: impl AsyncFn(&RestoreCreate) -> Result<RestoreOutcome, ClientError>,
) -> Result<(), Failure> {
    let outcome = call(&RestoreCreate { reason: how.reason }).await?;
    context.printer.answer(&outcome, restored_text)?;
    if !outcome.changed {
        context.printer.note("it was restored before");
    }
    unfinished(outcome.finished, outcome.paths_left, outcome.narinfos_left, ["brought back", "written to"])
}

/// Fails where the server has not ended its work within the time of a call, and says how much is left of it: what of
/// paths, and what of narinfos.
fn unfinished(
    finished: bool,
    paths_left: u64,
    narinfos_left: u64,
    [of_paths, of_narinfos]: [&str; 2],
) -> Result<(), Failure> {
    let narinfos = match narinfos_left {
        0 => None,
        1 => Some(format!("1 narinfo is still to be {of_narinfos} storage")),
        left => Some(format!("{left} narinfos are still to be {of_narinfos} storage")),
    };
    let paths = match (finished, paths_left) {
        (true, _) => None,
        // What is left then are tokens, build trace entries, or the end itself.
        (false, 0) => Some("the server is still at it".to_owned()),
        (false, 1) => Some(format!("1 path is still to be {of_paths}")),
        (false, left) => Some(format!("{left} paths are still to be {of_paths}")),
    };
    let left: Vec<String> = paths.into_iter().chain(narinfos).collect();
    if left.is_empty() {
        return Ok(());
    }
    let failure = Failure::new(Exit::Failure, format!("{}; the server goes on by itself", left.join(", ")));
    Err(failure.hint("run the same command again to wait for the rest"))
}

fn dry_text(outcome: &QuarantineOutcome, with_dependents: bool) -> String {
    let dependents = if with_dependents { "withdrawn as dependents" } else { "left referring to them" };
    Fields::default()
        .with("would quarantine", format!("{} {}", plain(&outcome.kind), plain(&outcome.subject)))
        .with("tokens that die", outcome.tokens.len())
        .with("evidence", outcome.evidence)
        .with_some("paths that stay", outcome.kept)
        .with_all("paths withdrawn", counted(&outcome.withdrawn, outcome.paths))
        .with_all(dependents, counted(&outcome.dependent_paths, outcome.dependents))
        .text()
}

fn outcome_text(outcome: &QuarantineOutcome) -> String {
    Fields::default()
        .with("quarantined", format!("{} {}", plain(&outcome.kind), plain(&outcome.subject)))
        .with_some("id", outcome.id.as_ref())
        .with("tokens that died", outcome.tokens.len())
        .with("evidence void", outcome.evidence)
        .with_all("paths withdrawn", counted(&outcome.withdrawn, outcome.paths))
        .with_all("left referring to them", counted(&outcome.dependent_paths, outcome.dependents))
        .text()
}

fn restored_text(outcome: &RestoreOutcome) -> String {
    let left = outcome
        .left_paths
        .iter()
        .map(|path| format!("{} {} {}", plain(&path.cache), plain(&path.store_path), plain(&path.why)));
    Fields::default()
        .with("restored", format!("{} {}", plain(&outcome.kind), plain(&outcome.subject)))
        .with("quarantine", &outcome.id)
        .with("paths back", outcome.restored)
        .with_all("paths left", std::iter::once(outcome.left.to_string()).chain(left))
        .text()
}

/// How many there are, and the first of them.
fn counted(paths: &[CachePath], count: u64) -> impl Iterator<Item = String> {
    let shown = paths.iter().take(SHOWN_MAX);
    let shown: Vec<_> =
        shown.map(|path| format!("{} {}", plain(&path.cache), plain(&path.store_path))).collect();
    let more = count.saturating_sub(shown.len() as u64);
    let more = (more > 0).then(|| format!("and {more} more; `--json` names the first 1000"));
    std::iter::once(count.to_string()).chain(shown).chain(more)
}

/// Paths that people are shown.
const SHOWN_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(paths: u64) -> QuarantineOutcome {
        let path =
            |number: u64| CachePath { cache: "main".into(), store_path: format!("/nix/store/x-{number}") };
        QuarantineOutcome {
            id: Some("q-1".into()),
            kind: "contributor".into(),
            subject: "alice".into(),
            changed: true,
            finished: true,
            paths_left: 0,
            narinfos_left: 0,
            tokens: vec!["t-1".into()],
            evidence: paths,
            paths,
            withdrawn: (0..paths).map(path).collect(),
            kept: None,
            dependents: 0,
            dependent_paths: vec![],
        }
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        for (paths, expected) in [(2, "x-1\n"), (51, "and 1 more"), (700, "and 650 more")] {
            let text = outcome_text(&outcome(paths));
            assert!(text.contains(expected), "{text}");
        }
        assert!(!outcome_text(&outcome(50)).contains("more"));
    }

    #[test]
    fn what_is_left_is_a_failure_that_names_the_number() {
        let words = ["withdrawn", "removed from"];
        assert!(unfinished(true, 0, 0, words).is_ok());
        for (finished, paths, narinfos, expected) in [
            (true, 0, 3, "3 narinfos are still to be removed from storage; the server goes on by itself"),
            (false, 12, 0, "12 paths are still to be withdrawn; the server"),
            (
                false,
                1,
                1,
                "1 path is still to be withdrawn, 1 narinfo is still to be removed from storage; the server",
            ),
            (false, 0, 0, "the server is still at it; the server goes on"),
        ] {
            let failure = unfinished(finished, paths, narinfos, words).unwrap_err().to_string();
            assert!(failure.starts_with(&format!("error: {expected}")), "{failure}");
        }
    }
}

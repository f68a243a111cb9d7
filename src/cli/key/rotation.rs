//! `narvault key rotate`, `schedule` and what else happens to keys after they were made.
//!
//! Never decides when a step comes: the server does, and its dates are printed.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api::{
    KeyCompromise, KeyView, PublicKeysFormat, PublicKeysQuery, RotationCreate, RotationEdit,
    RotationStepView, RotationView, UnloggedSignature,
};
use crate::cli::Context;
use crate::cli::args::ListArgs;
use crate::cli::ask::{self, Unattended};
use crate::cli::failure::{Exit, Failure};
use crate::cli::list::print_list;
use crate::cli::output::Printer;
use crate::cli::text::{Fields, Table, moment, plain};
use crate::client::Client;
use crate::time::Timestamp;

/// How long Nix remembers a narinfo that it has found, unless told: `narinfo-cache-positive-ttl`.
const NARINFO_DAYS: i64 = 30;

/// Between two looks at a rotation that is followed.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
The server goes on by itself; `narvault key schedule` shows how far it is.

Example:
  narvault key rotate main --publish-days 7 --wait-days 30")]
pub struct RotateArgs {
    /// The cache's name
    cache: String,
    /// The key that goes [default: the only active one]
    #[arg(long, value_name = "KEY")]
    old: Option<String>,
    /// The key that comes: one that is `next`, or a name for a new one [default: made from the cache's name]
    #[arg(long, value_name = "KEY")]
    new: Option<String>,
    /// Days from publishing the new key to its first signature [default: the server's]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=3650))]
    publish_days: Option<u64>,
    /// Days from the end of the signing to the end of the old key [default: the server's]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(0..=3650))]
    wait_days: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key schedule main --follow")]
pub struct ScheduleArgs {
    /// The cache's name
    cache: String,
    /// Watch until nothing but time has to pass, with a bar on a terminal
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key pause main")]
pub struct PauseArgs {
    /// The cache's name
    pub cache: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key resume main")]
pub struct ResumeArgs {
    /// The cache's name
    pub cache: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key abandon main --yes")]
pub struct AbandonArgs {
    /// The cache's name
    cache: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key promote main main-x4c1v0-2")]
pub struct PromoteArgs {
    /// The cache's name
    cache: String,
    /// The key's name
    key: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key retire main main-x4c1v0-1")]
pub struct RetireArgs {
    /// The cache's name
    cache: String,
    /// The key's name
    key: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  narvault key compromise main main-x4c1v0-1 --reason 'the host was broken into'"
)]
pub struct CompromiseArgs {
    /// The cache's name
    cache: String,
    /// The key's name
    key: String,
    /// Why, for the audit rows
    #[arg(long)]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key destroy main main-x4c1v0-1 --yes")]
pub struct DestroyArgs {
    /// The cache's name
    cache: String,
    /// The key's name
    key: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key resign main main-x4c1v0-2")]
pub struct ResignArgs {
    /// The cache's name
    cache: String,
    /// The name of a key that signs
    key: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key drop-signatures main main-x4c1v0-1")]
pub struct DropArgs {
    /// The cache's name
    cache: String,
    /// The name of a retired key
    key: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  narvault key unlogged main main-x4c1v0-1")]
pub struct UnloggedArgs {
    /// The cache's name
    cache: String,
    /// The key's name
    key: String,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The same text is at URL/api/v1/caches/CACHE/public-keys?format=FORMAT, with an ETag.

Example:
  narvault key public main --format nix-conf")]
pub struct PublicArgs {
    /// The cache's name
    cache: String,
    /// How it is written
    #[arg(long, value_enum, default_value_t = FormatArg::NixConf)]
    format: FormatArg,
}

// Not documentation, which clap would print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// Lines for nix.conf
    NixConf,
    /// A NixOS module
    Nixos,
    /// `nixConfig` of a flake
    Flake,
    /// For programs
    Json,
}

impl From<FormatArg> for PublicKeysFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::NixConf => Self::NixConf,
            FormatArg::Nixos => Self::Nixos,
            FormatArg::Flake => Self::Flake,
            FormatArg::Json => Self::Json,
        }
    }
}

pub async fn rotate(args: RotateArgs, context: &Context) -> Result<(), Failure> {
    let RotateArgs { cache, old, new, publish_days, wait_days } = args;
    let body = RotationCreate { old, new, publish_days, wait_days };
    let rotation = context.client()?.key_rotate(&cache, &body).await?;
    context.printer.answer(&rotation, schedule_text)?;
    if let Some(days) = days_of_wait(&rotation).filter(|days| *days < NARINFO_DAYS) {
        let warning = format!(
            "the old key retires {days} days after everything is signed again, and Nix remembers a narinfo for up to \
             {NARINFO_DAYS} days: a client that has dropped the old key by then refuses what it remembers without the new \
             signature"
        );
        let hint = "have such clients ask again, with `--option narinfo-cache-positive-ttl 0`; or abandon the rotation, \
                    and begin it with a longer `--wait-days`";
        context.printer.warning(&warning, hint);
    }
    context.printer.note(&format!(
        "hint: clients that `narvault use` set up follow with `narvault use --refresh`; give the others the new key now, \
         with `narvault key public {cache}`"
    ));
    Ok(())
}

pub async fn schedule(args: ScheduleArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let mut rotation = client.key_rotation(&args.cache).await?;
    if args.follow {
        rotation = follow(&client, &args.cache, rotation, context.printer).await?;
    }
    context.printer.answer(&rotation, schedule_text)
}

pub async fn pause(cache: &str, paused: bool, context: &Context) -> Result<(), Failure> {
    let rotation = context.client()?.key_rotation_edit(cache, &RotationEdit { paused }).await?;
    context.printer.answer(&rotation, schedule_text)
}

pub async fn abandon(args: AbandonArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let question = format!("Give the rotation of {} up, with keys as they are now?", plain(&args.cache));
    ask::confirm(&question, args.yes, Unattended::Refuse)?;
    client.key_rotation_abandon(&args.cache).await?;
    context
        .printer
        .note(&format!("the rotation is given up; `narvault key list {}` shows which keys sign", args.cache));
    Ok(())
}

pub async fn promote(args: PromoteArgs, context: &Context) -> Result<(), Failure> {
    let key = context.client()?.key_promote(&args.cache, &args.key).await?;
    told(&key, context)
}

pub async fn retire(args: RetireArgs, context: &Context) -> Result<(), Failure> {
    let key = context.client()?.key_retire(&args.cache, &args.key).await?;
    told(&key, context)
}

pub async fn compromise(args: CompromiseArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let question = format!(
        "Stop signing with {} for ever, and take its signatures off everything published?",
        plain(&args.key)
    );
    ask::confirm(&question, args.yes, Unattended::Proceed)?;
    let body = KeyCompromise { reason: args.reason };
    let rotation = client.key_compromise(&args.cache, &args.key, &body).await?;
    context.printer.answer(&rotation, schedule_text)?;
    let cache = &args.cache;
    context.printer.note(&format!(
        "hint: clients have to trust the new key and no longer {}: tell them with root keys, `narvault key succession \
         {cache} --prepare`, or otherwise `narvault key public {cache}`; what was signed without the log is listed by \
         `narvault key unlogged {cache} {}`",
        args.key, args.key
    ));
    Ok(())
}

pub async fn destroy(args: DestroyArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let question = format!("Destroy the secret of {} for ever?", plain(&args.key));
    ask::confirm(&question, args.yes, Unattended::Refuse)?;
    let key = client.key_destroy(&args.cache, &args.key).await?;
    told(&key, context)
}

pub async fn resign(args: ResignArgs, context: &Context) -> Result<(), Failure> {
    let rotation = context.client()?.key_resign(&args.cache, &args.key).await?;
    context.printer.answer(&rotation, schedule_text)
}

pub async fn drop_signatures(args: DropArgs, context: &Context) -> Result<(), Failure> {
    let rotation = context.client()?.key_drop_signatures(&args.cache, &args.key).await?;
    context.printer.answer(&rotation, schedule_text)
}

pub async fn unlogged(args: UnloggedArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let row = |found: &UnloggedSignature| {
        vec![found.place.clone(), moment(&found.found_at), found.subject.clone(), found.signature.clone()]
    };
    let columns = ["PLACE", "FOUND", "SUBJECT", "SIGNATURE"];
    print_list(context.printer, &args.list, &columns, row, async |query| {
        client.key_unlogged(&args.cache, &args.key, &query).await
    })
    .await
}

pub async fn public(args: PublicArgs, context: &Context) -> Result<(), Failure> {
    let format = if context.printer.json { FormatArg::Json } else { args.format };
    let query = PublicKeysQuery { format: Some(format.into()) };
    let bytes = context.client()?.public_keys(&args.cache, &query).await?;
    let mut text = String::from_utf8(bytes)
        .map_err(|error| Failure::caused("the server's answer is no text".into(), error))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    context.printer.data(&text)
}

fn told(key: &KeyView, context: &Context) -> Result<(), Failure> {
    context.printer.answer(key, |key| format!("{} is {}\n", plain(&key.name), plain(&key.state)))
}

/// Asks again and again until the rotation has work left no more, or somebody has to act.
async fn follow(
    client: &Client,
    cache: &str,
    mut rotation: RotationView,
    printer: Printer,
) -> Result<RotationView, Failure> {
    let shown = !printer.json && !printer.quiet && std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}, {eta} left\n{wide_msg}");
    bar.set_style(style.map_err(|error| Failure::new(Exit::Failure, error))?);
    while is_at_work(&rotation) {
        bar.set_length(rotation.total);
        bar.set_position(rotation.done + rotation.refused);
        let waiting = rotation.waiting_for.as_deref().unwrap_or_default();
        bar.set_message(format!("{}: {}", plain(&rotation.step), plain(waiting)));
        tokio::time::sleep(FOLLOW_PAUSE).await;
        rotation = client.key_rotation(cache).await?;
    }
    bar.finish_and_clear();
    Ok(rotation)
}

/// Whether something happens that is no mere passing of time.
fn is_at_work(rotation: &RotationView) -> bool {
    !rotation.paused && matches!(rotation.step.as_str(), "purge" | "resign" | "drop" | "release" | "inspect")
}

/// The rotation, then its steps with their dates.
fn schedule_text(rotation: &RotationView) -> String {
    let key = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let refused = match rotation.refused {
        0 => String::new(),
        count => format!(", {count} left alone: the log does not account for them"),
    };
    let state = if rotation.paused { format!("{}, paused", rotation.step) } else { rotation.step.clone() };
    let fields = Fields::default()
        .with("kind", &rotation.kind)
        .with("old key", key(&rotation.old_key))
        .with("new key", key(&rotation.new_key))
        .with("step", state)
        .with("done", format!("{} of {}{refused}", rotation.done, rotation.total))
        .with_some("waits for", rotation.waiting_for.as_deref());
    let row = |step: &RotationStepView| {
        let when = if step.has_begun { "since" } else { "from" };
        let what = meaning(&rotation.kind, &step.step);
        vec![step.step.clone(), format!("{when} {}", moment(&step.at)), what.to_owned()]
    };
    let rows: Vec<Vec<String>> = rotation.steps.iter().map(row).collect();
    format!("{}\n{}", fields.text(), Table::default().text(&rows))
}

/// How many days the old key goes on signing after everything was signed again.
fn days_of_wait(rotation: &RotationView) -> Option<i64> {
    let begin = |name: &str| {
        let step = rotation.steps.iter().find(|step| step.step == name)?;
        Some(Timestamp::parse_rfc3339(&step.at).ok()?.unix_seconds())
    };
    Some((begin("done")? - begin("wait")?) / (24 * 3600))
}

/// A step in words.
fn meaning(kind: &str, step: &str) -> &'static str {
    match (kind, step) {
        (_, "publish") => "the new key is published and does not sign yet",
        (_, "purge") => "what the old key signed is signed again or withdrawn, and its signatures go",
        ("planned", "resign") => "both keys sign; everything published gets the new signature",
        (_, "resign") => "everything published gets the new signature",
        (_, "drop") => "the retired key's signatures go",
        (_, "release") => "changed narinfos go to storage",
        (_, "inspect") => "storage is looked through for signatures without a leaf",
        (_, "wait") => "clients forget narinfos without the new signature",
        ("planned", "done") => "the old key is retired",
        (_, "done") => "all is done",
        (_, "abandoned") => "given up by hand",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(step: &str) -> RotationView {
        let at = |step: &str, at: &str, has_begun| RotationStepView {
            step: step.to_owned(),
            at: at.to_owned(),
            has_begun,
        };
        RotationView {
            id: "id".into(),
            kind: "planned".into(),
            step: step.into(),
            old_key: Some("main-1".into()),
            new_key: Some("main-2".into()),
            paused: false,
            total: 10,
            done: 4,
            refused: 1,
            waiting_for: Some("5 of 10".into()),
            steps: vec![
                at("resign", "2026-11-22T13:00:00.000Z", true),
                at("done", "2026-12-22T13:00:00.000Z", false),
            ],
            started_at: "2026-11-22T13:00:00.000Z".into(),
            ended_at: None,
        }
    }

    #[test]
    fn a_schedule_has_its_dates_and_what_it_waits_for() {
        let text = schedule_text(&rotation("resign"));

        for part in [
            "old key:    main-1\n",
            "4 of 10, 1 left alone",
            "waits for:  5 of 10\n",
            "resign  since 2026-11-22T13:00:00Z  both keys sign",
            "done    from 2026-12-22T13:00:00Z   the old key is retired\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn the_days_of_the_wait_are_those_between_its_dates() {
        let mut shown = rotation("publish");
        assert_eq!(days_of_wait(&shown), None);
        for (wait, done, days) in [
            ("2026-11-22T13:00:00.000Z", "2026-12-22T13:00:00.000Z", 30),
            ("2026-11-22T13:00:00.000Z", "2026-12-22T12:59:59.999Z", 29),
            ("2026-11-22T13:00:00.000Z", "2026-11-22T13:00:00.000Z", 0),
        ] {
            let step = |step: &str, at: &str| RotationStepView {
                step: step.into(),
                at: at.into(),
                has_begun: false,
            };
            shown.steps = vec![step("wait", wait), step("done", done)];

            assert_eq!(days_of_wait(&shown), Some(days), "{done}");
        }
    }

    #[test]
    fn only_work_is_followed() {
        for step in ["purge", "resign", "drop", "release", "inspect"] {
            assert!(is_at_work(&rotation(step)), "{step}");
            assert!(!is_at_work(&RotationView { paused: true, ..rotation(step) }), "{step}");
        }
        for step in ["publish", "wait", "done", "abandoned"] {
            assert!(!is_at_work(&rotation(step)), "{step}");
        }
    }
}

//! `narvault push`: paths of a store on this machine, to a cache.
//!
//! Data on stdout: the summary line, or with `--json` one event a line and the summary last. Progress, notes and
//! failures on stderr.

use std::collections::BTreeSet;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::sync::Mutex;

use clap::{Args, ValueEnum};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

use super::Context;
use super::failure::{Exit, Failure};
use super::output::{Printer, to_stderr};
use super::text::{plain, size};
use crate::client::push::{
    Event, LocalStore, PART_SIZE_BYTES_MAX, PART_SIZE_BYTES_MIN, Packing, PushError, PushOptions, Report,
    push,
};
use crate::heap;
use crate::nix::compression::Compression;

/// Push store paths, with all that they refer to, to a cache
#[derive(Debug, Args)]
#[command(after_help = "\
A push that was interrupted is continued by the next one.

Example:
  narvault push main ./result")]
pub struct PushArgs {
    /// Name of the cache
    cache: String,
    /// Store paths, or links into the store such as ./result
    #[arg(value_name = "PATH", required_unless_present = "stdin")]
    paths: Vec<PathBuf>,
    /// Read paths from stdin too, one a line
    #[arg(long)]
    stdin: bool,
    #[command(flatten)]
    how: HowArgs,
    /// Only say what would be pushed
    #[arg(long)]
    dry_run: bool,
}

/// How paths are pushed, by whichever command.
#[derive(Debug, Clone, Args)]
pub struct HowArgs {
    /// Push from another store of this machine: a folder, or local?root=FOLDER
    #[arg(long, value_name = "STORE")]
    store: Option<LocalStore>,
    /// Only the paths themselves, not what they refer to
    #[arg(long)]
    no_closure: bool,
    /// Compress so many paths at once [default: the processors, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
    /// Compress by this method
    #[arg(long, value_enum, default_value_t = CompressionArg::Zstd)]
    compression: CompressionArg,
    /// 1 to 19 for zstd [default: 3], 0 to 9 for xz [default: 6]
    #[arg(long, value_name = "N")]
    level: Option<i32>,
    /// Send large files in parts of so many MiB, and no larger body
    #[arg(
        long, value_name = "MIB", default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(PART_MIB_MIN..=PART_MIB_MAX)
    )]
    part_size: u16,
}

const PART_MIB_MIN: i64 = (PART_SIZE_BYTES_MIN >> 20) as i64;
const PART_MIB_MAX: i64 = (PART_SIZE_BYTES_MAX >> 20) as i64;

// Not documentation, which clap would print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    Zstd,
    Xz,
    None,
}

impl HowArgs {
    /// The options of a push.
    pub fn options(&self) -> Result<PushOptions, Failure> {
        let compression = match self.compression {
            CompressionArg::Zstd => Compression::Zstd,
            CompressionArg::Xz => Compression::Xz,
            CompressionArg::None => Compression::None,
        };
        let packing =
            Packing::new(compression, self.level).map_err(|error| Failure::new(Exit::Usage, error))?;
        let usual = PushOptions::default();
        Ok(PushOptions {
            store: self.store.clone().unwrap_or_default(),
            closure: !self.no_closure,
            jobs: self.jobs.map_or(usual.jobs, usize::from),
            packing,
            part_size_bytes: usize::from(self.part_size) << 20,
            ..usual
        })
    }
}

pub async fn run(args: PushArgs, context: &Context) -> Result<(), Failure> {
    let options = PushOptions { dry_run: args.dry_run, ..args.how.options()? };
    let mut paths = args.paths;
    if args.stdin {
        paths.extend(paths_from_stdin()?);
    }
    let client = context.client()?;
    heap::give_large_blocks_back();
    let teller = Teller::new(context.printer, args.dry_run);
    let result = push(&client, &args.cache, &paths, &options, &|event| teller.tell(&event)).await;
    teller.end();
    let report = result?;
    context
        .printer
        .answer(&Done { event: "done", report: &report }, |done| summary(done.report, args.dry_run))?;
    if report.failed.is_empty() { Ok(()) } else { Err(failed(&report)) }
}

/// The last line of `--json`.
#[derive(Serialize)]
struct Done<'a> {
    event: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// The last line for people; after a dry run, the paths before it.
fn summary(report: &Report, dry_run: bool) -> String {
    let Report { new, present, upstream, .. } = report;
    let whole = mib(report.nar_size_bytes);
    if dry_run {
        let mut text: String = report.missing.iter().map(|path| format!("{path}\n")).collect();
        let missing = report.missing.len();
        text.push_str(&format!(
            "{missing} to push, {present} already there, {upstream} upstream; {whole} MiB of NARs in all\n"
        ));
        return text;
    }
    let failed = match report.failed.len() {
        0 => String::new(),
        count => format!(", {count} failed"),
    };
    let keys: Vec<&str> = report.keys.iter().map(String::as_str).collect();
    let signed = if keys.is_empty() { String::new() } else { format!(", signed by {}", keys.join(" and ")) };
    let (sent, seconds) = (mib(report.bytes_sent), report.seconds);
    format!(
        "{new} new, {present} already there, {upstream} upstream{failed}; {sent} MiB sent of {whole} MiB in \
         {seconds:.1} s{signed}\n"
    )
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1024.0 * 1024.0))
}

/// Some paths could not be pushed, which was told of each.
fn failed(report: &Report) -> Failure {
    let statuses: BTreeSet<u16> = report.failed.iter().filter_map(|failed| failed.status).collect();
    let exit = if statuses.is_empty() { Exit::Failure } else { Exit::Refused };
    let (count, all) =
        (report.failed.len(), report.failed.len() + report.new + report.present + report.upstream);
    let failure = Failure::new(exit, format!("{count} of {all} paths could not be pushed"));
    if statuses.contains(&409) {
        failure.hint("run `narvault path show CACHE HASH` to see who pushed the other content")
    } else if statuses.contains(&413) {
        failure.hint("a limit of the server stands against it, which only its operator can raise")
    } else if statuses.is_empty() {
        failure.hint("run `nix-store --verify --check-contents` to find what is damaged")
    } else {
        failure.hint("what is named first has to be mended first; whatever does not depend on it was pushed")
    }
}

impl From<PushError> for Failure {
    fn from(error: PushError) -> Self {
        let hint = error.hint();
        let failure = match error {
            PushError::Client(error) => return error.into(),
            PushError::Store(error) => Self::Told { exit: Exit::Failure, error: error.into(), hint: None },
        };
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

fn paths_from_stdin() -> Result<Vec<PathBuf>, Failure> {
    let lines = std::io::stdin().lock().lines();
    let lines: Result<Vec<String>, _> = lines.collect();
    let lines = lines.map_err(|error| Failure::caused("cannot read paths from stdin".into(), error))?;
    Ok(lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}

/// Tells what happens: as a bar on a terminal, as lines elsewhere, as JSON for programs.
struct Teller {
    printer: Printer,
    dry_run: bool,
    bar: ProgressBar,
    /// Names of what is compressed or on its way, oldest first.
    active: Mutex<Vec<String>>,
}

impl Teller {
    fn new(printer: Printer, dry_run: bool) -> Self {
        let shown = !printer.json && !printer.quiet && !dry_run && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}{left}\n{wide_msg}");
        bar.set_style(style.expect("a constant that the test below draws").with_key("left", left));
        Self { printer, dry_run, bar, active: Mutex::default() }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }

    fn tell(&self, event: &Event) {
        if self.printer.json {
            return self.tell_programs(event);
        }
        match event {
            Event::Planned { paths, missing, nar_size_to_make_bytes, .. } => {
                self.bar.set_length(*nar_size_to_make_bytes);
                if !self.dry_run && *missing > 0 {
                    self.note(&format!(
                        "pushing {missing} of {paths} paths, {} of NARs",
                        size(*nar_size_to_make_bytes)
                    ));
                }
            }
            Event::Read { bytes } => self.bar.inc(*bytes),
            Event::Started { path, .. } => self.activate(path),
            Event::Stored { path, file_size_bytes } => {
                self.deactivate(path);
                if self.bar.is_hidden() {
                    self.note(&format!("stored {path}, {}", size(*file_size_bytes)));
                }
            }
            Event::Failed { path, reason, .. } => {
                self.deactivate(path);
                self.error(&format!("error: cannot push {}: {}\n", plain(path), plain(reason)));
            }
            Event::Waiting { reason, seconds } => {
                self.note(&format!("{reason}; trying again in {seconds:.1} s"))
            }
            Event::Rerouted { reason } => self.bar.suspend(|| {
                let hint =
                    "the operator can let the bucket be reached from here, or switch `uploads.direct` off";
                self.printer.warning(&format!("{reason}: parts go through the server"), hint);
            }),
            Event::Sent { .. } | Event::Kept { .. } | Event::Published { .. } => {}
        }
    }

    fn tell_programs(&self, event: &Event) {
        // Hundreds a second, and of use to a bar alone.
        if matches!(event, Event::Read { .. }) {
            return;
        }
        // A reader that has gone away is told of by the summary, which is written to it too.
        let _ = self.printer.answer(event, |_| String::new());
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| self.printer.note(text));
    }

    fn error(&self, text: &str) {
        self.bar.suspend(|| to_stderr(text));
    }

    fn activate(&self, path: &str) {
        self.change_active(|active| active.push(name(path)));
    }

    fn deactivate(&self, path: &str) {
        self.change_active(|active| active.retain(|other| *other != name(path)));
    }

    fn change_active(&self, change: impl FnOnce(&mut Vec<String>)) {
        let mut active = self.active.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut active);
        self.bar.set_message(active.join("  "));
    }
}

/// The time that is left, while it can be told: not before the first byte, nor after the last one, which has to be sent yet.
fn left(state: &ProgressState, text: &mut dyn std::fmt::Write) {
    if state.pos() > 0 && state.pos() < state.len().unwrap_or_default() {
        let _ = write!(text, ", {:#} left", HumanDuration(state.eta()));
    }
}

/// `hello-2.12` of `/nix/store/…-hello-2.12`.
fn name(path: &str) -> String {
    let base_name = path.rsplit('/').next().unwrap_or(path);
    base_name.split_once('-').map_or(base_name, |(_, name)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::push::FailedPath;

    fn report() -> Report {
        Report {
            paths: 7,
            new: 3,
            present: 2,
            upstream: 1,
            bytes_sent: 1_572_864,
            nar_size_bytes: 12 << 20,
            seconds: 1.26,
            keys: ["main-1".to_owned()].into(),
            ..Report::default()
        }
    }

    #[test]
    fn the_last_line_says_it_all() {
        assert_eq!(
            summary(&report(), false),
            "3 new, 2 already there, 1 upstream; 1.5 MiB sent of 12.0 MiB in 1.3 s, signed by main-1\n"
        );
        let nothing = Report { present: 7, nar_size_bytes: 12 << 20, ..Report::default() };
        assert_eq!(
            summary(&nothing, false),
            "0 new, 7 already there, 0 upstream; 0.0 MiB sent of 12.0 MiB in 0.0 s\n"
        );
    }

    #[test]
    fn a_dry_run_lists_what_is_to_be_pushed() {
        let report = Report { missing: vec!["/nix/store/x".into(), "/nix/store/y".into()], ..report() };

        assert_eq!(
            summary(&report, true),
            "/nix/store/x\n/nix/store/y\n2 to push, 2 already there, 1 upstream; 12.0 MiB of NARs in all\n"
        );
    }

    #[test]
    fn what_failed_decides_the_exit_code() {
        for (statuses, expected, hint) in [
            (&[None][..], 1, "nix-store --verify"),
            (&[None, Some(409)], 4, "narvault path show"),
            (&[Some(413)], 4, "operator"),
            (&[Some(422)], 4, "has to be mended"),
        ] {
            let failed_paths = statuses.iter().map(|&status| FailedPath {
                path: "/nix/store/x".into(),
                reason: "r".into(),
                status,
            });
            let report = Report { failed: failed_paths.collect(), ..report() };

            let failure = failed(&report);

            let told = failure.to_string();
            assert!(told.contains(hint) && told.contains("could not be pushed"), "{told}");
            let code = std::process::ExitCode::from(expected);
            assert_eq!(format!("{:?}", failure.exit_code()), format!("{code:?}"));
            assert!(summary(&report, false).contains(&format!("{} failed", statuses.len())));
        }
    }

    #[test]
    fn the_bar_draws_what_is_active() {
        let teller = Teller::new(Printer { json: false, quiet: true }, false);
        let path = |name: &str| format!("/nix/store/mmjhp110f3wf5kp5q70rc7p49yln4qzy-{name}");

        teller.tell(&Event::Started { path: path("a"), nar_size_bytes: 1 });
        teller.tell(&Event::Started { path: path("b-1.0"), nar_size_bytes: 1 });
        teller.tell(&Event::Stored { path: path("a"), file_size_bytes: 1 });

        assert_eq!(teller.bar.message(), "b-1.0");
    }
}

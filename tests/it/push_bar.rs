//! What `narvault push` shows to people at a terminal: one bar with bytes and the time that is left, what is under way below
//! it, and in the end one line that says it all.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::push::{noisy, pusher};
use crate::support::nix::require_nix;
use crate::support::proxy::{Manners, Proxy, REFUSAL_DETAIL, Refusal};
use crate::support::server::{Backend, Ended, TestServer};

/// The same command at a terminal of its own; `None` where there is no program that makes one.
async fn at_a_terminal(command: Command) -> Option<Ended> {
    let version = Command::new("script").arg("--version").output().await.ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("util-linux") {
        return None;
    }
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("stty cols {WIDTH} rows 40; exec {}", words.join(" ")), "/dev/null"]);
    script.env_clear().env("TERM", "xterm").current_dir(command.get_current_dir().unwrap());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.stdin(Stdio::null()).kill_on_drop(true);
    Some(Ended::of(script).await)
}

/// Columns of the terminal.
const WIDTH: usize = 120;

/// The rows that are seen: a line that is longer than the terminal is wide goes on in the next row.
fn rows(shown: &str) -> Vec<String> {
    let wrap = |line: &str| -> Vec<String> {
        let letters: Vec<char> = line.chars().collect();
        letters.chunks(WIDTH).map(|row| row.iter().collect::<String>().trim().to_owned()).collect()
    };
    shown.lines().flat_map(wrap).filter(|row| !row.is_empty()).collect()
}

/// What was written, without what moves the cursor and clears lines.
fn plain(written: &str) -> String {
    let mut text = String::new();
    let mut rest = written.chars();
    while let Some(letter) = rest.next() {
        match letter {
            '\u{1b}' => drop(rest.find(|end| end.is_ascii_alphabetic())),
            '\r' => text.push('\n'),
            _ => text.push(letter),
        }
    }
    text
}

/// Whether the last line is as it is to be: `N new, M already there, K upstream; X MiB sent of Y MiB in Z s, signed by main-1`.
#[track_caller]
fn assert_summary(line: &str, [new, present, upstream]: [u32; 3], key: &str) {
    let beginning = format!("{new} new, {present} already there, {upstream} upstream; ");
    let rest = line.strip_prefix(&beginning).unwrap_or_else(|| panic!("{line}"));
    let (sent, rest) = rest.split_once(" MiB sent of ").unwrap_or_else(|| panic!("{line}"));
    let (whole, rest) = rest.split_once(" MiB in ").unwrap_or_else(|| panic!("{line}"));
    let (seconds, signed) = rest.split_once(" s, signed by ").unwrap_or_else(|| panic!("{line}"));
    let [sent, whole, seconds]: [f64; 3] = [sent, whole, seconds].map(|number| number.parse().unwrap());
    assert!(sent > 0.0 && sent <= whole * 1.1 && seconds > 0.0, "{line}");
    assert_eq!(signed, key, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_shows_bytes_the_time_that_is_left_and_what_is_under_way_and_then_one_line() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 6, 2_000_000).await;
    const BUSY: &[Refusal] = &[Refusal { request: 3, status: 503, slug: "busy", retry_after: "" }];
    let manners = Manners { delay: Duration::from_millis(200), refusals: BUSY, ..Manners::default() };
    let proxy = Proxy::before(&server.url, manners).await;
    let arguments: Vec<&str> = ["main"].into_iter().chain(paths.iter().map(String::as_str)).collect();

    let Some(ended) = at_a_terminal(alice.narvault_push(&proxy.url, &token, &arguments)).await else {
        return println!("skipped: no program makes a terminal here");
    };

    assert_eq!(ended.code, Some(0), "{ended:?}");
    let shown = plain(&ended.stdout);
    let rows = rows(&shown);
    let bars: Vec<&String> = rows.iter().filter(|row| row.contains("B/11.44 MiB")).collect();
    // `███░░░ 3.81 MiB/11.44 MiB, 1s left`, and no time where none can be told.
    let (timed, untimed): (Vec<&String>, Vec<&String>) =
        bars.into_iter().partition(|bar| bar.ends_with(" left"));
    assert!(!timed.is_empty(), "{rows:#?}");
    for bar in untimed {
        assert!(bar.ends_with(" 0 B/11.44 MiB") || bar.ends_with(" 11.44 MiB/11.44 MiB"), "{bar}");
    }
    let is_under_way = |row: &String| row.split("  ").all(|word| word.starts_with("noise-"));
    assert!(rows.iter().any(is_under_way), "{rows:#?}");
    assert!(!shown.contains("stored /nix/store"), "the bar tells it: {shown}");
    assert!(shown.contains(&format!("{REFUSAL_DETAIL} (request r-1); trying again in ")), "{shown}");
    assert_summary(rows.last().unwrap(), [6, 0, 0], server.public_key.split(':').next().unwrap());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_plain_lines_goes_where_no_terminal_is_and_no_bar_where_it_is_told_so() {
    let nix = require_nix!();
    let server = TestServer::start(Backend::SQLITE_DISK).await.unwrap();
    let (alice, token) = pusher(&nix, &server).await;
    let paths = noisy(&alice, 2, 200_000).await;

    let lines = Ended::of(alice.narvault_push(&server.url, &token, ["main", &*paths[0]])).await;
    let quiet =
        at_a_terminal(alice.narvault_push(&server.url, &token, ["main", &*paths[1], "--quiet"])).await;

    assert!(!lines.stderr.contains(['\u{1b}', '\r']) && !lines.stdout.contains('\u{1b}'), "{lines:?}");
    assert!(lines.stderr.contains(&format!("stored {}", paths[0])), "{lines:?}");
    assert_eq!(lines.stdout.lines().count(), 1, "{lines:?}");
    if let Some(quiet) = quiet {
        assert_eq!(quiet.code, Some(0), "{quiet:?}");
        assert!(!quiet.stdout.contains(" left"), "{quiet:?}");
        assert!(plain(&quiet.stdout).trim().starts_with("1 new, 0 already there"), "{quiet:?}");
    }
    server.stop().await;
}

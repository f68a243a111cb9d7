//! What an edit changes, as a unified diff for people, without secrets.
//!
//! Never holds a token or a password, whatever stands in the files.

use std::fmt::Write;

/// What kind of text is shown: each has its own secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NixConf,
    Netrc,
}

/// The difference between two texts of a file; empty if there is none. `None`: no file.
pub fn unified(path: &str, before: Option<&str>, after: Option<&str>, kind: Kind) -> String {
    if before == after {
        return String::new();
    }
    let old: Vec<&str> = before.unwrap_or_default().split_inclusive('\n').collect();
    let new: Vec<&str> = after.unwrap_or_default().split_inclusive('\n').collect();
    let same = |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut old.iter().zip(&new));
    let tail = same(&mut old[head..].iter().rev().zip(new[head..].iter().rev()));
    let from = head.saturating_sub(CONTEXT_LINES);
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let after_context = tail.min(CONTEXT_LINES);

    let name = |text: Option<&str>| if text.is_some() { path } else { "/dev/null" };
    let mut text = format!("--- {}\n+++ {}\n", name(before), name(after));
    let range = |end: usize| {
        let count = end + after_context - from;
        format!("{},{count}", if count == 0 { 0 } else { from + 1 })
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "@@ -{} +{} @@", range(old_end), range(new_end));
    let mut put = |sign: char, lines: &[&str]| {
        for line in lines {
            let shown = redacted(line.trim_end_matches(['\n', '\r']), kind);
            let _ = writeln!(text, "{sign}{}", crate::cli::text::plain(&shown));
            if !line.ends_with('\n') {
                text.push_str("\\ No newline at end of file\n");
            }
        }
    };
    put(' ', &old[from..head]);
    put('-', &old[head..old_end]);
    put('+', &new[head..new_end]);
    put(' ', &old[old_end..old_end + after_context]);
    text
}

/// A line without what must not be shown.
fn redacted(line: &str, kind: Kind) -> String {
    match kind {
        Kind::NixConf => redacted_nix_conf(line),
        Kind::Netrc => redacted_netrc(line),
    }
}

fn redacted_nix_conf(line: &str) -> String {
    let name = line.trim_start().split([' ', '\t', '=']).next().unwrap_or_default();
    if matches!(name.trim_start_matches('#'), "access-tokens" | "extra-access-tokens") {
        return format!("{name} = {REDACTED}");
    }
    let word = |word: &str| match (word.split_once("://"), word.contains("nvt_")) {
        (_, true) => REDACTED.to_owned(),
        (Some((scheme, rest)), _) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{REDACTED}@{host}"),
            None => word.to_owned(),
        },
        _ => word.to_owned(),
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Only what is known to be no secret stays: keywords, hosts and logins, and our own comments. A password may stand on
/// any line, also alone or commented out.
fn redacted_netrc(line: &str) -> String {
    if line.starts_with("# narvault: ") || line.starts_with("# Written by `narvault") {
        return line.to_owned();
    }
    let mut before = "";
    let mut shown = Vec::new();
    for word in line.split_whitespace() {
        let is_keyword =
            matches!(word, "machine" | "default" | "login" | "password" | "account" | "macdef" | "#");
        let is_name =
            matches!(before, "machine" | "login") && !word.contains("nvt_") && !word.starts_with("ey");
        shown.push(if is_keyword || is_name { word } else { REDACTED });
        before = word;
    }
    shown.join(" ")
}

/// As `diff -u` has it.
const CONTEXT_LINES: usize = 3;

const REDACTED: &str = "[redacted]";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_edit_is_shown_with_three_lines_around_it() {
        let diff = unified("/x", Some("1\n2\n3\n4\n5\n"), Some("1\n2\n3\n4\nnew\n5\n"), Kind::NixConf);

        assert_eq!(diff, "--- /x\n+++ /x\n@@ -2,4 +2,5 @@\n 2\n 3\n 4\n+new\n 5\n");
    }

    #[test]
    fn files_that_come_and_go_and_lines_without_an_end_are_told() {
        let made = unified("/x", None, Some("a\n"), Kind::NixConf);
        let removed = unified("/x", Some("a\n"), None, Kind::NixConf);
        let ended = unified("/x", Some("a"), Some("a\n"), Kind::NixConf);

        assert_eq!(made, "--- /dev/null\n+++ /x\n@@ -0,0 +1,1 @@\n+a\n");
        assert_eq!(removed, "--- /x\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        assert_eq!(ended, "--- /x\n+++ /x\n@@ -1,1 +1,1 @@\n-a\n\\ No newline at end of file\n+a\n");
        assert_eq!(unified("/x", Some("a"), Some("a"), Kind::NixConf), "");
    }

    #[test]
    fn secrets_are_not_shown() {
        for (kind, line) in [
            (Kind::Netrc, "machine a.example login me password secret"),
            (Kind::Netrc, "machine a.example login nvt_secret password x"),
            (Kind::Netrc, "  secret"),
            (Kind::Netrc, "password \"se secret\""),
            (Kind::Netrc, "# password secret"),
            (Kind::Netrc, "#secret"),
            (Kind::Netrc, "default account secret"),
            (Kind::NixConf, "access-tokens = github.com=secret gitlab.com=secret"),
            (Kind::NixConf, "  extra-access-tokens\t=\tgithub.com=secret"),
            (Kind::NixConf, "#access-tokens = github.com=secret"),
            (Kind::NixConf, "substituters = https://me:secret@a.example/x https://b.example"),
            (Kind::NixConf, "# nvt_secret"),
        ] {
            for (before, after) in [(None, Some(line)), (Some(line), Some("other"))] {
                let diff = unified("/x", before, after, kind);

                assert!(diff.contains(REDACTED) && !diff.contains("secret"), "{diff}");
            }
        }
        let kept = unified("/x", None, Some("substituters = https://a.example/x"), Kind::NixConf);
        assert!(kept.contains("+substituters = https://a.example/x\n"), "{kept}");
    }

    proptest! {
        #[test]
        fn every_pair_of_texts_has_a_diff_with_the_right_counts(
            before in "([ab]?\n){0,9}[ab]?",
            after in "([ab]?\n){0,9}[ab]?",
        ) {
            let diff = unified("/x", Some(&before), Some(&after), Kind::NixConf);
            if before == after {
                prop_assert_eq!(diff, "");
            } else {
                let ranges = diff.lines().nth(2).unwrap().split(' ').filter_map(|range| range.split_once(','));
                let counts: Vec<usize> = ranges.map(|(_, count)| count.parse().unwrap()).collect();
                let lines = |signs: [char; 2]| diff.lines().skip(3).filter(|line| line.starts_with(signs)).count();
                prop_assert_eq!(&counts[..], &[lines([' ', '-']), lines([' ', '+'])][..]);
            }
        }
    }
}

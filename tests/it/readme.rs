//! What README and docs say is true: every command line parses, every link and every test named exists, and the
//! tables of keys and metrics are those of the code. `NARVAULT_TEST_BLESS=1` writes the tables.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use narvault::config::{reference_markdown, variable};
use narvault::http::{METRICS, MetricKind};

#[test]
fn every_command_line_in_readme_and_docs_parses() {
    let mut count = 0;
    for (path, text) in pages() {
        for line in code(&text) {
            let Some(words) = command(&line) else { continue };
            if let Err(error) = narvault::cli::parse(&words) {
                // Help and version are answers too, which clap calls errors.
                assert!(!error.use_stderr(), "{}: {line}\n{error}", path.display());
            }
            count += 1;
        }
    }

    assert!(count >= 20, "only {count} command lines were found");
}

#[test]
fn every_link_to_a_file_leads_to_one() {
    let mut count = 0;
    for (path, text) in pages() {
        let folder = path.parent().unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let file = link.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{}: {link}", path.display());
            count += 1;
        }
    }

    assert!(count >= 10, "only {count} links were found");
}

#[test]
fn every_test_that_is_named_exists() {
    let mut sources = String::new();
    for folder in ["src", "tests"] {
        read_sources(&root().join(folder), &mut sources);
    }
    for (path, text) in pages() {
        for name in inline_code(&text).filter(|name| is_test_name(name)) {
            assert!(sources.contains(&format!("fn {name}(")), "{}: no test `{name}`", path.display());
        }
    }
}

#[test]
fn the_table_of_keys_is_that_of_the_configuration() {
    check_generated(&root().join("README.md"), "configuration", &reference_markdown());
}

#[test]
fn the_table_of_metrics_is_that_of_the_code() {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for metric in METRICS {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(table, "| `{}` | {kind} | {labels} | {} |", metric.name, metric.help).unwrap();
    }

    check_generated(&root().join("docs/operations.md"), "metrics", &table);
}

#[test]
fn command_lines_are_found_among_what_stands_around_them() {
    for (line, expected) in [
        ("narvault serve", Some("narvault serve")),
        ("$ sudo -u narvault narvault admin claim", Some("narvault admin claim")),
        ("docker compose exec narvault narvault check", Some("narvault check")),
        (
            "echo x | narvault login https://a.example --token-stdin",
            Some("narvault login https://a.example --token-stdin"),
        ),
        ("narvault cache list # all of them", Some("narvault cache list")),
        (
            "narvault token revoke ID --reason 'left the team'",
            Some("narvault token revoke ID --reason left the team"),
        ),
        ("cargo run --release -- demo", Some("narvault demo")),
        ("createdb narvault", None),
        ("docker compose logs narvault", None),
        ("cd narvault && ls", None),
    ] {
        assert_eq!(command(line).map(|words| words.join(" ")).as_deref(), expected, "{line}");
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README and every page of docs.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// Lines of code blocks, continued lines joined, and code within sentences.
fn code(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut prose = String::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 0 {
            prose.push_str(part);
        } else {
            lines.extend(part.replace("\\\n", " ").lines().skip(1).map(str::to_owned));
        }
    }
    lines.extend(inline_code(&prose).map(str::to_owned));
    lines
}

fn inline_code(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

/// The arguments of the call of narvault in a line of shell, if there is one.
pub fn command(line: &str) -> Option<Vec<String>> {
    let words = shell_words(line);
    let arguments = words.windows(3).position(|three| three[0] == "run" && three[2] == "--");
    if let Some(at) = arguments.filter(|_| words[0] == "cargo") {
        return Some([vec!["narvault".to_owned()], words[at + 3..].to_vec()].concat());
    }
    let at = words.iter().rposition(|word| word == "narvault")?;
    let next = words.get(at + 1)?;
    let called = next.starts_with(|first: char| first.is_ascii_lowercase() || first == '-');
    called.then(|| words[at..].to_vec())
}

/// The words of the one command in a line that calls narvault: up to what ends it.
fn shell_words(line: &str) -> Vec<String> {
    let mut commands = vec![vec![String::new()]];
    let mut quote = None;
    for character in line.chars() {
        let words = commands.last_mut().unwrap();
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, '|' | '&' | ';') => commands.push(vec![String::new()]),
            (None, '#' | '<' | '>') if words.last().unwrap().is_empty() => break,
            (None, ' ' | '\n') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    let mut found = commands.into_iter().map(|mut words| {
        words.retain(|word| !word.is_empty());
        words
    });
    found
        .find(|words| {
            words.iter().any(|word| word == "narvault") || words.first().is_some_and(|first| first == "cargo")
        })
        .unwrap_or_default()
}

/// House style names a test by a sentence; metrics have underscores too.
fn is_test_name(text: &str) -> bool {
    if text.starts_with("narvault_") {
        return false;
    }
    text.matches('_').count() >= 3
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
}

fn read_sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Compares what stands between two marks with what the code says; with `NARVAULT_TEST_BLESS=1` writes it.
fn check_generated(path: &Path, name: &str, expected: &str) {
    let (begin, end) = (format!("<!-- {name}: generated, begin -->\n"), format!("<!-- {name}: end -->"));
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) =
        text.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in {}", path.display()));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end:?} in {}", path.display()));

    if variable("NARVAULT_TEST_BLESS").is_some_and(|value| value == "1") {
        fs::write(path, format!("{before}{begin}{expected}{end}{after}")).unwrap();
        return;
    }

    assert!(
        found == expected,
        "the table `{name}` in {} is not that of the code\nhint: NARVAULT_TEST_BLESS=1 cargo test --test it readme",
        path.display()
    );
}

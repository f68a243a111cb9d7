//! The templates that people copy are true: those for CI are YAML, the units are units, and each call of narvault in them,
//! comments included, is one that this version understands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use yaml_serde::Value;

use crate::readme::command;

/// The files of a folder with this extension, by their names.
fn files(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// Every text in a YAML document, keys left out.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Sequence(values) => values.iter().flat_map(texts).collect(),
        Value::Mapping(map) => map.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// The calls of narvault in lines of shell, wherever the program lies.
fn calls<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    lines.filter_map(|line| command(&line.replace("/usr/local/bin/narvault", "narvault"))).collect()
}

#[track_caller]
fn assert_understood(name: &str, calls: &[Vec<String>]) {
    for words in calls {
        if let Err(error) = narvault::cli::parse(words) {
            panic!("{name}: {words:?}\n{error}");
        }
    }
}

#[test]
fn the_templates_for_ci_are_yaml_and_push_by_commands_that_there_are() {
    let templates = files("docs/ci", "yml");
    assert_eq!(templates.len(), 3, "{:?}", templates.keys());
    for (name, text) in templates {
        let value: Value = yaml_serde::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let texts = texts(&value);
        let steps = calls(texts.iter().flat_map(|text| text.lines()));
        let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
        let comments = calls(comments.map(str::trim).filter(|line| line.starts_with("narvault ")));

        assert_understood(&name, &steps);
        assert_understood(&name, &comments);
        let pushes = steps.iter().filter(|words| words[1] == "push").count();
        assert_eq!((pushes, comments.len()), (1, 2), "{name}: {steps:?} {comments:?}");
        // The token is a secret of the platform's, never a text.
        assert!(!text.contains("nvt_"), "{name}");
    }
}

/// The settings of a unit, by section and name.
fn unit(name: &str, text: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut section = String::new();
    let mut settings: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(found) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = found.to_owned();
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        settings.entry((section.clone(), key.to_owned())).or_default().push(value.to_owned());
    }
    settings
}

#[test]
fn the_units_run_commands_that_there_are_and_leave_them_the_time_to_stop() {
    let units = files("deploy", "service");
    assert_eq!(units.len(), 3, "{:?}", units.keys());
    for (name, text) in units {
        let settings = unit(&name, &text);
        let one = |section: &str, key: &str| -> &str {
            match settings.get(&(section.to_owned(), key.to_owned())).map(Vec::as_slice) {
                Some([value]) => value,
                found => panic!("{name}: {section} {key}: {found:?}"),
            }
        };
        let started = one("Service", "ExecStart").replace("%i", "main");
        let calls = calls([started.as_str()].into_iter());

        assert_eq!(calls.len(), 1, "{name}: {started}");
        assert_understood(&name, &calls);
        // Ends by itself, and is started by its timer.
        let kind = settings.get(&("Service".to_owned(), "Type".to_owned()));
        if kind.is_some_and(|kind| kind == &["oneshot"]) {
            continue;
        }
        // The default of `--flush-timeout` is 30 s; the look at the store before it takes some seconds more.
        let seconds: u64 = one("Service", "TimeoutStopSec").parse().unwrap();
        assert!(seconds >= 60, "{name}: {seconds}");
        assert_eq!(one("Service", "KillMode"), "mixed", "{name}: Nix must outlive the signal");
        assert_eq!(one("Install", "WantedBy"), "multi-user.target", "{name}");
    }
}

#[test]
fn the_hook_of_the_templates_never_fails_a_build() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/narvault-post-build-hook");
    let text = fs::read_to_string(path).unwrap();
    let calls = calls(text.lines().filter(|line| !line.starts_with('#')));

    assert_eq!(calls.len(), 1, "{text}");
    assert_understood("narvault-post-build-hook", &calls);
    assert!(text.trim_end().ends_with("|| true"), "{text}");
}

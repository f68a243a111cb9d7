//! The demo and the check do what they promise, as a person runs them: as processes of their own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A narvault with nothing of this machine's configuration but the search path.
fn narvault(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_narvault"));
    command.args(arguments).env_clear().current_dir(folder).env("HOME", folder).env("TMPDIR", folder);
    if let Some(path) = narvault::config::variable("PATH") {
        command.env("PATH", path);
    }
    command
}

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output, said)
}

/// What lies in a folder, however deep.
fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(entries(&path));
        }
        found.push(path);
    }
    found
}

#[test]
fn the_demo_tells_the_whole_story_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();

    let (output, said) = run(narvault(&["demo"], folder.path()));

    assert!(output.status.success(), "{said}");
    for word in ["alice", "bob", "409", "401", "signed by main-", "nix copy --to", "narvault path show"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(entries(folder.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn the_demo_works_without_nix_and_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = narvault(&["demo", "--json"], folder.path());
    command.env("PATH", folder.path());

    let (output, said) = run(command);

    assert!(output.status.success(), "{said}");
    let steps: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(steps.len() >= 8, "{said}");
    assert!(steps.iter().enumerate().all(|(index, step)| step["step"] == index + 1), "{said}");
    assert!(said.contains("Nix is not installed here"), "{said}");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind_either() {
    let folder = tempfile::tempdir().unwrap();
    let mut child =
        narvault(&["demo"], folder.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut told = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();

    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    told.read_to_string(&mut line).unwrap();
    let status = child.wait().unwrap();

    assert_eq!(status.code(), Some(1), "{line}");
    assert_eq!(entries(folder.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_check_before_the_first_start_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();

    let (output, said) = run(narvault(&["check"], folder.path()));

    assert!(output.status.success(), "{said}");
    assert!(said.contains("not set up yet"), "{said}");
    assert_eq!(entries(folder.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_wrong_configuration_fails_the_check_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("narvault.toml"), "lisen = 'x'\n").unwrap();

    let (output, said) = run(narvault(&["check", "--json", "--config", "narvault.toml"], folder.path()));

    assert_eq!(output.status.code(), Some(1), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["checks"][0]["status"], "fail");
    assert!(report["checks"][0]["detail"].as_str().unwrap().contains("`listen`"), "{said}");
    assert!(report["checks"][0]["hint"].is_string());
}

#[test]
fn a_check_with_a_broken_part_still_looks_at_the_others() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("objects")).unwrap();
    let mut command = narvault(&["check", "--json"], folder.path());
    command
        .env("NARVAULT_DATABASE_URL", "postgres://nobody:secret@127.0.0.1:1/none")
        .env("NARVAULT_STORAGE_URL", "file://./objects");

    let (output, said) = run(command);

    assert_eq!(output.status.code(), Some(1), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |part: &str| {
        let lines = report["checks"].as_array().unwrap().iter().filter(|line| line["part"] == part);
        lines.map(|line| line["status"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(of("database"), ["fail"], "{said}");
    assert_eq!(of("storage"), ["ok", "ok"], "{said}");
    assert_eq!(of("vault"), ["warn"], "{said}");
    assert!(!said.contains("secret"), "{said}");
}

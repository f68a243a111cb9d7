//! House rules that a reader must be able to rely on: layers, the one place of each thing, what never occurs.
//! Reads code only; what a comment or a documentation text mentions is nobody's business here.

mod source;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use self::source::{Kind, Source, root};

/// Which layer may use which: arrows only point downwards. A new arrow is a design decision: change
/// the line here and the map in `src/lib.rs`, and say why in the commit.
const ARROWS: &[(&str, &[&str])] = &[
    ("nix", &[]),
    ("tlog", &[]),
    ("heap", &[]),
    ("threads", &[]),
    ("time", &[]),
    ("api", &["nix", "tlog"]),
    ("access", &["time"]),
    ("client", &["api", "nix", "tlog"]),
    ("queue", &["nix", "time"]),
    ("watch", &["client", "queue", "nix", "time"]),
    ("succession", &["nix", "tlog", "time"]),
    ("vault", &["nix", "succession"]),
    ("storage", &["nix", "threads"]),
    ("kms", &["vault"]),
    ("upstream", &["nix"]),
    ("webhook", &[]),
    ("witness", &["tlog"]),
    ("db", &["nix", "time", "threads", "access", "vault"]),
    (
        "service",
        &[
            "nix",
            "tlog",
            "time",
            "threads",
            "access",
            "succession",
            "vault",
            "storage",
            "db",
            "kms",
            "upstream",
            "webhook",
            "witness",
        ],
    ),
    ("http", &["service", "access", "api", "nix", "time"]),
    ("web", &["service", "access"]),
];

/// These use everything: they join the layers. `fuzz` is in no build but that of the tests.
const JOINING: &[&str] = &["main", "lib", "cli", "config", "fuzz"];

/// Words with a home: libraries, and what stands for a whole duty.
const HOMES: &[(&str, &[&str], &str)] = &[
    ("sqlx", &["db", "queue"], "SQL stands only in `db/` and `queue/`: add a function there"),
    ("axum", &["http", "web"], "only `http/` and `web/` know axum"),
    ("axum_server", &["http"], "only `http/` knows the HTTP server"),
    ("tower_http", &["http", "web"], "only `http/` and `web/` know axum's middleware"),
    ("utoipa_axum", &["http"], "only `http/` has a router"),
    (
        "StatusCode",
        &["http", "web", "client", "upstream"],
        "a layer below names its error; `http/error.rs` maps it",
    ),
    ("aws_config", &["storage", "kms"], "S3 is spoken only in `storage/`, and with KMS only in `kms/`"),
    ("aws_sdk_kms", &["kms"], "with KMS only `kms/` speaks"),
    ("aws_sdk_s3", &["storage"], "S3 is spoken only in `storage/`"),
    ("aws_smithy_types", &["storage"], "S3 is spoken only in `storage/`"),
    ("argon2", &["vault"], "keys are derived only in `vault/`"),
    ("vsss_rs", &["vault"], "slot keys are split only in `vault/`"),
    ("chacha20poly1305", &["vault"], "secrets are sealed and opened only in `vault/`"),
    ("SigningKey", &["vault"], "only `vault/` sees a private key in clear"),
    ("clap", &["cli", "config", "main"], "the command line is parsed only in `cli/`"),
    ("anyhow", &["cli", "client", "main"], "a layer has an error enum of its own"),
    ("unsafe", &["vault", "heap"], "unsafe code stands in one file of `vault/` and in `heap` only"),
];

/// Layers of plain values: no I/O, no async, no clock.
const PURE: &[&str] = &["nix", "tlog", "access", "succession", "api"];
const IMPURE: &[&str] = &["tokio", "async", "await", "SystemTime", "Instant", "TcpStream"];
const IMPURE_STD: &[&str] = &["env", "fs", "net", "process", "thread"];

/// What a statement begins with. House style has the keywords in capitals, so prose does not look like it.
const SQL: &[&str] = &[
    "SELECT ",
    "INSERT INTO ",
    "INSERT OR ",
    "UPDATE ",
    "DELETE FROM ",
    "CREATE TABLE ",
    "CREATE INDEX ",
    "CREATE UNIQUE ",
    "ALTER TABLE ",
    "DROP TABLE ",
    "DROP INDEX ",
    "TRUNCATE ",
    "PRAGMA ",
    "BEGIN IMMEDIATE",
    "WITH RECURSIVE ",
    "LOCK TABLE ",
];

/// Where the parts of an object's path may be spelled. The object's whole name is made by `storage/` alone;
/// `nix/` has them in the narinfo's `URL:` line, `http/`, `client/` and `upstream` in the routes that Nix prescribes.
const PATH_SPELLERS: &[&str] = &["storage", "nix", "http", "client", "upstream"];

/// What rows of the vault are made of beside `Sealed` and `SealedKey`: names, numbers and sealed records.
const VAULT_ROWS: &[&str] = &["KekRow", "KeyLabel", "Purpose", "SlotKind", "SlotRow", "VaultVersions"];

/// Objects of the server's own: never a route, never in a narinfo.
const OWN_OBJECTS: &[&str] = &["_narvault/", "_log/"];

/// File names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "manager", "util", "utils"];

#[test]
fn layers_use_only_the_layers_below_them() {
    expect_none(on_every_source(arrows));
}

#[test]
fn each_library_and_each_duty_stays_in_its_layer() {
    expect_none(on_every_source(homes));
}

#[test]
fn formats_and_rights_do_no_io_and_read_no_clock() {
    expect_none(on_every_source(purity));
}

#[test]
fn sql_text_stands_only_in_db_and_queue() {
    expect_none(on_every_source(sql));
}

#[test]
fn object_paths_are_spelled_only_where_they_belong() {
    expect_none(on_every_source(object_paths));
}

#[test]
fn claims_are_signed_from_exactly_one_place_in_service() {
    expect_none(signing_calls(&Source::read_all("src")));
}

#[test]
fn nothing_is_allowed_unfinished_or_left_to_panic() {
    let mut sources = Source::read_all("src");
    sources.extend(Source::read_all("tests"));
    sources.extend(Source::read_all("benches"));

    expect_none(sources.iter().flat_map(habits).collect());
}

#[test]
fn files_say_what_they_are() {
    expect_none(on_every_source(files));
}

// --- the rules ---

fn arrows(source: &Source) -> Vec<Violation> {
    let layer = source.layer();
    if JOINING.contains(&layer) {
        return Vec::new();
    }
    let Some((_, below)) = ARROWS.iter().find(|(name, _)| *name == layer) else {
        let mend = "give it a line in ARROWS in tests/it/tidy.rs, and one on the map in src/lib.rs";
        return vec![violation(source, 1, "layers", format!("`{layer}` is a layer without arrows"), mend)];
    };
    let mut found = Vec::new();
    for path in source.crate_paths() {
        let Some(used) = path.segments.first() else { continue };
        let is_layer = ARROWS.iter().any(|(name, _)| name == used) || JOINING.contains(&used.as_str());
        if !is_layer || used == layer {
            continue;
        }
        if !below.contains(&used.as_str()) {
            let mend = "move what is needed downwards; a new arrow is a design decision (ARROWS in tests/it/tidy.rs)";
            found.push(violation(source, path.line, "layers", format!("`{layer}` uses `{used}`"), mend));
        } else if layer == "db" && used == "vault" && !path.segments.iter().any(|name| is_sealed(name)) {
            let what = format!("`db` uses `crate::{}`", path.segments.join("::"));
            let mend = "from the vault, `db` may know only sealed types";
            found.push(violation(source, path.line, "layers", what, mend));
        }
    }
    found
}

fn is_sealed(name: &str) -> bool {
    name.to_lowercase().contains("seal") || VAULT_ROWS.contains(&name)
}

fn homes(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for token in source.tokens.iter().filter(|token| !token.in_test) {
        for (word, layers, mend) in HOMES {
            if token.is_word(word) && !layers.contains(&source.layer()) {
                let what = format!("`{word}` in `{}`", source.layer());
                found.push(violation(source, token.line, "homes", what, mend));
            }
        }
    }
    found
}

fn purity(source: &Source) -> Vec<Violation> {
    if !PURE.contains(&source.layer()) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, token) in source.tokens.iter().enumerate().filter(|(_, token)| !token.in_test) {
        let after_std = at >= 2 && source.is_mark(at - 1, "::") && source.tokens[at - 2].is_word("std");
        let impure_std = after_std && IMPURE_STD.contains(&token.text.as_str());
        if token.kind == Kind::Word && (impure_std || IMPURE.contains(&token.text.as_str())) {
            let what = format!("`{}` in `{}`", token.text, source.layer());
            let mend = "this layer holds plain values: hand in bytes, times and randomness";
            found.push(violation(source, token.line, "purity", what, mend));
        }
    }
    found
}

fn sql(source: &Source) -> Vec<Violation> {
    // The server's rows, and those of the queue on the client's machine: neither knows the other.
    if ["db", "queue"].contains(&source.layer()) {
        return Vec::new();
    }
    texts(source)
        .filter(|(_, text)| SQL.iter().any(|start| text.trim_start().starts_with(start)))
        .map(|(line, text)| {
            let what = format!("SQL: {}", shortened(text));
            violation(
                source,
                line,
                "sql",
                what,
                "SQL stands only in `db/` and `queue/`: add a function there",
            )
        })
        .collect()
}

fn object_paths(source: &Source) -> Vec<Violation> {
    let layer = source.layer();
    let mut found = Vec::new();
    for (line, text) in texts(source) {
        // With a space it is a sentence for people, who know a path by its name.
        if text.contains(char::is_whitespace) {
            continue;
        }
        let own = OWN_OBJECTS.iter().any(|object| text.contains(object));
        let cached = text.ends_with(".narinfo") || text.starts_with("nar/") || text.contains("/nar/");
        if (own && layer != "storage") || (cached && !PATH_SPELLERS.contains(&layer)) {
            let mend = "name the object by a key of `storage`, or the URL by a function of `nix`, `http` or `client`";
            found.push(violation(source, line, "object paths", format!("path: {}", shortened(text)), mend));
        }
    }
    found
}

/// The one way to a signature: everything that is checked before it is checked there.
fn signing_calls(sources: &[Source]) -> Vec<Violation> {
    let mut inside = Vec::new();
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.layer() != "vault") {
        for (at, token) in source.tokens.iter().enumerate() {
            if !token.is_word("sign_claim") || token.in_test {
                continue;
            }
            let named = at > 0 && source.tokens[at - 1].is_word("fn");
            if source.layer() == "service" && !named {
                inside.push((source, token.line));
            } else {
                let mend = "call the use case in `service/` that checks before it signs";
                let what = format!("`sign_claim` in `{}`", source.layer());
                found.push(violation(source, token.line, "one signature", what, mend));
            }
        }
    }
    for (source, line) in inside.iter().skip(1) {
        let mend = "bring both ways together before the key is touched";
        found.push(violation(source, *line, "one signature", "a second place that signs".to_owned(), mend));
    }
    let uses_vault = |source: &&Source| {
        let paths = source.crate_paths();
        source.layer() == "service"
            && paths.iter().any(|path| path.segments.first().is_some_and(|used| used == "vault"))
    };
    if let (Some(source), true) = (sources.iter().find(uses_vault), inside.is_empty()) {
        let mend = "sign with `sign_claim`, or correct its name in tests/it/tidy.rs";
        found.push(violation(
            source,
            1,
            "one signature",
            "`service` never calls `sign_claim`".to_owned(),
            mend,
        ));
    }
    found
}

fn habits(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for (line, attribute) in source.attributes() {
        if attribute.iter().any(|token| token.is_word("allow")) {
            let mend =
                "use `#[expect(lint, reason = \"…\")]`, which speaks up when it is not needed any more";
            found.push(violation(source, line, "habits", "`allow`".to_owned(), mend));
        }
        let expects = attribute.iter().any(|token| token.is_word("expect"));
        if expects && !attribute.iter().any(|token| token.is_word("reason")) {
            let what = "`expect` without a reason".to_owned();
            found.push(violation(source, line, "habits", what, "add `reason = \"…\"`"));
        }
        if attribute.iter().any(|token| token.is_word("ignore")) && source.path.ends_with(".rs") {
            let mend =
                "make the test runnable everywhere, or fail where what it needs is required and missing";
            found.push(violation(source, line, "habits", "an ignored test".to_owned(), mend));
        }
    }
    for (at, token) in source.tokens.iter().enumerate() {
        let word = token.text.as_str();
        let is_macro = token.kind == Kind::Word && source.is_mark(at + 1, "!");
        if is_macro && ["todo", "unimplemented", "dbg"].contains(&word) {
            found.push(violation(
                source,
                token.line,
                "habits",
                format!("`{word}!`"),
                "finish it or take it out",
            ));
        }
        let is_method = at > 0 && source.is_mark(at - 1, ".");
        if token.is_word("unwrap") && is_method && !token.in_test && source.path.starts_with("src/") {
            let mend = "return an error; where the line above proves it, `.expect(\"what: checked above\")`";
            found.push(violation(source, token.line, "habits", "`unwrap`".to_owned(), mend));
        }
    }
    found
}

fn files(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let path = Path::new(&source.path);
    let name = path.file_stem().map(|name| name.to_string_lossy()).unwrap_or_default();
    let folders = source.path.split('/').count() - 1;
    if EMPTY_NAMES.contains(&name.as_ref()) {
        let mend = "name the file after the noun or the use case inside";
        found.push(violation(source, 1, "files", format!("`{name}.rs` says nothing"), mend));
    }
    if name == "mod" && folders > 2 {
        let mend = "below a layer, a folder `x/` has its file `x.rs` beside it";
        found.push(violation(source, 1, "files", "`mod.rs` below a layer".to_owned(), mend));
    }
    let folder_beside = root().join(&source.path).with_extension("").is_dir();
    if folders == 1 && folder_beside {
        let mend = "a layer's folder has its own `mod.rs`";
        found.push(violation(source, 1, "files", format!("`{name}.rs` beside `{name}/`"), mend));
    }
    if !source.text.starts_with("//!") && name != "tests" {
        let mend = "begin with two or three `//!` lines: what it does, what it never does";
        found.push(violation(source, 1, "files", "no `//!` on top".to_owned(), mend));
    }
    found
}

// --- what the rules are written with ---

struct Violation {
    place: String,
    rule: &'static str,
    what: String,
    mend: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}: {}\n    {}", self.place, self.rule, self.what, self.mend)
    }
}

fn violation(source: &Source, line: usize, rule: &'static str, what: String, mend: &str) -> Violation {
    Violation { place: format!("{}:{line}", source.path), rule, what, mend: mend.to_owned() }
}

fn on_every_source(rule: fn(&Source) -> Vec<Violation>) -> Vec<Violation> {
    let sources = Source::read_all("src");
    assert!(sources.len() > 10, "only {} files below src: the rules look in the wrong place", sources.len());
    sources.iter().flat_map(rule).collect()
}

fn expect_none(violations: Vec<Violation>) {
    let lines: BTreeSet<String> = violations.iter().map(Violation::to_string).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    assert!(lines.is_empty(), "{} against the rules:\n{}", lines.len(), lines.join("\n"));
}

/// String literals outside tests, with their lines.
fn texts(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let texts = source.tokens.iter().filter(|token| token.kind == Kind::Text && !token.in_test);
    texts.map(|token| (token.line, token.text.as_str()))
}

fn shortened(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect()
}

// --- the rules themselves, tried ---

/// What a rule says of one file, each thing once.
fn check(rule: fn(&Source) -> Vec<Violation>, path: &str, code: &str) -> Vec<String> {
    let found = rule(&Source::parse(path, code));
    let lines: BTreeSet<String> =
        found.iter().map(|found| format!("{}: {}", found.place, found.what)).collect();
    lines.into_iter().collect()
}

#[test]
fn a_forbidden_arrow_is_found_in_every_spelling() {
    for code in [
        "use crate::service;",
        "use crate::service::Service;",
        "use crate::{nix::hash::NarHash, service::Service};",
        "use crate::{nix::{hash::NarHash, base32}, time, service::{self, Error}};",
        "pub use crate::service::*;",
        "fn f() { crate::service::f() }",
        "fn f() { let x = Vec::<crate::service::X>::new(); }",
        "fn f() { println!(\"{}\", crate::service::NAME) }",
        "macro_rules! m { () => { $crate::service::f() } }",
        "use super::super::service;",
        "mod inner { fn f() { super::super::super::service::f() } }",
        "#[cfg(test)] mod tests { use crate::service; }",
    ] {
        assert_eq!(check(arrows, "src/db/log.rs", code), ["src/db/log.rs:1: `db` uses `service`"], "{code}");
    }
}

#[test]
fn an_arrow_downwards_is_not_found_nor_is_a_mention() {
    for code in [
        "use crate::{nix::hash::NarHash, time::Timestamp};",
        "use crate::db::gate;",
        "use super::service;",
        "use crate::vault::Sealed;",
        "use crate::vault::seal::{self, Sealed};",
        "mod service { pub fn f() {} } fn g() { service::f() }",
        "//! See crate::service.\n/// [`crate::service::Service`]\nfn f() {} // crate::service",
        "fn f() { let text = \"crate::service\"; }",
    ] {
        assert_eq!(check(arrows, "src/db/log.rs", code), [] as [String; 0], "{code}");
    }
    assert_eq!(check(arrows, "src/db/mod.rs", "use super::nix;"), [] as [String; 0]);
    assert_eq!(check(arrows, "src/cli/serve.rs", "use crate::{service, http};"), [] as [String; 0]);
}

#[test]
fn db_sees_only_what_the_vault_has_sealed() {
    let found = check(arrows, "src/db/keys.rs", "use crate::vault::{Sealed, LockedBytes};");

    assert_eq!(found, ["src/db/keys.rs:1: `db` uses `crate::vault::LockedBytes`"]);
}

#[test]
fn a_layer_that_nobody_drew_is_found() {
    assert_eq!(
        check(arrows, "src/extra/mod.rs", ""),
        ["src/extra/mod.rs:1: `extra` is a layer without arrows"]
    );
}

#[test]
fn what_stands_in_a_wrong_place_is_found_with_its_line() {
    for (rule, path, code, expected) in [
        (homes as fn(&Source) -> Vec<Violation>, "src/service/publish.rs", "\n\nuse sqlx::Any;", 3),
        (homes, "src/service/publish.rs", "fn f() -> axum::http::StatusCode { x() }", 1),
        (homes, "src/nix/nar.rs", "\nfn f() { unsafe { g() } }", 2),
        (purity, "src/nix/nar.rs", "\nuse std::fs::read;", 2),
        (purity, "src/access/token.rs", "async fn f() {}", 1),
        (sql, "src/service/publish.rs", "\nconst Q: &str = \"SELECT id FROM paths\";", 2),
        (sql, "src/http/paths.rs", "const Q: &str = r#\"\n  DELETE FROM paths\"#;", 1),
        (object_paths, "src/service/publish.rs", "fn f() { format!(\"{hash}.narinfo\") }", 1),
        (object_paths, "src/service/publish.rs", "fn f() { format!(\"nar/{hash}\") }", 1),
        (object_paths, "src/http/mod.rs", "\nconst OWNER: &str = \"_narvault/cluster\";", 2),
        (habits, "src/nix/nar.rs", "#[allow(dead_code)] fn f() {}", 1),
        (habits, "src/nix/nar.rs", "#![cfg_attr(test, allow(dead_code))]", 1),
        (habits, "src/nix/nar.rs", "#[expect(dead_code)] fn f() {}", 1),
        (habits, "src/nix/nar.rs", "\n\nfn f() { todo!() }", 3),
        (habits, "src/nix/nar.rs", "fn f() { x.unwrap() }", 1),
        (files, "src/nix/utils.rs", "//! Things.", 1),
        (files, "src/nix/nar/mod.rs", "//! Things.", 1),
        (files, "src/nix/nar.rs", "fn f() {}", 1),
    ] {
        let found = check(rule, path, code);

        assert!(
            found.iter().any(|line| line.starts_with(&format!("{path}:{expected}: "))),
            "{code}: {found:?}"
        );
    }
}

#[test]
fn what_stands_in_its_place_or_in_a_test_is_not_found() {
    for (rule, path, code) in [
        (homes as fn(&Source) -> Vec<Violation>, "src/db/log.rs", "use sqlx::Any;"),
        (homes, "src/service/publish.rs", "#[cfg(test)] mod tests { use sqlx::Any; }"),
        (homes, "src/service/publish/tests.rs", "use sqlx::Any;"),
        (homes, "src/queue/open.rs", "use sqlx::SqliteConnection;"),
        (purity, "src/service/publish.rs", "async fn f() {}"),
        (sql, "src/db/log.rs", "const Q: &str = \"SELECT id FROM paths\";"),
        (sql, "src/queue/paths.rs", "const Q: &str = \"SELECT id FROM paths\";"),
        (sql, "src/cli/path.rs", "const HELP: &str = \"select a path from the list\";"),
        (object_paths, "src/storage/key.rs", "const OWNER: &str = \"_narvault/cluster\";"),
        (object_paths, "src/config/limits.rs", "const KEY: &str = \"limits.narinfo_size_bytes\";"),
        (object_paths, "src/service/error.rs", "const WHY: &str = \"nar/{0} is missing; push again\";"),
        (object_paths, "src/http/mod.rs", "const ROUTE: &str = \"/{cache}/nar/{file}\";"),
        (habits, "src/nix/nar.rs", "#[expect(dead_code, reason = \"soon\")] fn f() {}"),
        (habits, "src/nix/nar.rs", "#[cfg(test)] mod tests { fn f() { x.unwrap() } }"),
        (habits, "src/nix/nar.rs", "fn f() { x.expect(\"32 bytes: checked above\") }"),
        (files, "src/nix/nar.rs", "//! Archives."),
    ] {
        assert_eq!(check(rule, path, code), [] as [String; 0], "{code}");
    }
}

#[test]
fn a_second_signing_call_or_one_outside_service_is_found() {
    let vault = Source::parse("src/vault/signing.rs", "pub fn sign_claim() {}");
    let publish = |code: &str| Source::parse("src/service/publish.rs", code);
    let once = "use crate::vault; fn f() { vault.sign_claim() }";
    let twice = "use crate::vault; fn f() { vault.sign_claim(); vault.sign_claim() }";
    let never = "use crate::vault; fn f() {}";
    let in_http = Source::parse("src/http/publish.rs", "fn f() { vault.sign_claim() }");

    let sources = [vault, publish(once)];
    assert_eq!(signing_calls(&sources).len(), 0);
    assert_eq!(signing_calls(&[publish(twice)]).len(), 1);
    assert_eq!(signing_calls(&[publish(never)]).len(), 1);
    assert_eq!(signing_calls(&[publish(once), in_http]).len(), 1);
}

#[test]
fn a_file_that_only_tests_declare_is_a_test() {
    for (path, code, expected) in [
        ("src/vault/mod.rs", "#[cfg(test)] mod golden; mod seal;", vec!["src/vault/golden.rs"]),
        ("src/vault/seal.rs", "mod open; #[cfg(test)] mod golden;", vec!["src/vault/seal/golden.rs"]),
        ("src/lib.rs", "mod vault; #[cfg(not(test))] mod nix;", vec![]),
    ] {
        assert_eq!(Source::parse(path, code).test_files(), expected, "{code}");
    }
}

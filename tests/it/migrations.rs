//! Both databases have one schema: the same files, the same statements, but for the names of two types.
//! Reads the texts; that the databases take them is for the tests of `db` to show.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Types that `sqlx::Any` decodes from both databases, as Postgres calls them.
const TYPES: &[&str] = &["TEXT", "BIGINT", "BYTEA"];

/// What SQLite has to say otherwise; its STRICT tables know no other names.
const SQLITE_WORDS: &[(&str, &str)] = &[("INTEGER", "BIGINT"), ("BLOB", "BYTEA")];

#[test]
fn both_databases_have_the_same_migrations() {
    let sqlite = read("sqlite");
    let postgres = read("postgres");

    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&sqlite),
        names(&postgres),
        "each migration needs a file of the same name in both folders"
    );
    for (name, text) in &sqlite {
        let here: Vec<String> = statements(text).iter().map(|statement| from_sqlite(statement)).collect();
        let there = statements(&postgres[name]);
        for (here, there) in here.iter().zip(&there) {
            assert_eq!(here, there, "migrations/{{sqlite,postgres}}/{name} differ (sqlite left)");
        }
        assert_eq!(here.len(), there.len(), "migrations/{{sqlite,postgres}}/{name}: one has more statements");
    }
}

#[test]
fn every_column_has_a_type_that_both_databases_decode() {
    for (name, text) in read("postgres") {
        for (table, column, sql_type) in statements(&text).iter().flat_map(|statement| columns(statement)) {
            let place = format!("migrations/postgres/{name}: {table}.{column}");
            assert!(
                TYPES.contains(&sql_type.as_str()),
                "{place} is {sql_type}, not one of {TYPES:?}: `sqlx::Any` fails on other types while it decodes"
            );
        }
    }
}

#[test]
fn every_sqlite_table_checks_its_types() {
    for (name, text) in read("sqlite") {
        for statement in statements(&text) {
            let is_table = statement.starts_with("CREATE TABLE ");
            assert!(
                !is_table || statement.ends_with(" STRICT"),
                "migrations/sqlite/{name}: not STRICT: {statement}"
            );
        }
    }
}

fn read(database: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(database);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let file = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).expect("a migration is a text file");
        (entry.file_name().to_string_lossy().into_owned(), text)
    };
    entries.map(|entry| file(entry.expect("listed by the line above"))).collect()
}

/// Without comments, on one line each.
fn statements(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let one_line = |statement: &str| statement.split_whitespace().collect::<Vec<_>>().join(" ");
    code.split(';').map(one_line).filter(|statement| !statement.is_empty()).collect()
}

fn from_sqlite(statement: &str) -> String {
    let statement = statement.strip_suffix(" STRICT").unwrap_or(statement);
    let word = |word: &str| {
        let known = SQLITE_WORDS.iter().find(|(sqlite, _)| *sqlite == word.trim_end_matches([',', ')']));
        known.map_or(word.to_owned(), |(sqlite, postgres)| word.replacen(sqlite, postgres, 1))
    };
    statement.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Table, column and type of each column that a statement adds.
fn columns(statement: &str) -> Vec<(String, String, String)> {
    let words: Vec<&str> = statement.split(' ').collect();
    let owned = |table: &str, column: &str, sql_type: &str| {
        (table.to_owned(), column.to_owned(), sql_type.trim_end_matches([',', ')']).to_owned())
    };
    match words.as_slice() {
        ["CREATE", "TABLE", table, ..] => {
            let open = statement.find('(').expect("a table has columns");
            let close = statement.rfind(')').expect("what opens closes");
            let parts = at_commas(&statement[open + 1..close]);
            let is_column = |part: &&str| {
                let first = part.split([' ', '(']).next().unwrap_or_default();
                !["PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "CONSTRAINT"].contains(&first)
            };
            let column = |part: &str| {
                let mut words = part.split(' ');
                owned(table, words.next().unwrap_or_default(), words.next().unwrap_or_default())
            };
            parts.into_iter().filter(is_column).map(column).collect()
        }
        ["ALTER", "TABLE", table, "ADD", "COLUMN", column, sql_type, ..] => {
            vec![owned(table, column, sql_type)]
        }
        _ => Vec::new(),
    }
}

/// Split at the commas that are in no parentheses.
fn at_commas(body: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut depth = 0usize;
    let mut start = 0;
    for (at, character) in body.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(body[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(body[start..].trim());
    parts
}

#[test]
fn columns_are_told_from_constraints() {
    let text = "CREATE TABLE t (a TEXT NOT NULL, -- a comment, with a comma\n b BIGINT CHECK (b IN (1, 2)), UNIQUE (a, b));
        ALTER TABLE t ADD COLUMN c BYTEA;";

    let found: Vec<_> = statements(text).iter().flat_map(|statement| columns(statement)).collect();

    let column = |name: &str, sql_type: &str| ("t".to_owned(), name.to_owned(), sql_type.to_owned());
    assert_eq!(found, [column("a", "TEXT"), column("b", "BIGINT"), column("c", "BYTEA")]);
}

#[test]
fn a_sqlite_statement_is_compared_by_its_meaning() {
    let statement = from_sqlite("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB) STRICT");

    assert_eq!(statement, "CREATE TABLE t (a BIGINT PRIMARY KEY, b BYTEA)");
}

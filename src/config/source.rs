//! Where values come from: flags, environment, file, defaults; who wins; and what is told when something is wrong.
//!
//! Never ignores a key that it does not know, and never repeats a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use toml::de::{DeTable, DeValue};

use super::setting::{Setting, Shape, ValueError};
use super::{CONFIG_FILE_DEFAULT, Flags, KeyDoc, reference};

/// The largest file that is read, in bytes: a hundred times what every key with a long value needs.
pub const FILE_SIZE_BYTES_MAX: usize = 1 << 20;

const VARIABLE_PREFIX: &str = "NARVAULT_";

/// Variables that belong to clients, to the choice of the file, and to tests.
const FOREIGN_VARIABLES: [&str; 3] = ["NARVAULT_TOKEN", "NARVAULT_URL", "NARVAULT_CONFIG"];
const TEST_VARIABLE_PREFIX: &str = "NARVAULT_TEST_";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    /// A line, counted from 1, of a file.
    File {
        path: PathBuf,
        line: usize,
    },
    /// The name of a variable.
    Environment(String),
    /// A flag, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is larger than {FILE_SIZE_BYTES_MAX} bytes", path.display())]
    FileTooLarge { path: PathBuf },
    #[error("{place}: not TOML: {message}")]
    Toml { place: Source, message: String },
    #[error("{place}: unknown key `{key}`; the nearest one is `{nearest}`")]
    UnknownKey { key: String, place: Source, nearest: String },
    #[error("{place}: `{key}` is a section; write `[{key}]` and its keys below")]
    Section { key: String, place: Source },
    #[error("unknown variable {name}; the nearest one is {nearest}")]
    UnknownVariable { name: String, nearest: String },
    #[error("variable {name} is not UTF-8")]
    VariableNotUtf8 { name: String },
    #[error("{place}: `{key}` {error}")]
    Value { key: &'static str, place: Source, error: ValueError },
    #[error("{place}: `{key}` is not within {min} and {max}")]
    Range { key: &'static str, place: Source, min: u64, max: u64 },
    #[error(
        "{place}: `public_url` is plain http beyond this machine, so tokens could be read on the way; give an https \
         URL, or set `insecure_http = true` to accept that"
    )]
    PlainHttp { place: Source },
    #[error(
        "`listen` reaches beyond this machine and no `public_url` is given; give the https URL under which clients \
         reach this server, or set `insecure_http = true` to accept that tokens could be read on the way"
    )]
    PlainHttpFromListen,
    #[error(
        "{place}: `vault.kms.endpoint` is plain http beyond this machine, where anyone on the way can read the key to the \
         vault; give an https URL, or set `insecure_http = true` to accept that"
    )]
    PlainKms { place: Source },
    #[error("there is a password in `database.url` and a `database.password_file`; keep one")]
    PasswordTwice,
    #[error("`database.password_file` is given, and `database.url` has no use for a password")]
    PasswordUnused,
    #[error("{} holds no password", path.display())]
    PasswordEmpty { path: PathBuf },
}

/// Everything that is wrong with the configuration; at least one thing.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    /// One line for each, its cause included: there is no other place for the causes of several problems.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
            if let Some(cause) = std::error::Error::source(problem) {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// All `NARVAULT_…` variables of this process.
pub fn environment() -> Result<Vec<(String, String)>, Problem> {
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(VARIABLE_PREFIX));
    ours.map(|(name, value)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Ok((name, value)),
        (Ok(name), Err(_)) => Err(Problem::VariableNotUtf8 { name }),
        (Err(name), _) => Err(Problem::VariableNotUtf8 { name: name.to_string_lossy().into_owned() }),
    })
    .collect()
}

/// One variable of this process, for what is no key of the configuration: `NARVAULT_TOKEN`, `NO_COLOR`,
/// `XDG_CONFIG_HOME`. Absent if it is not UTF-8.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// `database.url` is `NARVAULT_DATABASE_URL`.
pub(super) fn variable_name(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// A value that nobody has looked at yet.
#[derive(Debug, Clone)]
struct Raw {
    text: String,
    /// How it stands in the file; flags and variables have none.
    shape: Option<Shape>,
    source: Source,
}

/// The winning text of every key.
#[derive(Debug)]
pub(super) struct Values(BTreeMap<&'static str, Raw>);

impl Values {
    /// Collects from all four places, the weakest first.
    pub(super) fn collect(
        flags: &Flags,
        environment: impl IntoIterator<Item = (String, String)>,
        read_file: impl Fn(&Path) -> io::Result<String>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let keys = reference();
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let mut values = Self(BTreeMap::new());

        if let Some((path, text)) = find_file(flags, &environment, read_file, problems) {
            values.add_file(&keys, &path, &text, problems);
        }
        values.add_environment(&keys, environment, problems);
        for (key, flag, value) in [("data", "--data", &flags.data), ("listen", "--listen", &flags.listen)] {
            if let Some(text) = value {
                values.set(key, text.clone(), None, Source::Flag(flag));
            }
        }
        values.add_defaults(&keys);
        values
    }

    /// The value of `key`. If it is wrong, that is added to `problems`.
    pub(super) fn read<T: Setting>(&self, key: &'static str, problems: &mut Vec<Problem>) -> Option<T> {
        // Every key has at least its default, so this is never absent.
        let Raw { text, shape, source } = self.0.get(key)?;
        let shape_fits = shape.is_none_or(|shape| T::SHAPES.contains(&shape));
        let value = if !shape_fits {
            Err(ValueError::Type { expected: T::KIND })
        } else if text.is_empty() && *source != Source::Default && !T::MAY_BE_EMPTY {
            Err(ValueError::Empty)
        } else {
            T::parse(text)
        };
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                problems.push(Problem::Value { key, place: source.clone(), error });
                None
            }
        }
    }

    /// Where each value came from.
    pub(super) fn into_sources(self) -> BTreeMap<&'static str, Source> {
        self.0.into_iter().map(|(key, raw)| (key, raw.source)).collect()
    }

    fn set(&mut self, key: &'static str, text: String, shape: Option<Shape>, source: Source) {
        self.0.insert(key, Raw { text, shape, source });
    }

    fn add_file(&mut self, keys: &[KeyDoc], path: &Path, text: &str, problems: &mut Vec<Problem>) {
        let place = |offset: usize| Source::File { path: path.to_owned(), line: line_of(text, offset) };
        match DeTable::parse(text) {
            Ok(table) => self.add_table(keys, "", table.get_ref(), &place, problems),
            Err(error) => {
                let place = place(error.span().map_or(0, |span| span.start));
                // Only the message: the whole error quotes the line, and with it perhaps a secret.
                problems.push(Problem::Toml { place, message: error.message().to_owned() });
            }
        }
    }

    fn add_table(
        &mut self,
        keys: &[KeyDoc],
        prefix: &str,
        table: &DeTable<'_>,
        place: &dyn Fn(usize) -> Source,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let place_of_key = place(name.span().start);
            let path = format!("{prefix}{}", name.get_ref());
            let section = format!("{path}.");
            let is_section = keys.iter().any(|known| known.key.starts_with(&section));
            // A quoted key with a dot in it would be a second spelling of a key in a section.
            let known = keys.iter().find(|known| known.key == path && !name.get_ref().contains('.'));
            match (known, value.get_ref()) {
                (Some(known), value) => match raw_text(value) {
                    Some((text, shape)) => self.set(known.key, text, Some(shape), place_of_key),
                    None => {
                        let error = ValueError::Type { expected: known.kind };
                        problems.push(Problem::Value { key: known.key, place: place_of_key, error });
                    }
                },
                (None, DeValue::Table(inner)) if is_section => {
                    self.add_table(keys, &section, inner, place, problems);
                }
                (None, _) if is_section => problems.push(Problem::Section { key: path, place: place_of_key }),
                (None, _) => {
                    let nearest = nearest(&path, keys.iter().map(|known| known.key));
                    problems.push(Problem::UnknownKey {
                        key: printable(&path),
                        place: place_of_key,
                        nearest,
                    });
                }
            }
        }
    }

    fn add_environment(
        &mut self,
        keys: &[KeyDoc],
        environment: BTreeMap<String, String>,
        problems: &mut Vec<Problem>,
    ) {
        for (name, text) in environment {
            let foreign = !name.starts_with(VARIABLE_PREFIX)
                || name.starts_with(TEST_VARIABLE_PREFIX)
                || FOREIGN_VARIABLES.contains(&name.as_str());
            if foreign {
                continue;
            }
            match keys.iter().find(|known| known.environment == name) {
                Some(known) => self.set(known.key, text, None, Source::Environment(name)),
                None => {
                    let nearest = nearest(&name, keys.iter().map(|known| known.environment.as_str()));
                    problems.push(Problem::UnknownVariable { name: printable(&name), nearest });
                }
            }
        }
    }

    /// Gives every key that has no value its default, with `<listen>` and `<data>` filled in.
    fn add_defaults(&mut self, keys: &[KeyDoc]) {
        let missing = keys.iter().map(|known| known.key).filter(|key| !self.0.contains_key(key));
        let missing: BTreeSet<&str> = missing.collect();
        let text_of = |values: &Self, key: &str| {
            let default = keys.iter().find(|known| known.key == key).map_or("", |known| known.default);
            // An empty one is refused as such; what follows from it need not be refused as well.
            let given = values.0.get(key).map(|raw| raw.text.as_str()).filter(|text| !text.is_empty());
            given.unwrap_or(default).to_owned()
        };
        let listen = text_of(self, "listen");
        let data = url_path(&text_of(self, "data"));
        for known in keys.iter().filter(|known| missing.contains(known.key)) {
            let text = known.default.replace("<listen>", &listen).replace("<data>", &data);
            self.set(known.key, text, None, Source::Default);
        }
    }
}

/// The file and its text: the one that flag or variable names, which must be there, or the usual one if it is there.
fn find_file(
    flags: &Flags,
    environment: &BTreeMap<String, String>,
    read_file: impl Fn(&Path) -> io::Result<String>,
    problems: &mut Vec<Problem>,
) -> Option<(PathBuf, String)> {
    let named = flags.config.clone().or_else(|| environment.get("NARVAULT_CONFIG").map(PathBuf::from));
    let must_exist = named.is_some();
    let path = named.unwrap_or_else(|| CONFIG_FILE_DEFAULT.into());
    match read_file(&path) {
        Ok(text) if text.len() > FILE_SIZE_BYTES_MAX => {
            problems.push(Problem::FileTooLarge { path });
            None
        }
        Ok(text) => Some((path, text)),
        Err(source) if source.kind() == io::ErrorKind::NotFound && !must_exist => None,
        Err(source) => {
            problems.push(Problem::Unreadable { path, source });
            None
        }
    }
}

/// A TOML value as the text that a flag would have, and how it stood there.
fn raw_text(value: &DeValue<'_>) -> Option<(String, Shape)> {
    match value {
        DeValue::String(text) => Some((text.to_string(), Shape::Text)),
        DeValue::Boolean(value) => Some((value.to_string(), Shape::Boolean)),
        DeValue::Integer(integer) => {
            let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
            Some((number.to_string(), Shape::Integer))
        }
        DeValue::Array(items) => {
            let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            Some((texts?.join(","), Shape::List))
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

/// The line, counted from 1, in which the byte at `offset` stands.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The candidate most like `name`. Its last part weighs alone too: `url` without its section is a usual mistake.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let name = name.replace('-', "_");
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&name, candidate);
        let last = |text: &'_ str| text.rsplit('.').next().unwrap_or_default().to_owned();
        let last_part = strsim::normalized_damerau_levenshtein(&last(&name), &last(candidate));
        whole.max(0.9 * last_part)
    };
    let best = candidates.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.unwrap_or_default().to_owned()
}

/// A key or name for a message: short, on one line.
fn printable(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// `path` for the path part of a `file:` or `sqlite:` URL: relative ones begin with `./`, so that no part of them is
/// taken as a host.
fn url_path(path: &str) -> String {
    let anchored = ["/", "./", "../"].iter().any(|start| path.starts_with(start));
    let path = if anchored { path.to_owned() } else { format!("./{path}") };
    utf8_percent_encode(&path, PATH_ENCODED).to_string()
}

/// What cannot stand for itself in the path of a URL.
pub(super) const PATH_ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

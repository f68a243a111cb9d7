//! What a set of nix.conf files says together: includes followed, later lines over earlier ones, as Nix does it.
//!
//! Never reads a file itself: whoever asks hands in how. Never loops, whatever includes what.

use std::path::{Path, PathBuf};

use super::syntax::Line;

/// A line of a file, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
}

/// `etc/nix.conf:12`
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One line that sets something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Assignment {
    /// The setting's present name, without `extra-`.
    name: String,
    appends: bool,
    values: Vec<String>,
    place: Place,
}

/// Something that Nix refuses, or that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Every command of Nix fails at this line.
    Illegal(Place),
    /// `include` of a file that is not there: every command of Nix fails.
    Absent(Place),
    /// Includes that go on and on: Nix would not come to an end either.
    TooDeep(Place),
}

/// What all files say, in the order in which Nix reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    assignments: Vec<Assignment>,
    pub troubles: Vec<Trouble>,
}

/// Reads a file; `None` if it is not there or cannot be read, which Nix takes for the same.
pub type Read<'a> = dyn Fn(&Path) -> Option<String> + 'a;

impl Resolved {
    /// Reads `files`, the one that counts least first.
    pub fn read(files: &[PathBuf], read: &Read<'_>) -> Self {
        let mut resolved = Self::default();
        for file in files {
            if let Some(text) = read(file) {
                resolved.take(file, &text, read, 0);
            }
        }
        resolved
    }

    /// Goes on with a text that counts more than all before, such as that of NIX_CONFIG.
    pub fn and(mut self, name: &Path, text: &str, read: &Read<'_>) -> Self {
        self.take(name, text, read, 0);
        self
    }

    fn take(&mut self, file: &Path, text: &str, read: &Read<'_>, depth: usize) {
        for (index, line) in text.split('\n').enumerate() {
            let place = Place { file: file.to_owned(), line: index + 1 };
            match Line::parse(line) {
                Line::Nothing => {}
                Line::Illegal => self.troubles.push(Trouble::Illegal(place)),
                Line::Include { .. } if depth == DEPTH_MAX || self.assignments.len() > LINES_MAX => {
                    self.troubles.push(Trouble::TooDeep(place));
                }
                Line::Include { path, may_be_absent } => {
                    let path = file.parent().unwrap_or(Path::new("/")).join(path);
                    match read(&path) {
                        Some(text) => self.take(&path, &text, read, depth + 1),
                        None if may_be_absent => {}
                        None => self.troubles.push(Trouble::Absent(place)),
                    }
                }
                Line::Setting { name, values } => {
                    let (name, appends) = canonical(name);
                    let values = values.into_iter().map(str::to_owned).collect();
                    self.assignments.push(Assignment { name: name.to_owned(), appends, values, place });
                }
            }
        }
    }

    /// The value of a list, which is `default` as long as nothing replaces it.
    pub fn list(&self, name: &str, default: &[&str]) -> Vec<String> {
        let mut list: Vec<String> = default.iter().map(|&value| value.to_owned()).collect();
        for assignment in self.of(name) {
            if !assignment.appends {
                list.clear();
            }
            list.extend(assignment.values.iter().cloned());
        }
        list
    }

    /// The value of a setting that is no list; `None` if no file sets it.
    pub fn value(&self, name: &str) -> Option<String> {
        let last = self.of(name).filter(|assignment| !assignment.appends).last()?;
        Some(last.values.join(" "))
    }

    /// The line that replaces the list `name` after `value` was put into it: the reason why it is not there.
    pub fn loses(&self, name: &str, value: &str) -> Option<&Place> {
        let mut held = false;
        let mut lost = None;
        for assignment in self.of(name) {
            let brings = assignment.values.iter().any(|found| found == value);
            if brings {
                (held, lost) = (true, None);
            } else if held && !assignment.appends {
                (held, lost) = (false, Some(&assignment.place));
            }
        }
        lost
    }

    /// The lines that put `value` into the list `name`, whether or not it stays there.
    pub fn places_of(&self, name: &str, value: &str) -> Vec<&Place> {
        let brings = |assignment: &&Assignment| assignment.values.iter().any(|found| found == value);
        self.of(name).filter(brings).map(|assignment| &assignment.place).collect()
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &Assignment> {
        self.assignments.iter().filter(move |assignment| assignment.name == name)
    }
}

/// A setting's present name, and whether `extra-` appends to it.
fn canonical(name: &str) -> (&str, bool) {
    let (name, appends) = match name.strip_prefix("extra-") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let present = ALIASES.iter().find(|(old, _)| *old == name).map_or(name, |(_, present)| present);
    (present, appends)
}

/// Names of older days that Nix still takes.
const ALIASES: &[(&str, &str)] = &[
    ("binary-caches", "substituters"),
    ("binary-cache-public-keys", "trusted-public-keys"),
    ("trusted-binary-caches", "trusted-substituters"),
];

/// Deepest nesting of includes that is followed: real configurations have one or two levels.
const DEPTH_MAX: usize = 16;

/// Most settings after which no include is followed any more: wide loops end here, real files have below a hundred.
const LINES_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const NIXOS: &[&str] = &["https://cache.nixos.org/"];

    fn resolve(files: &[(&str, &str)], top: &[&str]) -> Resolved {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        Resolved::read(&top.iter().map(PathBuf::from).collect::<Vec<_>>(), &read)
    }

    fn substituters(text: &str) -> Vec<String> {
        resolve(&[("/etc/nix.conf", text)], &["/etc/nix.conf"]).list("substituters", NIXOS)
    }

    #[test]
    fn later_lines_replace_and_extra_lines_append() {
        for (text, expected) in [
            ("", vec!["https://cache.nixos.org/"]),
            ("extra-substituters = a b", vec!["https://cache.nixos.org/", "a", "b"]),
            ("substituters = a\nextra-substituters = b", vec!["a", "b"]),
            ("extra-substituters = b\nsubstituters = a", vec!["a"]),
            ("substituters = a\nsubstituters = b", vec!["b"]),
            ("substituters =", vec![]),
            ("binary-caches = a\nextra-binary-caches = b", vec!["a", "b"]),
            ("extra-substituters = a\nextra-substituters = a", vec!["https://cache.nixos.org/", "a", "a"]),
        ] {
            assert_eq!(substituters(text), expected, "{text:?}");
        }
    }

    #[test]
    fn includes_are_read_where_they_stand_and_from_their_own_folder() {
        let files = [
            ("/etc/nix/nix.conf", "substituters = a\n!include sub/more.conf\nextra-substituters = c"),
            ("/etc/nix/sub/more.conf", "include last.conf\nextra-substituters = b2"),
            ("/etc/nix/sub/last.conf", "extra-substituters = b1"),
        ];

        let resolved = resolve(&files, &["/etc/nix/nix.conf"]);

        assert_eq!(resolved.list("substituters", NIXOS), ["a", "b1", "b2", "c"]);
        assert_eq!(resolved.troubles, []);
        let place = resolved.places_of("substituters", "b1")[0].to_string();
        assert_eq!(place, "/etc/nix/sub/last.conf:1");
    }

    #[test]
    fn a_missing_file_is_trouble_only_where_it_must_be_there() {
        let resolved = resolve(&[("/a", "!include x\ninclude y\n")], &["/absent", "/a"]);

        assert_eq!(resolved.troubles, [Trouble::Absent(Place { file: "/a".into(), line: 2 })]);
    }

    #[test]
    fn loops_end() {
        let deep = resolve(&[("/a", "include /b\nextra-substituters = x"), ("/b", "include /a")], &["/a"]);
        let wide = resolve(&[("/a", "extra-x = y\ninclude /a\ninclude /a\ninclude /a")], &["/a"]);

        assert!(deep.troubles.iter().any(|trouble| matches!(trouble, Trouble::TooDeep(_))));
        assert!(wide.assignments.len() <= LINES_MAX + DEPTH_MAX + 1, "{}", wide.assignments.len());
    }

    #[test]
    fn the_line_that_loses_a_value_is_named() {
        let files = [
            ("/etc/nix/nix.conf", "!include nix.custom.conf\n\nsubstituters = a"),
            ("/etc/nix/nix.custom.conf", "extra-substituters = ours"),
            ("/user", "extra-substituters = ours\nsubstituters = ours b"),
        ];

        let lost = resolve(&files, &["/etc/nix/nix.conf"]);
        let kept = resolve(&files, &["/etc/nix/nix.conf", "/user"]);

        assert_eq!(lost.loses("substituters", "ours").unwrap().to_string(), "/etc/nix/nix.conf:3");
        assert_eq!(kept.loses("substituters", "ours"), None);
        assert_eq!(lost.loses("substituters", "never there"), None);
    }

    #[test]
    fn single_values_are_the_last_ones() {
        let resolved = resolve(&[("/a", "netrc-file = /x\nnetrc-file = /y z")], &["/a"]);

        assert_eq!(resolved.value("netrc-file").as_deref(), Some("/y z"));
        assert_eq!(resolved.value("store"), None);
    }

    #[test]
    fn illegal_lines_are_named() {
        let resolved = resolve(&[("/a", "a = b\na=b\n")], &["/a"]);

        assert_eq!(resolved.troubles, [Trouble::Illegal(Place { file: "/a".into(), line: 2 })]);
    }
}

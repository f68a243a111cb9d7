//! netrc files: which password curl, and so Nix, would send to a host, and the one part of such a file that is ours.
//!
//! Plain texts in, plain texts out. A password is handed on as a secret, and never printed.

use secrecy::{ExposeSecret, SecretString};

use super::marked::{MarkError, Marked, Position};

/// What a netrc file has for one host, or for all that it does not name.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `None`: the entry `default`.
    pub host: Option<String>,
    pub password: Option<SecretString>,
    /// Where it begins, counted from 1.
    pub line: usize,
}

/// Reads all entries, as curl does: words between blanks and line breaks, `#` begins a comment where a word would,
/// quotes hold blanks, macros end at an empty line.
pub fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut awaited = Awaited::Keyword;
    for (index, line) in text.lines().enumerate() {
        if awaited == Awaited::MacroEnd {
            if line.trim().is_empty() {
                awaited = Awaited::Keyword;
            }
            continue;
        }
        for word in words(line) {
            awaited = match (awaited, word.as_str()) {
                (Awaited::Keyword, "machine") => Awaited::Host,
                (Awaited::Keyword, "default") => {
                    entries.push(Entry { host: None, password: None, line: index + 1 });
                    Awaited::Keyword
                }
                (Awaited::Keyword, "login" | "account") => Awaited::Other,
                (Awaited::Keyword, "password") => Awaited::Password,
                (Awaited::Keyword, "macdef") => Awaited::MacroEnd,
                (Awaited::Keyword | Awaited::Other | Awaited::MacroEnd, _) => match awaited {
                    Awaited::MacroEnd => Awaited::MacroEnd,
                    _ => Awaited::Keyword,
                },
                (Awaited::Host, _) => {
                    entries.push(Entry { host: Some(word), password: None, line: index + 1 });
                    Awaited::Keyword
                }
                (Awaited::Password, _) => {
                    if let Some(entry) = entries.last_mut() {
                        entry.password.get_or_insert_with(|| word.into());
                    }
                    Awaited::Keyword
                }
            };
        }
    }
    entries
}

/// The entry that is used for a host: the first that names it, or `default` if that stands earlier.
pub fn entry_for(text: &str, host: &str) -> Option<Entry> {
    let fits = |entry: &Entry| entry.host.as_ref().is_none_or(|found| found.eq_ignore_ascii_case(host));
    entries(text).into_iter().find(fits)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Keyword,
    Host,
    Password,
    Other,
    MacroEnd,
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let mut word = String::new();
        let end = match rest.strip_prefix('"') {
            None => rest.find(char::is_whitespace).unwrap_or(rest.len()),
            Some(quoted) => {
                let mut end = rest.len();
                let mut escaped = false;
                for (at, character) in quoted.char_indices() {
                    match character {
                        '"' if !escaped => {
                            end = at + 2;
                            break;
                        }
                        '\\' if !escaped => escaped = true,
                        _ => {
                            word.push(character);
                            escaped = false;
                        }
                    }
                }
                end
            }
        };
        if !rest.starts_with('"') {
            word.push_str(&rest[..end]);
        }
        words.push(word);
        rest = rest[end..].trim_start();
    }
    words
}

/// Our part of a netrc file: a token for each host. It stands on top, because the first entry for a host counts.
#[derive(Debug, Clone, Default)]
pub struct Part {
    hosts: Vec<(String, SecretString)>,
}

impl Part {
    /// What our part of a file says, and the lines between its marks that are not ours.
    fn parse(marked: &Marked) -> (Self, Vec<String>) {
        let mut part = Self::default();
        let mut foreign = Vec::new();
        for line in marked.inside().unwrap_or_default() {
            if line == ABOUT {
                continue;
            }
            match words(line).as_slice() {
                [machine, host, login, name, password, token]
                    if machine == "machine"
                        && login == "login"
                        && name == LOGIN
                        && password == "password" =>
                {
                    part.hosts.push((host.clone(), token.as_str().into()));
                }
                _ => foreign.push(line.clone()),
            }
        }
        (part, foreign)
    }

    /// The file with this token for this host.
    pub fn put(text: Option<&str>, host: &str, token: &SecretString) -> Result<String, MarkError> {
        let marked = Marked::parse(text)?;
        let (mut part, foreign) = Self::parse(&marked);
        part.hosts.retain(|(known, _)| known != host);
        part.hosts.push((host.to_owned(), token.clone()));
        Ok(marked.with(Position::Top, &part.lines(), &foreign))
    }

    /// The file without our entry for this host; `None` if there is nothing left of a file that we made.
    pub fn remove(text: Option<&str>, host: &str) -> Result<Option<String>, MarkError> {
        let marked = Marked::parse(text)?;
        let (mut part, foreign) = Self::parse(&marked);
        part.hosts.retain(|(known, _)| known != host);
        match part.hosts.is_empty() {
            true => Ok(marked.rest(&foreign)),
            false => Ok(Some(marked.with(Position::Top, &part.lines(), &foreign))),
        }
    }

    /// The file as it is without our part, whatever stands in it; `None` if there is nothing left of a file that we
    /// made.
    pub fn without(text: Option<&str>) -> Result<Option<String>, MarkError> {
        let marked = Marked::parse(text)?;
        Ok(marked.rest(&Self::parse(&marked).1))
    }

    /// Whether our part has an entry for this host.
    pub fn holds(text: Option<&str>, host: &str) -> Result<bool, MarkError> {
        let marked = Marked::parse(text)?;
        Ok(Self::parse(&marked).0.hosts.iter().any(|(known, _)| known == host))
    }

    fn lines(&self) -> Vec<String> {
        let entry = |(host, token): &(String, SecretString)| {
            format!("machine {host} login {LOGIN} password {}", token.expose_secret())
        };
        std::iter::once(ABOUT.to_owned()).chain(self.hosts.iter().map(entry)).collect()
    }
}

const ABOUT: &str = "# Written by `narvault use` as a whole; `narvault unuse` takes it out.";

/// The server ignores it; it tells whose entry this is.
const LOGIN: &str = "narvault";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "cache.example.org";

    /// Files in the shapes that people and programs write.
    const FILES: &[(&str, Option<&str>)] = &[
        ("", None),
        ("# nothing yet\n", None),
        ("machine cache.example.org login a password p1\n", Some("p1")),
        ("machine cache.example.org login a password p1", Some("p1")),
        ("machine cache.example.org\n  login a\n  password p1\n", Some("p1")),
        ("machine cache.example.org\r\nlogin a\r\npassword p1\r\n", Some("p1")),
        ("machine cache.example.org password p1\n", Some("p1")),
        ("machine\tcache.example.org\tlogin\ta\tpassword\tp1\n", Some("p1")),
        ("machine CACHE.example.org login a password p1\n", Some("p1")),
        ("machine other.example login b password p2\nmachine cache.example.org password p1\n", Some("p1")),
        ("machine cache.example.org password p1\nmachine cache.example.org password p2\n", Some("p1")),
        ("machine cache.example.org login password password p1\n", Some("p1")),
        ("machine cache.example.org password \"p 1\\\"x\" # comment\n", Some("p 1\"x")),
        ("machine cache.example.org password p#1\n", Some("p#1")),
        ("# machine cache.example.org password p0\ndefault login a password p1\n", Some("p1")),
        ("default password p1\nmachine cache.example.org password p2\n", Some("p1")),
        ("machine cache.example.org account x password p1\n", Some("p1")),
        (
            "macdef init\nmachine cache.example.org password p0\n\nmachine cache.example.org password p1\n",
            Some("p1"),
        ),
        ("machine other.example password p2\n", None),
        ("machine cache.example.org:8750 login a password p2\n", None),
    ];

    fn password(text: &str) -> Option<String> {
        Some(entry_for(text, HOST)?.password?.expose_secret().to_owned())
    }

    #[test]
    fn the_password_that_curl_sends_is_found() {
        for (text, expected) in FILES {
            assert_eq!(password(text).as_deref(), *expected, "{text:?}");
        }
    }

    #[test]
    fn our_entry_is_the_one_that_counts_and_leaves_no_trace() {
        let texts = FILES.iter().map(|(text, _)| Some(*text)).chain([None]);
        for text in texts {
            let once = Part::put(text, HOST, &"nvt_new".into()).unwrap();
            let twice = Part::put(Some(&once), HOST, &"nvt_new".into()).unwrap();
            let newer = Part::put(Some(&once), HOST, &"nvt_newer".into()).unwrap();

            assert_eq!(password(&once).as_deref(), Some("nvt_new"), "{once:?}");
            assert_eq!(password(&newer).as_deref(), Some("nvt_newer"), "{newer:?}");
            assert_eq!(twice, once);
            assert!(!newer.contains("nvt_new\n"), "{newer:?}");
            assert_eq!(Part::remove(Some(&newer), HOST).unwrap().as_deref(), text);
            let both = Part::put(Some(&once), "other.example", &"nvt_other".into()).unwrap();
            assert_eq!(Part::without(Some(&both)).unwrap().as_deref(), text);
            assert_eq!(Part::without(text).unwrap().as_deref(), text);
        }
    }

    #[test]
    fn hosts_come_and_go_one_by_one() {
        let two = Part::put(None, HOST, &"nvt_a".into()).unwrap();
        let two = Part::put(Some(&two), "other.example", &"nvt_b".into()).unwrap();

        let one = Part::remove(Some(&two), HOST).unwrap().unwrap();
        let none = Part::remove(Some(&one), "other.example").unwrap();

        assert!(Part::holds(Some(&two), HOST).unwrap() && !Part::holds(Some(&one), HOST).unwrap());
        assert_eq!(entry_for(&one, "other.example").unwrap().password.unwrap().expose_secret(), "nvt_b");
        assert_eq!(none, None);
    }

    #[test]
    fn debug_output_holds_no_password() {
        let entries = entries("machine a password secret\n");

        assert!(!format!("{entries:?}").contains("secret"));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_text_comes_back(text: String, near in "([a-z]{0,8}|machine|password|\"| |\n|#){0,12}") {
            for text in [text, near] {
                let _ = entries(&text);
                let Ok(marked) = Marked::parse(Some(&text)) else { continue };
                prop_assume!(marked.inside().is_none());
                let once = Part::put(Some(&text), HOST, &"nvt_x".into()).unwrap();
                prop_assert_eq!(password(&once), Some("nvt_x".to_owned()));
                prop_assert_eq!(Part::remove(Some(&once), HOST).unwrap(), Some(text));
            }
        }
    }
}

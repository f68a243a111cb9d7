//! Scopes: what a token allows. Allow-only, nothing is ever forbidden by a scope, and no scope means no right.
//!
//! Never guesses: a text that is not exactly one of the four forms is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::caller::Action;
use super::name::{CacheName, NAME_LENGTH_MAX, NameError};

/// The most scopes in one set. With [`SCOPES_LENGTH_MAX`] it keeps every token below its 1.5 KiB.
pub const SCOPES_COUNT_MAX: usize = 64;

/// The longest text of one set, in bytes.
pub const SCOPES_LENGTH_MAX: usize = 512;

/// Why a text is not a scope or a set of scopes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("scope is not `admin`, `pull:<cache>`, `push:<cache>` or `delete:<cache>`")]
    Form,
    #[error("the cache of a scope is not a name or `prefix*`")]
    Cache(#[source] NameError),
    #[error("the prefix of a scope is not `[a-z0-9][a-z0-9-]*` of less than {NAME_LENGTH_MAX} characters")]
    Prefix,
    #[error("no scope at all")]
    None,
    #[error("scopes are not separated by exactly one space")]
    Separator,
    #[error("{found} scopes, at most {SCOPES_COUNT_MAX} are allowed")]
    TooMany { found: usize },
    #[error("scopes are {found} bytes, at most {SCOPES_LENGTH_MAX} are allowed")]
    TooLong { found: usize },
}

/// Which caches a scope is about: one by name, or all whose names begin with a prefix (`*` alone: every cache).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(PatternKind);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum PatternKind {
    Exact(CacheName),
    Prefix(String),
}

impl Pattern {
    /// Whether `cache` is one of those meant.
    pub fn matches(&self, cache: &CacheName) -> bool {
        match &self.0 {
            PatternKind::Exact(name) => name == cache,
            PatternKind::Prefix(prefix) => cache.as_str().starts_with(prefix.as_str()),
        }
    }

    /// Whether every cache that `other` matches, now or ever, is matched by this one too.
    pub fn contains(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (_, PatternKind::Exact(name)) => self.matches(name),
            (PatternKind::Prefix(wide), PatternKind::Prefix(narrow)) => narrow.starts_with(wide.as_str()),
            (PatternKind::Exact(_), PatternKind::Prefix(_)) => false,
        }
    }
}

impl From<CacheName> for Pattern {
    fn from(name: CacheName) -> Self {
        Self(PatternKind::Exact(name))
    }
}

impl FromStr for Pattern {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let Some(prefix) = text.strip_suffix('*') else {
            return text.parse().map(PatternKind::Exact).map(Self).map_err(ScopeError::Cache);
        };
        // A prefix as long as a whole name would be a second spelling of that name, so it must be shorter.
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if prefix.len() >= NAME_LENGTH_MAX || prefix.starts_with('-') || !prefix.bytes().all(plain) {
            return Err(ScopeError::Prefix);
        }
        Ok(Self(PatternKind::Prefix(prefix.to_owned())))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PatternKind::Exact(name) => write!(f, "{name}"),
            PatternKind::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// One right. `Push` includes reading those caches; `Admin` includes everything; `Delete` includes nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Admin,
    Pull(Pattern),
    Push(Pattern),
    Delete(Pattern),
}

impl Scope {
    /// Whether this scope alone is enough for `action`.
    pub fn allows(&self, action: &Action) -> bool {
        match (self, action) {
            (Self::Admin, _) => true,
            (Self::Pull(pattern), Action::Pull(cache)) => pattern.matches(cache),
            (Self::Push(pattern), Action::Pull(cache) | Action::Push(cache)) => pattern.matches(cache),
            (Self::Delete(pattern), Action::Delete(cache)) => pattern.matches(cache),
            (Self::Pull(_) | Self::Push(_) | Self::Delete(_), _) => false,
        }
    }

    /// Whether everything that `other` allows, now or ever, is allowed by this scope alone.
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Admin, _) => true,
            (Self::Pull(wide), Self::Pull(narrow))
            | (Self::Push(wide), Self::Push(narrow) | Self::Pull(narrow))
            | (Self::Delete(wide), Self::Delete(narrow)) => wide.contains(narrow),
            (Self::Pull(_) | Self::Push(_) | Self::Delete(_), _) => false,
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text.split_once(':') {
            None if text == "admin" => Ok(Self::Admin),
            Some(("pull", cache)) => cache.parse().map(Self::Pull),
            Some(("push", cache)) => cache.parse().map(Self::Push),
            Some(("delete", cache)) => cache.parse().map(Self::Delete),
            _ => Err(ScopeError::Form),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Pull(pattern) => write!(f, "pull:{pattern}"),
            Self::Push(pattern) => write!(f, "push:{pattern}"),
            Self::Delete(pattern) => write!(f, "delete:{pattern}"),
        }
    }
}

/// A set of at least one scope, within [`SCOPES_COUNT_MAX`] and [`SCOPES_LENGTH_MAX`]. Printed sorted, without
/// duplicates, separated by one space, as in a token's `scope`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// The set of `scopes`; duplicates count once.
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, ScopeError> {
        let set: BTreeSet<Scope> = scopes.into_iter().collect();
        if set.is_empty() {
            return Err(ScopeError::None);
        }
        if set.len() > SCOPES_COUNT_MAX {
            return Err(ScopeError::TooMany { found: set.len() });
        }
        let scopes = Self(set);
        let found = scopes.to_string().len();
        if found > SCOPES_LENGTH_MAX {
            return Err(ScopeError::TooLong { found });
        }
        Ok(scopes)
    }

    /// The scopes, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    /// Whether `action` is allowed by any of them.
    pub fn allows(&self, action: &Action) -> bool {
        self.0.iter().any(|scope| scope.allows(action))
    }

    /// Whether `other` is a subset with wildcards counted: each of its scopes is contained in one of these. Then
    /// everything that `other` allows, now or ever, is allowed here too.
    pub fn contains(&self, other: &Self) -> bool {
        other.0.iter().all(|narrow| self.0.iter().any(|wide| wide.contains(narrow)))
    }

    /// Whether `admin` is among them.
    pub fn is_admin(&self) -> bool {
        self.0.contains(&Scope::Admin)
    }
}

impl FromStr for Scopes {
    type Err = ScopeError;

    /// Reads scopes separated by one space each.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        // Before any work: the text may be anything.
        if text.len() > SCOPES_LENGTH_MAX {
            return Err(ScopeError::TooLong { found: text.len() });
        }
        if text.is_empty() {
            return Err(ScopeError::None);
        }
        let mut scopes = Vec::new();
        for part in text.split(' ') {
            if part.is_empty() {
                return Err(ScopeError::Separator);
            }
            scopes.push(part.parse()?);
        }
        Self::new(scopes)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{scope}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scopes(text: &str) -> Scopes {
        text.parse().unwrap()
    }

    fn cache(text: &str) -> CacheName {
        text.parse().unwrap()
    }

    /// Every kind of action on caches that the tests' patterns tell apart.
    fn actions() -> Vec<Action> {
        let mut actions = vec![Action::Administer];
        for name in ["main", "main-x", "main-x-y", "mai", "m", "other", "a", "ab", "abc", "b", "0"] {
            actions.extend([
                Action::Pull(cache(name)),
                Action::Push(cache(name)),
                Action::Delete(cache(name)),
            ]);
        }
        actions
    }

    #[test]
    fn each_scope_allows_exactly_its_own_actions() {
        // For a scope of each form: what it allows out of administer, and pull, push, delete of three caches.
        let table = [
            (
                "admin",
                "administer pull:main push:main delete:main pull:main-x push:main-x delete:main-x pull:m push:m delete:m",
            ),
            ("pull:main", "pull:main"),
            ("push:main", "pull:main push:main"),
            ("delete:main", "delete:main"),
            ("pull:main*", "pull:main pull:main-x"),
            ("push:main*", "pull:main push:main pull:main-x push:main-x"),
            ("delete:main*", "delete:main delete:main-x"),
            ("pull:main-*", "pull:main-x"),
            ("push:*", "pull:main push:main pull:main-x push:main-x pull:m push:m"),
            ("delete:main pull:m", "delete:main pull:m"),
        ];
        for (text, expected) in table {
            let set = scopes(text);
            let mut allowed = Vec::new();
            if set.allows(&Action::Administer) {
                allowed.push("administer".to_owned());
            }
            for name in ["main", "main-x", "m"] {
                for (verb, action) in [
                    ("pull", Action::Pull(cache(name))),
                    ("push", Action::Push(cache(name))),
                    ("delete", Action::Delete(cache(name))),
                ] {
                    if set.allows(&action) {
                        allowed.push(format!("{verb}:{name}"));
                    }
                }
            }
            assert_eq!(allowed.join(" "), expected, "{text}");
        }
    }

    #[test]
    fn a_set_contains_what_it_could_have_issued() {
        for (wide, narrow) in [
            ("admin", "admin"),
            ("admin", "push:main delete:* pull:x"),
            ("push:main", "push:main"),
            ("push:main", "pull:main"),
            ("push:main*", "push:main"),
            ("push:main*", "push:main-x pull:main-*"),
            ("push:main*", "push:main*"),
            ("pull:*", "pull:a* pull:b"),
            ("pull:a delete:b*", "delete:b-1 pull:a"),
            ("delete:*", "delete:*"),
        ] {
            assert!(scopes(wide).contains(&scopes(narrow)), "{wide} > {narrow}");
        }
    }

    #[test]
    fn a_set_does_not_contain_more_than_itself() {
        for (wide, narrow) in [
            ("push:*", "admin"),
            ("pull:* push:* delete:*", "admin"),
            ("pull:main", "push:main"),
            ("push:main", "delete:main"),
            ("delete:main", "pull:main"),
            ("push:main", "push:main*"),
            ("push:main-*", "push:main"),
            ("push:main-*", "push:main*"),
            ("push:main", "push:main pull:other"),
            ("pull:a", "pull:b"),
            ("pull:main-x*", "pull:main-*"),
        ] {
            assert!(!scopes(wide).contains(&scopes(narrow)), "{wide} > {narrow}");
        }
    }

    #[test]
    fn scopes_print_sorted_and_once() {
        assert_eq!(scopes("push:b pull:a push:b admin delete:*").to_string(), "admin pull:a push:b delete:*");
    }

    #[test]
    fn other_texts_are_refused() {
        let many: Vec<String> = (0..65).map(|index| format!("pull:{index}")).collect();
        let table = [
            ("", ScopeError::None),
            (" ", ScopeError::Separator),
            ("admin ", ScopeError::Separator),
            (" admin", ScopeError::Separator),
            ("pull:a  pull:b", ScopeError::Separator),
            ("Admin", ScopeError::Form),
            ("admin:", ScopeError::Form),
            ("admin:main", ScopeError::Form),
            ("*", ScopeError::Form),
            ("read:main", ScopeError::Form),
            ("PUSH:main", ScopeError::Form),
            ("pull", ScopeError::Form),
            ("pull:a\tpull:b", ScopeError::Cache(NameError::Character { allowed: "-" })),
            ("pull:a,pull:b", ScopeError::Cache(NameError::Character { allowed: "-" })),
            ("pull:", ScopeError::Cache(NameError::Empty)),
            ("pull:api", ScopeError::Cache(NameError::Reserved)),
            ("pull:Main", ScopeError::Cache(NameError::FirstCharacter)),
            ("pull:a/b", ScopeError::Cache(NameError::Character { allowed: "-" })),
            ("pull:*a", ScopeError::Cache(NameError::FirstCharacter)),
            ("pull:a*b", ScopeError::Cache(NameError::Character { allowed: "-" })),
            ("pull:a**", ScopeError::Prefix),
            ("pull:-*", ScopeError::Prefix),
            ("pull:A*", ScopeError::Prefix),
            ("pull:é*", ScopeError::Prefix),
            (&format!("pull:{}*", "a".repeat(63)), ScopeError::Prefix),
            (&many.join(" ")[..], ScopeError::TooMany { found: 65 }),
            (&"a".repeat(513), ScopeError::TooLong { found: 513 }),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Scopes>(), Err(expected), "{text:?}");
        }
    }

    /// Patterns close enough to one another that containment is not rare.
    fn any_scope() -> impl Strategy<Value = Scope> {
        let pattern = "(main|main-x|mai|m|a|ab|abc|b)[*]?|[*]";
        prop_oneof![
            1 => Just(Scope::Admin),
            4 => pattern.prop_map(|text| Scope::Pull(text.parse().unwrap())),
            4 => pattern.prop_map(|text| Scope::Push(text.parse().unwrap())),
            4 => pattern.prop_map(|text| Scope::Delete(text.parse().unwrap())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_contained_allows_nothing_more(
            wide in prop::collection::vec(any_scope(), 1..4),
            narrow in prop::collection::vec(any_scope(), 1..4),
        ) {
            let (wide, narrow) = (Scopes::new(wide).unwrap(), Scopes::new(narrow).unwrap());

            if wide.contains(&narrow) {
                for action in actions() {
                    prop_assert!(!narrow.allows(&action) || wide.allows(&action), "{wide} > {narrow}: {action:?}");
                }
            }
            prop_assert!(wide.contains(&wide));
        }

        #[test]
        fn containment_passes_on(a in any_scope(), b in any_scope(), c in any_scope()) {
            if a.contains(&b) && b.contains(&c) {
                prop_assert!(a.contains(&c), "{a} > {b} > {c}");
            }
        }

        #[test]
        fn what_is_printed_parses(set in prop::collection::vec(any_scope(), 1..20)) {
            let set = Scopes::new(set).unwrap();
            prop_assert_eq!(set.to_string().parse::<Scopes>(), Ok(set));
        }

        #[test]
        fn no_text_panics(text: String, near in "(pull|push|delete|admin|:|\\*| |-|a|é){0,12}") {
            let _ = (text.parse::<Scopes>(), near.parse::<Scopes>());
        }
    }
}

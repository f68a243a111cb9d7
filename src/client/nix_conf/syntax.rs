//! One line of nix.conf, read as Nix reads it (`src/libutil/config.cc`, `configuration.cc` since 2.24).
//!
//! Never follows an include: that is [`super::resolve`]'s business.

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<'a> {
    /// Nothing, or a comment.
    Nothing,
    /// `include path` or `!include path`.
    Include { path: &'a str, may_be_absent: bool },
    /// `name = value value…`.
    Setting { name: &'a str, values: Vec<&'a str> },
    /// A line for which every command of Nix fails.
    Illegal,
}

impl<'a> Line<'a> {
    /// Reads one line, with or without its line break. A `#` begins a comment anywhere, and nothing quotes.
    pub fn parse(line: &'a str) -> Self {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty());
        let Some(first) = words.next() else { return Self::Nothing };
        let mut rest: Vec<&str> = words.collect();
        match (first, rest.first().copied()) {
            ("include" | "!include", Some(path)) if rest.len() == 1 => {
                Self::Include { path, may_be_absent: first == "!include" }
            }
            (name, Some("=")) if !matches!(name, "include" | "!include") => {
                Self::Setting { name, values: rest.split_off(1) }
            }
            _ => Self::Illegal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting<'a>(name: &'a str, values: &[&'a str]) -> Line<'a> {
        Line::Setting { name, values: values.to_vec() }
    }

    #[test]
    fn settings_are_split_at_blanks() {
        for (line, expected) in [
            ("substituters = https://a https://b", setting("substituters", &["https://a", "https://b"])),
            ("\t substituters\t=\thttps://a  \r\n", setting("substituters", &["https://a"])),
            ("substituters =", setting("substituters", &[])),
            ("a = b = c", setting("a", &["b", "=", "c"])),
            ("a = b\\", setting("a", &["b\\"])),
            ("a = b # c", setting("a", &["b"])),
            ("a = b#c d", setting("a", &["b"])),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn comments_and_blanks_say_nothing() {
        for line in ["", "\n", "  \t\r\n", "# a = b", "  # include x"] {
            assert_eq!(Line::parse(line), Line::Nothing, "{line:?}");
        }
    }

    #[test]
    fn includes_have_one_path() {
        let path = "nix.custom.conf";
        assert_eq!(Line::parse("include nix.custom.conf"), Line::Include { path, may_be_absent: false });
        assert_eq!(Line::parse(" !include nix.custom.conf\r"), Line::Include { path, may_be_absent: true });
    }

    #[test]
    fn what_nix_refuses_is_illegal() {
        for line in ["a", "a=b", "a =b", "a= b", "include", "include a b", "!include", "include = x", "= a"] {
            assert_eq!(Line::parse(line), Line::Illegal, "{line:?}");
        }
    }
}

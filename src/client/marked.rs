//! One part of a text file that is ours, between two marks: found, replaced as a whole, and taken out again so that
//! what was there before is left byte for byte.
//!
//! Never touches a line outside the marks, and never reads or writes a file.

/// Why the marks of a file cannot be understood. The line is counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    #[error("line {line} begins narvault's part, and nothing ends it")]
    NoEnd { line: usize },
    #[error("line {line} ends narvault's part, and nothing begins it")]
    NoBegin { line: usize },
    #[error("line {line} begins narvault's part a second time")]
    Twice { line: usize },
}

/// Where our part stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before everything: where the first of several answers counts, as in netrc.
    Top,
    /// After everything: where the last one counts, as in nix.conf.
    Bottom,
}

/// A file's text, taken apart at the marks. Not to be printed: a netrc file holds passwords.
pub struct Marked {
    before: String,
    /// Our lines without marks and line breaks; `None` if there is no part of ours.
    inside: Option<Vec<String>>,
    after: String,
    origin: Origin,
    /// How the lines of our part end.
    line_break: &'static str,
}

/// What the file was before our part came, where the text alone does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A text, empty or ending in a line break.
    Text,
    /// There was no file.
    NoFile,
    /// A text whose last line had no line break.
    NoLineBreak,
}

impl Marked {
    /// Takes a file's text apart; `None` is a file that is not there.
    pub fn parse(text: Option<&str>) -> Result<Self, MarkError> {
        let Some(text) = text else {
            return Ok(Self {
                before: String::new(),
                inside: None,
                after: String::new(),
                origin: Origin::NoFile,
                line_break: "\n",
            });
        };
        let mut found = Self {
            before: String::new(),
            inside: None,
            after: String::new(),
            origin: Origin::Text,
            line_break: "\n",
        };
        let mut open = None;
        for (index, whole) in text.split_inclusive('\n').enumerate() {
            let number = index + 1;
            let line = whole.trim_end_matches(['\n', '\r']);
            let origin = BEGINS.iter().find(|(_, begin)| *begin == line).map(|(origin, _)| *origin);
            match (origin, &mut found.inside, open) {
                (Some(_), Some(_), _) => return Err(MarkError::Twice { line: number }),
                (Some(origin), None, _) => {
                    found.origin = origin;
                    found.line_break = line_break(whole);
                    found.inside = Some(Vec::new());
                    open = Some(number);
                }
                (None, _, None) if line == END => return Err(MarkError::NoBegin { line: number }),
                (None, _, Some(_)) if line == END => open = None,
                (None, Some(inside), Some(_)) => inside.push(line.to_owned()),
                (None, None, _) => found.before.push_str(whole),
                (None, Some(_), None) => found.after.push_str(whole),
            }
        }
        match open {
            Some(line) => Err(MarkError::NoEnd { line }),
            None => Ok(found),
        }
    }

    /// Our lines, if there is a part of ours.
    pub fn inside(&self) -> Option<&[String]> {
        self.inside.as_deref()
    }

    /// The file without our part: what it was before, where nobody touched our lines. `foreign` lines, which somebody
    /// else wrote between the marks, stay where they are. `None`: there was no file, and nothing else came.
    pub fn rest(&self, foreign: &[String]) -> Option<String> {
        let mut text = self.before.clone();
        if self.origin == Origin::NoLineBreak && foreign.is_empty() && self.after.is_empty() {
            text.truncate(text.strip_suffix(self.line_break).map_or(text.len(), str::len));
        }
        for line in foreign {
            text.push_str(line);
            text.push_str(self.line_break);
        }
        text.push_str(&self.after);
        if self.origin == Origin::NoFile && text.is_empty() { None } else { Some(text) }
    }

    /// The file with `lines` as our part, and `foreign` lines kept outside of it.
    pub fn with(&self, position: Position, lines: &[String], foreign: &[String]) -> String {
        let rest = self.rest(foreign);
        let line_break = line_break(rest.as_deref().unwrap_or_default());
        let (origin, mut text) = match rest {
            None => (Origin::NoFile, String::new()),
            Some(text) if position == Position::Bottom && !text.is_empty() && !text.ends_with('\n') => {
                (Origin::NoLineBreak, text + line_break)
            }
            Some(text) => (Origin::Text, text),
        };
        let begin = BEGINS.iter().find(|(known, _)| *known == origin).map_or("", |(_, begin)| begin);
        let mut part = String::new();
        for line in std::iter::once(begin).chain(lines.iter().map(String::as_str)).chain([END]) {
            part.push_str(line);
            part.push_str(line_break);
        }
        match position {
            Position::Top => text.insert_str(0, &part),
            Position::Bottom => text.push_str(&part),
        }
        text
    }
}

/// How the lines of a text end, by its first one.
fn line_break(text: &str) -> &'static str {
    match text.split_inclusive('\n').next() {
        Some(first) if first.ends_with("\r\n") => "\r\n",
        _ => "\n",
    }
}

/// The marks, by what the file was before.
const BEGINS: [(Origin, &str); 3] = [
    (Origin::Text, "# narvault: begin"),
    (Origin::NoFile, "# narvault: begin (there was no file)"),
    (Origin::NoLineBreak, "# narvault: begin (the line above had no line break)"),
];
const END: &str = "# narvault: end";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn put(text: Option<&str>, position: Position, ours: &str) -> String {
        Marked::parse(text).unwrap().with(position, &lines(ours), &[])
    }

    fn taken_out(text: &str) -> Option<String> {
        Marked::parse(Some(text)).unwrap().rest(&[])
    }

    #[test]
    fn our_part_stands_where_it_counts() {
        assert_eq!(
            put(Some("a = 1\n"), Position::Bottom, "b = 2"),
            "a = 1\n# narvault: begin\nb = 2\n# narvault: end\n"
        );
        assert_eq!(
            put(Some("a = 1\n"), Position::Top, "b = 2"),
            "# narvault: begin\nb = 2\n# narvault: end\na = 1\n"
        );
    }

    #[test]
    fn what_was_there_before_comes_back_byte_for_byte() {
        for text in
            ["", "\n", "a", "a\n", "a\n\n", "a\r\nb\r\n", "a\r\nb", "a\nb\r\n", "# x", "\u{feff}a\n", " \t"]
        {
            for position in [Position::Top, Position::Bottom] {
                let written = put(Some(text), position, "ours = 1\nours = 2");

                assert_eq!(taken_out(&written).as_deref(), Some(text), "{position:?} {written:?}");
                assert_eq!(put(Some(&written), position, "ours = 1\nours = 2"), written, "{position:?}");
            }
        }
        let made = put(None, Position::Bottom, "ours");
        assert_eq!(taken_out(&made), None);
        assert_eq!(taken_out(&format!("{made}theirs\n")).as_deref(), Some("theirs\n"));
    }

    #[test]
    fn our_part_moves_behind_what_others_appended() {
        let written = put(Some("a"), Position::Bottom, "ours") + "later\n";

        let again = put(Some(&written), Position::Bottom, "ours");

        assert_eq!(again, "a\nlater\n# narvault: begin\nours\n# narvault: end\n");
        assert_eq!(taken_out(&again).as_deref(), Some("a\nlater\n"));
    }

    #[test]
    fn lines_of_others_between_the_marks_are_kept() {
        let text = "a\n# narvault: begin\nours\ntheirs\n# narvault: end\nb\n";
        let marked = Marked::parse(Some(text)).unwrap();
        let theirs = lines("theirs");

        assert_eq!(marked.inside(), Some(&lines("ours\ntheirs")[..]));
        assert_eq!(marked.rest(&theirs).as_deref(), Some("a\ntheirs\nb\n"));
        assert_eq!(
            marked.with(Position::Bottom, &lines("new"), &theirs),
            "a\ntheirs\nb\n# narvault: begin\nnew\n# narvault: end\n"
        );
    }

    #[test]
    fn broken_marks_are_named_by_their_line() {
        for (text, expected) in [
            ("a\n# narvault: begin\nb\n", MarkError::NoEnd { line: 2 }),
            ("a\n# narvault: end\n", MarkError::NoBegin { line: 2 }),
            ("# narvault: begin\n# narvault: begin\n# narvault: end\n", MarkError::Twice { line: 2 }),
            (
                "# narvault: begin\n# narvault: end\n# narvault: begin (there was no file)\n",
                MarkError::Twice { line: 3 },
            ),
            ("# narvault: begin\n# narvault: end\n# narvault: end\n", MarkError::NoBegin { line: 3 }),
        ] {
            assert_eq!(Marked::parse(Some(text)).err(), Some(expected), "{text:?}");
        }
    }

    /// Texts as nix.conf and netrc have them, and some that they have not.
    fn any_text() -> impl Strategy<Value = Option<String>> {
        let line =
            prop_oneof!["[ -~]{0,20}", "[a-z-]{1,9} = [ -~]{0,12}", "# [ -~]{0,9}", Just(String::new())];
        let line_break = prop_oneof![Just("\n"), Just("\r\n")];
        let text =
            (prop::collection::vec((line, line_break), 0..8), any::<bool>()).prop_map(|(lines, cut)| {
                let text: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
                if cut { text.trim_end_matches(['\n', '\r']).to_owned() } else { text }
            });
        prop_oneof![Just(None), text.prop_map(Some), any::<String>().prop_map(Some)]
    }

    proptest! {
        #[test]
        fn taking_out_undoes_putting_in(
            text in any_text(),
            ours in prop::collection::vec("[ -~]{0,20}", 0..5),
            newer in prop::collection::vec("[ -~]{0,20}", 0..5),
            top: bool,
        ) {
            let position = if top { Position::Top } else { Position::Bottom };
            let Ok(marked) = Marked::parse(text.as_deref()) else { return Ok(()) };
            prop_assume!(marked.inside().is_none());

            let once = marked.with(position, &ours, &[]);
            let twice = Marked::parse(Some(&once)).unwrap().with(position, &ours, &[]);
            let replaced = Marked::parse(Some(&once)).unwrap().with(position, &newer, &[]);

            prop_assert_eq!(&twice, &once);
            prop_assert_eq!(taken_out(&once), text.clone());
            prop_assert_eq!(taken_out(&replaced), text);
        }
    }
}

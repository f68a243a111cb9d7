//! Texts for people: tables, sizes, moments, and other people's words made harmless.
//!
//! Never writes anywhere.

use std::borrow::Cow;
use std::fmt::Write;

use crate::time::{ParseTimeError, Timestamp};

/// A table without lines: columns are aligned, two spaces apart, the last one is not padded.
#[derive(Debug, Default)]
pub struct Table {
    widths: Vec<usize>,
}

impl Table {
    /// The text of `rows`. Widths are remembered, so that a second page stands under the first.
    pub fn text(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<Cow<'_, str>>> =
            rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
        for row in &rows {
            self.widths.resize(self.widths.len().max(row.len()), 0);
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&self.widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// One thing's fields, a line each; a field with several values has them below one another, one with none has `-`.
#[derive(Debug, Default)]
pub struct Fields(Vec<Vec<String>>);

impl Fields {
    /// Adds a field with one value.
    #[must_use]
    pub fn with(self, name: &str, value: impl ToString) -> Self {
        self.with_all(name, [value.to_string()])
    }

    /// Adds a field if it has a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds a field with any number of values.
    #[must_use]
    pub fn with_all(mut self, name: &str, values: impl IntoIterator<Item = String>) -> Self {
        let before = self.0.len();
        for value in values {
            let name = if self.0.len() == before { format!("{name}:") } else { String::new() };
            self.0.push(vec![name, value]);
        }
        if self.0.len() == before {
            self.0.push(vec![format!("{name}:"), "-".into()]);
        }
        self
    }

    /// The lines.
    pub fn text(&self) -> String {
        Table::default().text(&self.0)
    }
}

/// `text` with everything spelled out that a terminal would obey or hide: control characters, line breaks, marks that
/// turn the direction of writing, characters of no width.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_steering) {
        return Cow::Borrowed(text);
    }
    let mut spelled = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => spelled.push_str("\\n"),
            '\t' => spelled.push_str("\\t"),
            '\r' => spelled.push_str("\\r"),
            _ if is_steering(character) => spelled.extend(character.escape_unicode()),
            _ => spelled.push(character),
        }
    }
    Cow::Owned(spelled)
}

fn is_steering(character: char) -> bool {
    // Zero-width and direction marks: Unicode's general punctuation, the Arabic letter mark, and the byte order mark.
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A number of bytes with three figures: `512 B`, `1.50 KiB`, `64.0 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be printed as 1024 belongs to the next unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A moment to the second, as people read it; the text itself if it is none.
pub fn moment(rfc3339: &str) -> String {
    let second = |time: Timestamp| {
        let text = time.rfc3339();
        format!("{}Z", text.split('.').next().unwrap_or_default())
    };
    Timestamp::parse_rfc3339(rfc3339).map_or_else(|_| rfc3339.to_owned(), second)
}

/// How long it is from `now` to the moment, if that is in the future and within `days`: `3 days`, `5 hours`, `1 minute`.
pub fn ends_within(rfc3339: &str, now: Timestamp, days: i64) -> Result<Option<String>, ParseTimeError> {
    let minutes = (Timestamp::parse_rfc3339(rfc3339)?.0.saturating_sub(now.0)).div_euclid(60_000);
    if !(0..days * 24 * 60).contains(&minutes) {
        return Ok(None);
    }
    let (count, unit) = match minutes {
        0..60 => (minutes, "minute"),
        60..2880 => (minutes / 60, "hour"),
        _ => (minutes / (24 * 60), "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    Ok(Some(format!("{count} {unit}{plural}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_stand_under_one_another_on_every_page() {
        let mut table = Table::default();

        let first = table.text(&[row(&["NAME", "STATE"]), row(&["alice", "active"]), row(&["bö", ""])]);
        let second = table.text(&[row(&["x", "active"])]);

        assert_eq!(first, "NAME   STATE\nalice  active\nbö\n");
        assert_eq!(second, "x      active\n");
    }

    #[test]
    fn fields_with_several_values_have_them_below_one_another() {
        let fields = Fields::default()
            .with("name", "main")
            .with_some("group", None::<&str>)
            .with_all("public keys", ["a".to_owned(), "b".to_owned()])
            .with_all("upstreams", []);

        assert_eq!(fields.text(), "name:         main\npublic keys:  a\n              b\nupstreams:    -\n");
    }

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        for (text, expected) in [
            ("hello-1.0", "hello-1.0"),
            ("é 日本", "é 日本"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("a\u{200b}b\u{feff}", "a\\u{200b}b\\u{feff}"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn sizes_have_three_figures() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 * 1024 - 1, "10.0 KiB"),
            (1536 * 1024, "1.50 MiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (64 << 30, "64.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn moments_are_told_to_the_second() {
        assert_eq!(moment("2026-11-22T14:10:00.987+01:00"), "2026-11-22T13:10:00Z");
        assert_eq!(moment("soon"), "soon");
    }

    #[test]
    fn an_end_is_told_only_when_it_is_near() {
        let now = Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap();
        for (end, expected) in [
            ("2026-11-22T11:59:59Z", None),
            ("2026-11-22T12:00:00Z", Some("0 minutes")),
            ("2026-11-22T12:01:30Z", Some("1 minute")),
            ("2026-11-22T13:59:00Z", Some("1 hour")),
            ("2026-11-24T11:59:00Z", Some("47 hours")),
            ("2026-11-24T12:00:00Z", Some("2 days")),
            ("2026-11-29T11:59:59Z", Some("6 days")),
            ("2026-11-29T12:00:00Z", None),
        ] {
            assert_eq!(ends_within(end, now, 7).unwrap().as_deref(), expected, "{end}");
        }
        assert!(ends_within("soon", now, 7).is_err());
    }

    proptest! {
        #[test]
        fn a_cell_never_breaks_its_line(text: String) {
            let printed = Table::default().text(&[vec![text.clone(), "end".into()]]);
            prop_assert_eq!(printed.lines().count(), 1);
            prop_assert!(!printed.trim_end_matches('\n').chars().any(is_steering));
            let _ = (size(text.len() as u64), moment(&text));
        }

        #[test]
        fn every_size_has_a_text(bytes: u64) {
            prop_assert!(size(bytes).len() <= 8);
        }
    }
}

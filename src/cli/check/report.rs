//! What `narvault check` or `narvault doctor` found, line by line, and how it is printed.
//!
//! Never holds a secret: values come redacted from the configuration, or hold none.

use serde::Serialize;

use crate::cli::output::Printer;
use crate::cli::text::{Table, plain};
use crate::config::Effective;

/// How a line turned out. Only `Fail` makes the command fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warn,
    Fail,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Line {
    pub status: Status,
    /// `config`, `database`, `storage`, `vault` or `clock`; the doctor has others.
    pub part: &'static str,
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A key of the configuration as it holds.
#[derive(Debug, Serialize)]
struct Setting {
    key: &'static str,
    value: String,
    source: String,
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    config: Vec<Setting>,
    pub checks: Vec<Line>,
}

impl Report {
    /// Takes in the effective configuration.
    pub fn set_config(&mut self, effective: Vec<Effective>) {
        let setting = |Effective { key, value, source }| Setting { key, value, source: source.to_string() };
        self.config = effective.into_iter().map(setting).collect();
    }

    /// Takes in one key of a configuration that is not ours.
    pub fn show(&mut self, key: &'static str, value: String, source: &str) {
        self.config.push(Setting { key, value, source: source.to_owned() });
    }

    pub fn ok(&mut self, part: &'static str, detail: impl Into<String>) {
        self.checks.push(Line { status: Status::Ok, part, detail: detail.into(), hint: None });
    }

    pub fn warn(&mut self, part: &'static str, detail: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Line { status: Status::Warn, part, detail: detail.into(), hint: Some(hint.into()) });
    }

    pub fn fail(&mut self, part: &'static str, detail: impl Into<String>, hint: impl Into<String>) {
        self.checks.push(Line { status: Status::Fail, part, detail: detail.into(), hint: Some(hint.into()) });
    }

    /// How many lines failed.
    pub fn failures(&self) -> usize {
        self.checks.iter().filter(|line| line.status == Status::Fail).count()
    }

    pub fn print(&self, printer: Printer) -> Result<(), crate::cli::Failure> {
        printer.answer(self, Self::text)
    }

    fn text(&self) -> String {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let mut text = String::new();
        if !self.config.is_empty() {
            let settings = self.config.iter().map(|setting| {
                let value = if setting.value.is_empty() { "-" } else { &setting.value };
                row([setting.key, value, &setting.source])
            });
            let rows: Vec<_> = std::iter::once(row(["KEY", "VALUE", "FROM"])).chain(settings).collect();
            text.push_str(&Table::default().text(&rows));
            text.push('\n');
        }
        let lines = self.checks.iter().map(|line| row([line.status.word(), line.part, &line.detail]));
        for (line, row) in self.checks.iter().zip(Table::default().text(&lines.collect::<Vec<_>>()).lines()) {
            text.push_str(row);
            text.push('\n');
            if let Some(hint) = &line.hint {
                text.push_str(&format!("      hint: {}\n", plain(hint)));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_with_a_hint_below_what_is_wrong() {
        let mut report = Report::default();
        report.ok("database", "SQLite 3");
        report.fail("vault", "no\nkey", "bring it");

        assert_eq!(
            report.text(),
            "ok    database  SQLite 3\nFAIL  vault     no\\nkey\n      hint: bring it\n"
        );
        assert_eq!(report.failures(), 1);
    }
}

//! The log on stderr: lines for people, or one JSON object a line.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, variable};

/// Sets the log up, once. `RUST_LOG` chooses what is logged; without it, what an operator needs.
pub fn set_up(format: LogFormat) {
    let chosen = variable("RUST_LOG").and_then(|text| EnvFilter::try_new(text).ok());
    let filter =
        chosen.unwrap_or_else(|| EnvFilter::new("info,sqlx=warn,aws_config=warn,aws_smithy_runtime=warn"));
    let colour = std::io::stderr().is_terminal() && variable("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        LogFormat::Text => builder.with_ansi(colour).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = done {
        // Only a second server in one process meets this; the first one's log serves both.
        tracing::debug!(%error, "the log was set up before");
    }
}

//! What can go wrong with a call, and what to do about it.
//!
//! Never holds a secret: neither the token nor what was sent.

use super::server_url::ServerUrl;
use crate::api::{Problem, Refused};

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Sending is refused on this side: the text would cross the network in clear.
    #[error("{url} is plain http: a secret sent there can be read on the way")]
    PlainHttp { url: ServerUrl },
    #[error("a token is needed for this, and none is known for {url}")]
    NoToken { url: ServerUrl },
    #[error("token holds characters that no token has")]
    TokenForm,
    #[error("`{0}` cannot be a name")]
    Name(String),
    #[error("cannot reach {url}")]
    Unreachable { url: ServerUrl, source: reqwest::Error },
    #[error("{url} did not answer in time")]
    TimedOut { url: ServerUrl, source: reqwest::Error },
    #[error("the answer of {url} broke off")]
    Broken { url: ServerUrl, source: reqwest::Error },
    /// The server explained itself.
    #[error("{}", problem_text(.0))]
    Problem(Box<Problem>),
    /// Whoever answered said how long to wait before asking again.
    #[error("{error}")]
    AskedToWait { seconds: u64, error: Box<Error> },
    /// Something between here and the server, or another program altogether.
    #[error("{url} answered with status {status}, and not as narvault does")]
    Foreign { url: ServerUrl, status: u16 },
    /// Where the server said that something may be sent. Without the cause, which repeats the address: that is a secret.
    #[error(
        "{host}, where the server has parts sent to, {}",
        .status.map_or("cannot be reached".to_owned(), |status| format!("answered with status {status}"))
    )]
    Elsewhere { host: String, status: Option<u16> },
    #[error("{url} redirects to {location}; a token is not sent after a redirect")]
    Redirected { url: ServerUrl, location: String },
    #[error("the answer of {url} is larger than {limit} bytes")]
    AnswerTooLarge { url: ServerUrl, limit: usize },
    /// Without the parser's message, which quotes values: the answer may hold a token.
    #[error("the answer of {url} has another form than this version knows (line {line}, column {column})")]
    AnswerForm { url: ServerUrl, line: usize, column: usize },
    #[error("cannot set up TLS")]
    Setup(#[source] reqwest::Error),
}

/// Kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No token, a bad one, or one without the right.
    NotAuthorised,
    /// A conflict, a limit or a policy stands against it.
    Refused,
    /// Nobody answered.
    Unreachable,
    /// Anything else.
    Other,
}

impl Error {
    /// Which kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoToken { .. } => ErrorKind::NotAuthorised,
            Self::AskedToWait { error, .. } => error.kind(),
            Self::Problem(problem) => match problem.status {
                401 | 403 => ErrorKind::NotAuthorised,
                409 | 412 | 413 | 422 | 423 => ErrorKind::Refused,
                _ => ErrorKind::Other,
            },
            // A proxy that finds no server behind it, or that asks for credentials itself.
            Self::Foreign { status: 502..=504, .. } => ErrorKind::Unreachable,
            Self::Foreign { status: 401 | 403 | 407, .. } => ErrorKind::NotAuthorised,
            Self::Foreign { status: 413, .. } => ErrorKind::Refused,
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::Elsewhere { status: None, .. } => ErrorKind::Unreachable,
            Self::PlainHttp { .. }
            | Self::TokenForm
            | Self::Name(_)
            | Self::Foreign { .. }
            | Self::Elsewhere { .. }
            | Self::Redirected { .. }
            | Self::AnswerTooLarge { .. }
            | Self::AnswerForm { .. }
            | Self::Setup(_) => ErrorKind::Other,
        }
    }

    /// The next thing to do, as a sentence that names a command, where one helps.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::PlainHttp { .. } => {
                Some("use https, or add `--insecure-http` if this network is yours alone".into())
            }
            Self::NoToken { url } => Some(format!("run `narvault login {url}`, or set NARVAULT_TOKEN")),
            Self::TokenForm => Some("copy the whole `nvt_…` text, and nothing around it".into()),
            Self::Unreachable { url, .. } | Self::TimedOut { url, .. } | Self::Broken { url, .. } => {
                Some(format!("run `narvault check --ready --url {url}` to see whether the server is up"))
            }
            Self::Problem(problem) => problem_hint(problem),
            Self::AskedToWait { seconds, error } if error.is_passing() => {
                Some(format!("run the same again after {seconds} s, as the answer asks"))
            }
            Self::AskedToWait { error, .. } => error.hint(),
            Self::Foreign { status: 413, .. } => Some(
                "a proxy on the way refuses bodies of this size: let it take 17 MiB (nginx: `client_max_body_size`), or push with a smaller `--part-size`"
                    .into(),
            ),
            Self::Foreign { .. } => {
                Some("check the address: `--url`, NARVAULT_URL, or `narvault login URL`".into())
            }
            Self::Redirected { .. } => {
                Some("run `narvault login` with the address where the server really is".into())
            }
            Self::AnswerForm { .. } => Some("compare `narvault --version` with the server's".into()),
            Self::Name(_) | Self::AnswerTooLarge { .. } | Self::Elsewhere { .. } | Self::Setup(_) => None,
        }
    }

    /// Whether the server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404) && !matches!(self, Self::Foreign { .. })
    }

    /// What the server said about one thing of many, as if that had been the call.
    pub(super) fn from_refused(refused: Refused) -> Self {
        let Refused { kind, status, detail, retry_after_seconds } = refused;
        let (title, request_id) = (String::new(), String::new());
        let error = Self::Problem(Box::new(Problem { kind, title, status, detail, request_id }));
        match retry_after_seconds {
            Some(seconds) => Self::AskedToWait { seconds, error: Box::new(error) },
            None => error,
        }
    }

    /// The status of the answer, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::AskedToWait { error, .. } => error.status(),
            Self::Foreign { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same call may succeed a little later, by itself.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::AskedToWait { error, .. } => error.is_passing(),
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            Self::Problem(problem) => is_passing(problem.status, &problem.kind),
            Self::Foreign { status, .. } => is_passing(*status, ""),
            Self::Elsewhere { status, .. } => status.is_none_or(|status| is_passing(status, "")),
            _ => false,
        }
    }

    /// How long whoever answered asked to wait, in seconds.
    pub fn wait_seconds(&self) -> Option<u64> {
        if let Self::AskedToWait { seconds, .. } = self { Some(*seconds) } else { None }
    }
}

fn problem_text(problem: &Problem) -> String {
    let what = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
    // The server's fault: its operator finds the reason in the log under this name.
    if problem.status >= 500 && !problem.request_id.is_empty() {
        format!("{what} (request {})", problem.request_id)
    } else {
        what.clone()
    }
}

/// Whether an answer of this status and kind of problem says that something passes by itself. A sealed server waits
/// for a person; a body that broke off on its way is an accident of the network.
pub(super) fn is_passing(status: u16, kind: &str) -> bool {
    match kind.strip_prefix(PROBLEM) {
        Some("sealed") => false,
        Some("aborted" | "too-slow") => true,
        _ => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
    }
}

fn problem_hint(problem: &Problem) -> Option<String> {
    let hint = match (problem.kind.strip_prefix(PROBLEM), problem.status) {
        (Some("sealed"), _) | (_, 423) => "run `narvault vault unseal`",
        (Some("no-signing-key"), _) => "run `narvault key create CACHE`",
        (Some("conflicting-claim"), _) => {
            "run `narvault path show CACHE HASH` to see who pushed the other content"
        }
        (_, 401) => "run `narvault login`, or set NARVAULT_TOKEN",
        (_, 403) => "run `narvault whoami` to see what this token allows",
        (_, 413) => "a limit of the server stands against it, which only its operator can raise",
        (_, 429) => "wait a minute, then run the same again",
        (_, 503) => {
            "the same again goes on where this ended; `narvault check --ready` tells whether the server is up"
        }
        _ => return None,
    };
    Some(hint.into())
}

const PROBLEM: &str = "urn:narvault:problem:";

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, slug: &str) -> Error {
        Error::Problem(Box::new(Problem {
            kind: format!("urn:narvault:problem:{slug}"),
            title: "Title".into(),
            status,
            detail: "what is wrong".into(),
            request_id: "r-1".into(),
        }))
    }

    fn asked_to_wait(seconds: u64, error: Error) -> Error {
        Error::AskedToWait { seconds, error: Box::new(error) }
    }

    #[test]
    fn each_status_is_one_kind_of_failure() {
        for (status, expected) in [
            (400, ErrorKind::Other),
            (401, ErrorKind::NotAuthorised),
            (403, ErrorKind::NotAuthorised),
            (404, ErrorKind::Other),
            (409, ErrorKind::Refused),
            (413, ErrorKind::Refused),
            (422, ErrorKind::Refused),
            (423, ErrorKind::Refused),
            (429, ErrorKind::Other),
            (500, ErrorKind::Other),
            (503, ErrorKind::Other),
        ] {
            assert_eq!(problem(status, "x").kind(), expected, "{status}");
        }
    }

    #[test]
    fn a_proxy_without_a_server_counts_as_unreachable() {
        let url: ServerUrl = "https://a.example".parse().unwrap();
        for (status, expected) in [
            (502, ErrorKind::Unreachable),
            (503, ErrorKind::Unreachable),
            (403, ErrorKind::NotAuthorised),
            (404, ErrorKind::Other),
            (413, ErrorKind::Refused),
        ] {
            assert_eq!(Error::Foreign { url: url.clone(), status }.kind(), expected, "{status}");
        }
    }

    #[test]
    fn a_refusal_names_the_next_command() {
        for (error, expected) in [
            (problem(401, "unauthenticated"), "narvault login"),
            (problem(403, "forbidden"), "narvault whoami"),
            (problem(503, "sealed"), "narvault vault unseal"),
            (asked_to_wait(30, problem(503, "sealed")), "narvault vault unseal"),
            (problem(503, "busy"), "narvault check --ready"),
            (problem(429, "too-many-tries"), "wait a minute"),
            (asked_to_wait(59, problem(429, "too-many-tries")), "again after 59 s"),
            (asked_to_wait(301, problem(503, "read-only")), "again after 301 s"),
        ] {
            assert!(error.hint().unwrap().contains(expected), "{error}");
        }
    }

    #[test]
    fn only_the_servers_own_faults_name_the_request() {
        assert_eq!(problem(409, "conflict").to_string(), "what is wrong");
        assert_eq!(problem(500, "internal").to_string(), "what is wrong (request r-1)");
    }
}

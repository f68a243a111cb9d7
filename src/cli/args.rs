//! Kinds of argument that several commands share, parsed before anything is asked.
//!
//! Never touches the network, the disk or the clock.

use std::fmt;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::api::{Order, PageQuery, Upstream};
use crate::nix::store_path::{ParseStorePathError, StorePath, StorePathHash};
use crate::time::Timestamp;

/// A length of time: a whole number and a unit, such as `30d`, `12h`, `45m`, `90s`, `2w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    seconds: u64,
}

impl Lifetime {
    pub fn as_seconds(self) -> u64 {
        self.seconds
    }
}

/// Why a text is not a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseLifetimeError {
    #[error("a length of time is a whole number and a unit, such as 30d or 12h (s, m, h, d, w)")]
    Form,
    #[error("a length of time of zero ends at once")]
    Zero,
    #[error("a length of time is at most {} days", LIFETIME_SECONDS_MAX / DAY_SECONDS)]
    TooLong,
}

impl FromStr for Lifetime {
    type Err = ParseLifetimeError;

    fn from_str(text: &str) -> Result<Self, ParseLifetimeError> {
        let (count, unit) =
            text.char_indices().last().ok_or(ParseLifetimeError::Form).map(|(at, _)| text.split_at(at))?;
        let unit_seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => DAY_SECONDS,
            "w" => 7 * DAY_SECONDS,
            _ => return Err(ParseLifetimeError::Form),
        };
        // `parse` would take a sign.
        if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseLifetimeError::Form);
        }
        let count: u64 = count.parse().map_err(|_| ParseLifetimeError::TooLong)?;
        match count.checked_mul(unit_seconds) {
            Some(0) => Err(ParseLifetimeError::Zero),
            Some(seconds) if seconds <= LIFETIME_SECONDS_MAX => Ok(Self { seconds }),
            _ => Err(ParseLifetimeError::TooLong),
        }
    }
}

/// In the largest unit that divides it.
impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("w", 7 * DAY_SECONDS), ("d", DAY_SECONDS), ("h", 60 * 60), ("m", 60)];
        let (unit, length) =
            units.into_iter().find(|(_, length)| self.seconds.is_multiple_of(*length)).unwrap_or(("s", 1));
        write!(f, "{}{unit}", self.seconds / length)
    }
}

/// A moment in the past: RFC 3339, or how long ago, such as `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    At(Timestamp),
    Ago(Lifetime),
}

impl Since {
    /// The moment as the API wants it.
    pub fn rfc3339(self, now: Timestamp) -> String {
        match self {
            Self::At(moment) => moment.rfc3339(),
            // At most 100 years: checked when parsed.
            Self::Ago(lifetime) => now.plus_seconds(-(lifetime.seconds as i64)).rfc3339(),
        }
    }
}

/// Why a text is not a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a moment is RFC 3339, such as 2026-11-22T13:10:00Z, or how long ago it was, such as 7d or 12h")]
pub struct ParseSinceError;

impl FromStr for Since {
    type Err = ParseSinceError;

    fn from_str(text: &str) -> Result<Self, ParseSinceError> {
        match text.parse() {
            Ok(lifetime) => Ok(Self::Ago(lifetime)),
            Err(_) => Timestamp::parse_rfc3339(text).map(Self::At).map_err(|_| ParseSinceError),
        }
    }
}

/// A path in a cache, by its hash: `/nix/store/<hash>-<name>`, `<hash>-<name>` or `<hash>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathArg(pub StorePathHash);

impl FromStr for PathArg {
    type Err = ParseStorePathError;

    fn from_str(text: &str) -> Result<Self, ParseStorePathError> {
        if text.starts_with('/') {
            StorePath::from_absolute(text).map(|path| Self(path.hash()))
        } else if text.contains('-') {
            StorePath::from_base_name(text).map(|path| Self(path.hash()))
        } else {
            text.parse().map(Self)
        }
    }
}

/// An upstream cache and one key of it: `URL=NAME:BASE64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamArg {
    pub url: String,
    pub public_key: String,
}

/// Why a text does not name an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an upstream is URL=KEY, such as https://cache.nixos.org=cache.nixos.org-1:6NCHdD59X431…=")]
pub struct ParseUpstreamError;

impl FromStr for UpstreamArg {
    type Err = ParseUpstreamError;

    fn from_str(text: &str) -> Result<Self, ParseUpstreamError> {
        // The key ends in base-64 padding, so the first `=` is the one between.
        let (url, public_key) = text.split_once('=').ok_or(ParseUpstreamError)?;
        let (name, key) = public_key.split_once(':').ok_or(ParseUpstreamError)?;
        if !url.contains("://") || name.is_empty() || name.contains('/') || key.is_empty() {
            return Err(ParseUpstreamError);
        }
        Ok(Self { url: url.to_owned(), public_key: public_key.to_owned() })
    }
}

/// Gathers the keys of each URL, in the order given.
pub fn gather_upstreams(args: &[UpstreamArg]) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    for arg in args {
        match upstreams.iter_mut().find(|upstream| upstream.url == arg.url) {
            Some(upstream) => upstream.public_keys.push(arg.public_key.clone()),
            None => {
                upstreams.push(Upstream { url: arg.url.clone(), public_keys: vec![arg.public_key.clone()] });
            }
        }
    }
    upstreams
}

// Not documentation, which clap would print: oldest first, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    Asc,
    Desc,
}

impl From<OrderArg> for Order {
    fn from(arg: OrderArg) -> Self {
        match arg {
            OrderArg::Asc => Self::Asc,
            OrderArg::Desc => Self::Desc,
        }
    }
}

/// How much of a list.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "How much")]
pub struct ListArgs {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Everything, page by page
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Oldest (asc) or newest (desc) first
    #[arg(long, value_enum)]
    pub order: Option<OrderArg>,
}

impl ListArgs {
    /// The query of the first page.
    pub fn first_page(&self) -> PageQuery {
        PageQuery {
            cursor: self.cursor.clone(),
            limit: Some(self.page_size(0)),
            order: self.order.map(Order::from),
        }
    }

    /// How many to ask for when `seen` have been printed; 0 when that is enough.
    pub fn page_size(&self, seen: u32) -> u32 {
        let wanted = if self.all { PAGE_SIZE_MAX } else { self.limit.saturating_sub(seen) };
        wanted.min(PAGE_SIZE_MAX)
    }
}

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// A hundred years: no arithmetic on times overflows, and nobody means more.
const LIFETIME_SECONDS_MAX: u64 = 36_500 * DAY_SECONDS;

/// The server's bound on a page.
const PAGE_SIZE_MAX: u32 = 200;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "mmjhp110f3wf5kp5q70rc7p49yln4qzy";

    #[test]
    fn lengths_of_time_are_a_number_and_a_unit() {
        for (text, seconds) in [
            ("90s", 90),
            ("45m", 2700),
            ("12h", 43_200),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
            ("007d", 604_800),
            ("36500d", LIFETIME_SECONDS_MAX),
        ] {
            assert_eq!(text.parse(), Ok(Lifetime { seconds }), "{text}");
        }
    }

    #[test]
    fn other_lengths_of_time_are_refused() {
        for (text, expected) in [
            ("", ParseLifetimeError::Form),
            ("30", ParseLifetimeError::Form),
            ("d", ParseLifetimeError::Form),
            ("30 d", ParseLifetimeError::Form),
            ("30days", ParseLifetimeError::Form),
            ("30D", ParseLifetimeError::Form),
            ("1y", ParseLifetimeError::Form),
            ("-1d", ParseLifetimeError::Form),
            ("+1d", ParseLifetimeError::Form),
            ("1.5d", ParseLifetimeError::Form),
            ("1h30m", ParseLifetimeError::Form),
            ("1é", ParseLifetimeError::Form),
            ("0d", ParseLifetimeError::Zero),
            ("36501d", ParseLifetimeError::TooLong),
            ("18446744073709551615w", ParseLifetimeError::TooLong),
            ("99999999999999999999999s", ParseLifetimeError::TooLong),
        ] {
            assert_eq!(text.parse::<Lifetime>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn since_is_a_moment_or_how_long_ago() {
        let now = Timestamp::parse_rfc3339("2026-11-22T12:00:00Z").unwrap();
        for (text, expected) in
            [("1d", "2026-11-21T12:00:00.000Z"), ("2026-11-22T13:10:00+01:00", "2026-11-22T12:10:00.000Z")]
        {
            assert_eq!(text.parse::<Since>().unwrap().rfc3339(now), expected);
        }
        for text in ["", "yesterday", "2026-11-22", "0d", "-1d"] {
            assert_eq!(text.parse::<Since>(), Err(ParseSinceError), "{text:?}");
        }
    }

    #[test]
    fn a_path_is_given_whole_by_name_or_by_hash() {
        for text in [format!("/nix/store/{HASH}-hello-1.0"), format!("{HASH}-hello-1.0"), HASH.to_owned()] {
            assert_eq!(text.parse::<PathArg>().unwrap().0.as_str(), HASH, "{text}");
        }
        for text in [
            String::new(),
            "hello".into(),
            "/".into(),
            HASH[1..].into(),
            format!("{HASH}.narinfo"),
            format!("{HASH}-"),
            format!("/nix/store/{HASH}"),
            format!("/nix/store/{HASH}-hello/bin/hello"),
            format!("/gnu/store/{HASH}-hello"),
            "../../x".into(),
        ] {
            assert!(text.parse::<PathArg>().is_err(), "{text}");
        }
    }

    #[test]
    fn upstreams_are_gathered_by_url() {
        let args: Vec<UpstreamArg> =
            ["https://a.example=a-1:AAA=", "https://b.example=b:BBB=", "https://a.example=a-2:CC=="]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();

        let upstreams = gather_upstreams(&args);

        let upstream = |url: &str, keys: &[&str]| Upstream {
            url: url.to_owned(),
            public_keys: keys.iter().map(|key| (*key).to_owned()).collect(),
        };
        let expected = [
            upstream("https://a.example", &["a-1:AAA=", "a-2:CC=="]),
            upstream("https://b.example", &["b:BBB="]),
        ];
        assert_eq!(upstreams, expected);
    }

    #[test]
    fn other_upstreams_are_refused() {
        for text in [
            "",
            "=",
            "https://a.example",
            "https://a.example=",
            "https://a.example=key",
            "a.example=a:b",
            "https://a.example/?x=y/z:k",
            "https://a.example=:k",
            "https://a.example=a:",
        ] {
            assert!(text.parse::<UpstreamArg>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn pages_are_asked_for_until_the_limit() {
        let list = |limit, all| ListArgs { limit, all, cursor: None, order: None };
        for (args, seen, expected) in [
            (list(100, false), 0, 100),
            (list(100, false), 100, 0),
            (list(500, false), 0, 200),
            (list(500, false), 400, 100),
            (list(100, true), 1000, 200),
        ] {
            assert_eq!(args.page_size(seen), expected);
        }
    }

    proptest! {
        #[test]
        fn lengths_of_time_that_are_printed_parse(seconds in 1..=LIFETIME_SECONDS_MAX) {
            let lifetime = Lifetime { seconds };
            prop_assert_eq!(lifetime.to_string().parse(), Ok(lifetime));
        }

        #[test]
        fn no_text_panics(text: String, near in "[0-9]{0,25}[smhdwé]?") {
            let _ = (text.parse::<Lifetime>(), near.parse::<Lifetime>(), near.parse::<Since>());
            let _ = (text.parse::<PathArg>(), text.parse::<UpstreamArg>());
        }
    }
}

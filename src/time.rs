//! The clock: the only place that asks the operating system for the time of day.
//!
//! Never used below `service` except as a value handed in: times are parameters there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// A moment, in milliseconds since 1970-01-01T00:00:00Z, as it stands in every table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This moment moved by `seconds`, kept within the representable range.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        self.plus_millis(seconds.saturating_mul(1000))
    }

    /// This moment moved by `millis`, kept within the representable range.
    pub fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Whole seconds since 1970, rounded down: what tokens carry.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// RFC 3339 in UTC with milliseconds, `2026-11-22T13:10:00.123Z`: the spelling of leaves and JSON.
    pub fn rfc3339(self) -> String {
        let nanos = i128::from(self.0) * 1_000_000;
        let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        moment.format(RFC3339_MILLIS).expect("every component is present in a date-time")
    }

    /// Reads RFC 3339, any offset.
    pub fn parse_rfc3339(text: &str) -> Result<Self, ParseTimeError> {
        let moment = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)?;
        let millis = moment.unix_timestamp_nanos().div_euclid(1_000_000);
        // The years that the format allows fit by far.
        Ok(Self(i64::try_from(millis).unwrap_or(i64::MAX)))
    }

    /// Reads the date of an HTTP answer, `Sun, 22 Nov 2026 13:10:00 GMT`; `None` if it is none.
    pub fn parse_http_date(text: &str) -> Option<Self> {
        let moment = PrimitiveDateTime::parse(text, HTTP_DATE).ok()?.assume_utc();
        Some(Self(moment.unix_timestamp().saturating_mul(1000)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// A text that is not RFC 3339.
#[derive(Debug, thiserror::Error)]
#[error("time is not RFC 3339, such as 2026-11-22T13:10:00Z")]
pub struct ParseTimeError(#[from] time::error::Parse);

/// Where the time comes from: the system, or a test's hand.
#[derive(Clone, Debug)]
pub enum Clock {
    System,
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `now` until [`Clock::advance_seconds`].
    pub fn fixed(now: Timestamp) -> Self {
        Self::Fixed(Arc::new(AtomicI64::new(now.0)))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Fixed(millis) => Timestamp(millis.load(Ordering::SeqCst)),
        }
    }

    /// Moves a fixed clock; a system clock goes by itself.
    pub fn advance_seconds(&self, seconds: i64) {
        if let Self::Fixed(millis) = self {
            millis.fetch_add(seconds * 1000, Ordering::SeqCst);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that asks for the time of day")]
fn system_now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

const RFC3339_MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spelled_in_utc_with_milliseconds() {
        let moment = Timestamp(1_795_353_000_123);

        assert_eq!(moment.rfc3339(), "2026-11-22T13:10:00.123Z");
        assert_eq!(Timestamp::parse_rfc3339("2026-11-22T14:10:00.123+01:00").unwrap(), moment);
        assert_eq!(moment.unix_seconds(), 1_795_353_000);
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["", "yesterday", "2026-11-22", "2026-11-22 13:10", "1795353000"] {
            assert!(Timestamp::parse_rfc3339(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_date_of_an_http_answer_is_read() {
        let moment = Timestamp(1_795_353_000_000);

        assert_eq!(Timestamp::parse_http_date("Sun, 22 Nov 2026 13:10:00 GMT"), Some(moment));
        for text in
            ["", "Sunday, 22-Nov-26 13:10:00 GMT", "2026-11-22T13:10:00Z", "Sun, 32 Nov 2026 13:10:00 GMT"]
        {
            assert_eq!(Timestamp::parse_http_date(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_fixed_clock_moves_only_by_hand() {
        let clock = Clock::fixed(Timestamp(5));
        let same = clock.clone();

        clock.advance_seconds(2);

        assert_eq!(same.now(), Timestamp(2005));
    }
}

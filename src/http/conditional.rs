//! `If-None-Match`, `Range` and `If-Range` (RFC 9110, sections 13 and 14), and small texts that know them.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::nix::hash::Sha256Digest;

/// What a `Range` header asks of a body of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RangeAnswer {
    /// No range, one that may be ignored (several, another unit), or one of another version.
    Whole,
    /// Half-open, within the body, not empty.
    Part(Range<u64>),
    Unsatisfiable,
}

/// Whether `If-None-Match` names this tag.
pub(super) fn matches(headers: &HeaderMap, etag: &str) -> bool {
    let Some(text) = text(headers, header::IF_NONE_MATCH) else { return false };
    text.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// A small text with its `ETag`, or 304 where the caller has that already. What is not `public` is kept by nobody.
pub(super) fn document(
    asked: &HeaderMap,
    text: String,
    content_type: &'static str,
    public: bool,
) -> Response {
    let etag = format!("\"{}\"", Sha256Digest::of(text.as_bytes()));
    let unchanged = matches(asked, &etag);
    let mut response = Response::new(if unchanged { Body::empty() } else { Body::from(text) });
    if unchanged {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let caching = if public { "public, max-age=60" } else { "private, no-store" };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    if let Ok(etag) = HeaderValue::try_from(etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}

/// Reads `Range`, unless `If-Range` names another version.
pub(super) fn range(headers: &HeaderMap, etag: &str, size: u64) -> RangeAnswer {
    if text(headers, header::IF_RANGE).is_some_and(|asked| asked != etag) {
        return RangeAnswer::Whole;
    }
    let asked = text(headers, header::RANGE).and_then(|text| text.strip_prefix("bytes="));
    let Some((first, last)) = asked.and_then(|asked| asked.split_once('-')) else {
        return RangeAnswer::Whole;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a u64 has are more bytes than any body has.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.is_empty() => first..size,
        (None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        _ => return RangeAnswer::Whole,
    };
    if range.is_empty() { RangeAnswer::Unsatisfiable } else { RangeAnswer::Part(range) }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"abc\"";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let part = RangeAnswer::Part;
        for (asked, expected) in [
            ("bytes=0-", part(0..100)),
            ("bytes=40-", part(40..100)),
            ("bytes=0-0", part(0..1)),
            ("bytes=10-19", part(10..20)),
            ("bytes=10-1000", part(10..100)),
            ("bytes=-10", part(90..100)),
            ("bytes=-1000", part(0..100)),
            ("bytes=99-99999999999999999999999", part(99..100)),
            ("bytes=100-", RangeAnswer::Unsatisfiable),
            ("bytes=-0", RangeAnswer::Unsatisfiable),
            ("bytes=99999999999999999999999-", RangeAnswer::Unsatisfiable),
            ("bytes=20-10", RangeAnswer::Whole),
            ("bytes=0-1,5-6", RangeAnswer::Whole),
            ("bytes=+1-2", RangeAnswer::Whole),
            ("bytes= 1-2", RangeAnswer::Whole),
            ("bytes=-", RangeAnswer::Whole),
            ("lines=1-2", RangeAnswer::Whole),
            ("", RangeAnswer::Whole),
        ] {
            assert_eq!(range(&headers(&[(header::RANGE, asked)]), ETAG, 100), expected, "{asked}");
        }
        assert_eq!(range(&headers(&[(header::RANGE, "bytes=0-")]), ETAG, 0), RangeAnswer::Unsatisfiable);
        assert_eq!(range(&HeaderMap::new(), ETAG, 100), RangeAnswer::Whole);
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let other = headers(&[(header::RANGE, "bytes=5-"), (header::IF_RANGE, "\"xyz\"")]);
        let same = headers(&[(header::RANGE, "bytes=5-"), (header::IF_RANGE, ETAG)]);

        assert_eq!(range(&other, ETAG, 10), RangeAnswer::Whole);
        assert_eq!(range(&same, ETAG, 10), RangeAnswer::Part(5..10));
    }

    #[test]
    fn a_known_tag_matches() {
        for (asked, expected) in [
            (ETAG, true),
            ("W/\"abc\"", true),
            ("*", true),
            ("\"x\", \"abc\"", true),
            ("\"x\"", false),
            ("abc", false),
        ] {
            assert_eq!(matches(&headers(&[(header::IF_NONE_MATCH, asked)]), ETAG), expected, "{asked}");
        }
    }
}

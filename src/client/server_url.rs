//! The address of a server, in the one spelling under which a login is stored.
//!
//! Never holds a user name, a password, a query or a fragment: an address is printed and stored in clear.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

/// Longest accepted address, in bytes: what common servers and proxies accept as a request line, with room for a path.
const LENGTH_MAX: usize = 2048;

/// Why a text is not the address of a server. Says the shape only: the text may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseServerUrlError {
    #[error("server address is not a URL such as https://cache.example.org")]
    Form,
    #[error("server address is longer than {LENGTH_MAX} characters")]
    Length,
    #[error("server address does not begin with https:// or http://")]
    Scheme,
    #[error("server address holds a user name or a password")]
    Credentials,
    #[error("server address holds a `?` or a `#`")]
    Extra,
}

/// `https://host[:port][/folder]`, without a slash at the end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerUrl(Url);

impl ServerUrl {
    /// The host name, as a netrc file spells it: without port and without brackets.
    pub fn host(&self) -> String {
        match self.0.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string(),
            None => String::new(),
        }
    }

    /// Whether what is sent stays readable only to the server: https, or this very machine.
    pub fn keeps_secrets(&self) -> bool {
        self.0.scheme() == "https" || self.is_loopback()
    }

    /// Whether the address is this machine's own: `localhost`, 127.0.0.0/8 or `::1`.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    /// This address with `segments` after it, each one percent-encoded; `None` if one of them is empty, `.` or `..`,
    /// which would name another resource.
    pub fn join(&self, segments: &[&str]) -> Option<Url> {
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return None;
        }
        let mut url = self.0.clone();
        url.path_segments_mut().ok()?.pop_if_empty().extend(segments);
        Some(url)
    }
}

impl FromStr for ServerUrl {
    type Err = ParseServerUrlError;

    fn from_str(text: &str) -> Result<Self, ParseServerUrlError> {
        if text.len() > LENGTH_MAX {
            return Err(ParseServerUrlError::Length);
        }
        let mut url = Url::parse(text).map_err(|_| ParseServerUrlError::Form)?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(ParseServerUrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ParseServerUrlError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(ParseServerUrlError::Extra);
        }
        let folder = url.path().trim_end_matches('/').to_owned();
        url.set_path(&folder);
        Ok(Self(url))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Url` gives even the empty path a slash.
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(text: &str) -> ServerUrl {
        text.parse().unwrap()
    }

    #[test]
    fn one_server_has_one_spelling() {
        for (text, expected) in [
            ("https://cache.example.org", "https://cache.example.org"),
            ("https://cache.example.org/", "https://cache.example.org"),
            ("HTTPS://Cache.Example.ORG:443//", "https://cache.example.org"),
            ("http://127.0.0.1:8750/", "http://127.0.0.1:8750"),
            ("https://example.org/narvault/", "https://example.org/narvault"),
            ("http://[::1]:8750", "http://[::1]:8750"),
        ] {
            assert_eq!(server(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for (text, expected) in [
            ("", ParseServerUrlError::Form),
            ("cache.example.org", ParseServerUrlError::Form),
            ("https://", ParseServerUrlError::Form),
            ("https://a b/", ParseServerUrlError::Form),
            ("localhost:8750", ParseServerUrlError::Scheme),
            ("ftp://cache.example.org", ParseServerUrlError::Scheme),
            ("file:///etc/passwd", ParseServerUrlError::Scheme),
            ("s3://bucket", ParseServerUrlError::Scheme),
            ("https://me@cache.example.org", ParseServerUrlError::Credentials),
            ("https://me:secret@cache.example.org", ParseServerUrlError::Credentials),
            ("https://:secret@cache.example.org", ParseServerUrlError::Credentials),
            ("https://cache.example.org?token=secret", ParseServerUrlError::Extra),
            ("https://cache.example.org/#secret", ParseServerUrlError::Extra),
            (&format!("https://{}", "a".repeat(2048)), ParseServerUrlError::Length),
        ] {
            let error = text.parse::<ServerUrl>().unwrap_err();

            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_https_and_this_machine_keep_secrets() {
        for text in [
            "https://a.example",
            "http://localhost:1",
            "http://127.0.0.1",
            "http://127.9.9.9",
            "http://[::1]",
        ] {
            assert!(server(text).keeps_secrets(), "{text}");
        }
        for text in [
            "http://a.example",
            "http://localhost.example",
            "http://10.0.0.1",
            "http://0.0.0.0",
            "http://[::]",
            "http://[::ffff:127.0.0.1]",
            "http://127.0.0.1.example",
        ] {
            assert!(!server(text).keeps_secrets(), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        let base = server("https://example.org/narvault");

        assert_eq!(
            base.join(&["api", "v1", "caches", "a/b?c#d%2f"]).unwrap().as_str(),
            "https://example.org/narvault/api/v1/caches/a%2Fb%3Fc%23d%252f"
        );
        for name in ["", ".", ".."] {
            assert!(base.join(&["api", "v1", "caches", name]).is_none(), "{name:?}");
        }
    }

    #[test]
    fn the_host_is_spelled_as_in_a_netrc_file() {
        assert_eq!(server("https://cache.example.org:8443/x").host(), "cache.example.org");
        assert_eq!(server("http://[::1]:8750").host(), "::1");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses(text in "https?://[a-z0-9.]{1,20}(:[0-9]{1,5})?(/[a-z/]{0,20})?") {
            if let Ok(url) = text.parse::<ServerUrl>() {
                prop_assert_eq!(url.to_string().parse::<ServerUrl>(), Ok(url));
            }
        }

        #[test]
        fn no_text_panics(text: String, segment: String) {
            let _ = text.parse::<ServerUrl>();
            let _ = server("https://a.example").join(&[&segment]);
        }
    }
}

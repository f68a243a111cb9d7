//! Messages to other people's servers: the one room that sends what happened here to an address that an admin chose.
//!
//! Never reaches an address that is not public, unless the configuration allows it: the address is checked where it is
//! connected to, so that no name that resolves differently a moment later gets around it. Never follows a redirect,
//! never uses a proxy, never reads what is answered but its status, and never repeats a URL, which may be a secret.

use std::error::Error as StdError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// What the configuration allows beyond https to public addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Private, loopback and other addresses that are not public.
    pub private: bool,
    /// Plain http.
    pub http: bool,
}

/// Why a URL cannot be a webhook's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("is not a URL")]
    Form,
    #[error("is longer than {URL_LENGTH_MAX} bytes")]
    Length,
    #[error("is not https; `webhooks.allow_http = true` in the server's configuration allows plain http")]
    Scheme,
    #[error("holds a user name or a password: anyone who may list webhooks would see them")]
    Credentials,
    #[error("has a fragment, which is never sent")]
    Fragment,
    #[error(
        "leads to an address that is not public; `webhooks.allow_private = true` in the server's configuration allows that"
    )]
    Private,
}

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("answered with status {0}")]
    Status(u16),
    #[error("the URL {0}")]
    Url(#[from] UrlError),
    #[error("its name leads to no public address")]
    Private,
    #[error("did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
    #[error("cannot be reached: {0}")]
    Unreachable(String),
}

impl SendError {
    /// The status of the answer, where there was one.
    pub fn status(&self) -> Option<u16> {
        if let Self::Status(status) = self { Some(*status) } else { None }
    }
}

/// A signed message, as Standard Webhooks has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The same at each attempt.
    pub id: String,
    /// Seconds since 1970, of this attempt.
    pub timestamp: i64,
    /// `v1,` and the base64 of the HMAC of `id.timestamp.body`.
    pub signature: String,
    /// JSON.
    pub body: String,
}

/// Sends messages.
pub struct Sender {
    http: reqwest::Client,
    allowed: Allowed,
}

impl Sender {
    /// Opens no connection yet.
    pub fn new(allowed: Allowed) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("narvault/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve the name by itself, and reach what this server must not.
            .no_proxy()
            .dns_resolver(Guarded { allowed })
            .https_only(!allowed.http)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .pool_max_idle_per_host(1)
            .build()?;
        Ok(Self { http, allowed })
    }

    /// Reads a URL that a webhook may have.
    pub fn url(&self, text: &str) -> Result<Url, UrlError> {
        parse_url(text, self.allowed)
    }

    /// Sends a message once. Answers with the status of the answer, which is one of success.
    pub async fn send(&self, url: &str, message: Message) -> Result<u16, SendError> {
        // The configuration may have become stricter since the URL was taken in; an address needs no resolver.
        let url = self.url(url)?;
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", message.id)
            .header("webhook-timestamp", message.timestamp)
            .header("webhook-signature", message.signature)
            .body(message.body);
        let status = request.send().await.map_err(|error| failure(&error))?.status();
        // The answer's body is never read: the connection ends where it is longer than what came with the head.
        if status.is_success() { Ok(status.as_u16()) } else { Err(SendError::Status(status.as_u16())) }
    }
}

fn parse_url(text: &str, allowed: Allowed) -> Result<Url, UrlError> {
    if text.len() > URL_LENGTH_MAX {
        return Err(UrlError::Length);
    }
    let url = Url::parse(text).map_err(|_| UrlError::Form)?;
    match url.scheme() {
        "https" => {}
        "http" if allowed.http => {}
        _ => return Err(UrlError::Scheme),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    if url.fragment().is_some() {
        return Err(UrlError::Fragment);
    }
    let is_allowed = match url.host() {
        None => return Err(UrlError::Form),
        Some(Host::Domain(name)) => !is_local_name(name),
        Some(Host::Ipv4(address)) => is_public(address.into()),
        Some(Host::Ipv6(address)) => is_public(address.into()),
    };
    if is_allowed || allowed.private { Ok(url) } else { Err(UrlError::Private) }
}

/// Names that lead nowhere else than here or nearby, whatever they resolve to: told at once instead of at the first
/// delivery.
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    ["localhost", "local", "internal"].iter().any(|last| name.rsplit('.').next() == Some(last))
}

/// Whether an address is one of the public Internet: the special-purpose registries of IANA (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared by providers, protocol assignments, the old 6to4 relays, benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b));
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Global unicast is 2000::/3. What wraps a version 4 address (::ffff:0:0/96, 64:ff9b::/96, 2002::/16) is outside, or
    // refused as a whole; so are Teredo and the other protocols of 2001::/23, and documentation.
    let special = (a == 0x2001 && (b < 0x0200 || b == 0x0db8)) || a == 0x2002 || (a == 0x3fff && b < 0x1000);
    (0x2000..0x4000).contains(&a) && !special
}

/// Resolves names, and gives out the addresses that may be connected to. Whoever connects uses these and no others.
struct Guarded {
    allowed: Allowed,
}

#[derive(Debug, thiserror::Error)]
#[error("the name leads to no public address")]
struct NotPublic;

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allowed.private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> =
                found.filter(|address| allow_private || is_public(address.ip())).collect();
            if addresses.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

fn failure(error: &reqwest::Error) -> SendError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    let mut root = String::new();
    while let Some(here) = cause {
        if here.is::<NotPublic>() {
            return SendError::Private;
        }
        // The outermost would repeat the URL.
        root = here.to_string();
        cause = here.source();
    }
    if error.is_timeout() {
        return SendError::Timeout;
    }
    if error.source().is_none() {
        root = "the connection broke off".to_owned();
    }
    root.truncate(root.floor_char_boundary(CAUSE_LENGTH_MAX));
    SendError::Unreachable(root)
}

/// Longest URL of a webhook.
pub const URL_LENGTH_MAX: usize = 2048;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From the first byte to the answer's status.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Of a cause that is kept in a row.
const CAUSE_LENGTH_MAX: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Allowed = Allowed { private: false, http: false };

    #[test]
    fn only_https_to_public_places_is_taken() {
        for (text, expected) in [
            ("https://hooks.example.org/a?b=c", Ok(())),
            ("https://93.184.216.34:8443/", Ok(())),
            ("https://[2606:2800:220:1:248:1893:25c8:1946]/", Ok(())),
            ("", Err(UrlError::Form)),
            ("hooks.example.org", Err(UrlError::Form)),
            ("https://", Err(UrlError::Form)),
            ("http://hooks.example.org/", Err(UrlError::Scheme)),
            ("ftp://hooks.example.org/", Err(UrlError::Scheme)),
            ("file:///etc/passwd", Err(UrlError::Scheme)),
            ("https://user@hooks.example.org/", Err(UrlError::Credentials)),
            ("https://:word@hooks.example.org/", Err(UrlError::Credentials)),
            ("https://hooks.example.org/#x", Err(UrlError::Fragment)),
            ("https://localhost/", Err(UrlError::Private)),
            ("https://LOCALHOST./", Err(UrlError::Private)),
            ("https://a.localhost:1/", Err(UrlError::Private)),
            ("https://metadata.google.internal/", Err(UrlError::Private)),
            ("https://127.0.0.1/", Err(UrlError::Private)),
            // The same in other spellings.
            ("https://2130706433/", Err(UrlError::Private)),
            ("https://0x7f.1/", Err(UrlError::Private)),
            ("https://[::1]/", Err(UrlError::Private)),
            ("https://[::ffff:10.0.0.1]/", Err(UrlError::Private)),
            ("https://169.254.169.254/latest/meta-data", Err(UrlError::Private)),
        ] {
            assert_eq!(parse_url(text, STRICT).map(drop), expected, "{text}");
        }
        assert_eq!(parse_url(&format!("https://a/{}", "b".repeat(3000)), STRICT), Err(UrlError::Length));
    }

    #[test]
    fn the_configuration_allows_what_it_says_and_no_more() {
        let private = Allowed { private: true, http: false };
        let http = Allowed { private: false, http: true };

        assert!(parse_url("https://10.0.0.1/", private).is_ok());
        assert_eq!(parse_url("http://10.0.0.1/", private), Err(UrlError::Scheme));
        assert!(parse_url("http://hooks.example.org/", http).is_ok());
        assert_eq!(parse_url("http://127.0.0.1/", http), Err(UrlError::Private));
        assert_eq!(parse_url("http://a:b@127.0.0.1/", http), Err(UrlError::Credentials));
    }

    #[test]
    fn addresses_that_are_not_of_the_public_internet_are_known() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:808:808::1",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in
            ["1.1.1.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "198.20.0.1", "2606:4700::1111", "2a00::1"]
        {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_machine_is_not_connected_to() {
        // Not by its spelling: what it resolves to decides.
        let resolved = Guarded { allowed: STRICT }.resolve("localhost".parse().unwrap()).await;
        assert!(resolved.err().unwrap().is::<NotPublic>());

        let allowed = Guarded { allowed: Allowed { private: true, http: true } };
        assert!(
            allowed
                .resolve("localhost".parse().unwrap())
                .await
                .unwrap()
                .all(|address| address.ip().is_loopback())
        );
    }
}

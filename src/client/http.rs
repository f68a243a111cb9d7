//! One request, one answer: addresses, credentials, time and size limits.
//!
//! Never follows a redirect, never sends a secret in clear over a network, never reads an answer without a limit.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;

use super::error::Error;
use super::server_url::ServerUrl;
use crate::api::Problem;

/// Calls one server, with or without a token. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// For addresses that the server gives: without the token.
    elsewhere: reqwest::Client,
    url: ServerUrl,
    has_token: bool,
    insecure_http: bool,
}

impl Client {
    /// A client of the server at `url`. Refuses to hold a token for an address where it could be read on the way,
    /// unless `insecure_http` says that this is meant.
    pub fn new(url: ServerUrl, token: Option<&SecretString>, insecure_http: bool) -> Result<Self, Error> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, bearer(token)?);
        }
        let build = |headers: HeaderMap| {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("narvault/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .timeout(CALL_TIMEOUT);
            if url.is_loopback() {
                // A proxy for the outside world would see the token in clear, and would call its own machine.
                builder = builder.no_proxy();
            }
            builder.build().map_err(Error::Setup)
        };
        let (http, elsewhere) = (build(headers)?, build(HeaderMap::new())?);
        let client = Self { http, elsewhere, url, has_token: token.is_some(), insecure_http };
        if client.has_token {
            client.require_secrecy()?;
        }
        Ok(client)
    }

    /// The server's address.
    pub fn url(&self) -> &ServerUrl {
        &self.url
    }

    /// Refuses unless there is a token to show.
    pub fn require_token(&self) -> Result<(), Error> {
        if self.has_token { Ok(()) } else { Err(Error::NoToken { url: self.url.clone() }) }
    }

    /// Refuses if a secret in the body would cross the network in clear.
    pub(super) fn require_secrecy(&self) -> Result<(), Error> {
        if self.insecure_http || self.url.keeps_secrets() {
            Ok(())
        } else {
            Err(Error::PlainHttp { url: self.url.clone() })
        }
    }

    /// A request to the address that `segments` name, each one percent-encoded.
    pub(super) fn request(&self, method: Method, segments: &[&str]) -> Result<RequestBuilder, Error> {
        let Some(url) = self.url.join(segments) else {
            let name = segments.iter().find(|segment| matches!(**segment, "" | "." | ".."));
            return Err(Error::Name(name.copied().unwrap_or_default().to_owned()));
        };
        Ok(self.http.request(method, url))
    }

    /// Sends, and reads a JSON answer.
    pub(super) async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.accepted(request).await?;
        let body = self.body(response, ANSWER_SIZE_BYTES_MAX).await?;
        serde_json::from_slice(&body).map_err(|error| Error::AnswerForm {
            url: self.url.clone(),
            line: error.line(),
            column: error.column(),
        })
    }

    /// For an answer that is JSON and yet not what was asked for.
    pub(super) fn answer_of_another_form(&self) -> Error {
        Error::AnswerForm { url: self.url.clone(), line: 0, column: 0 }
    }

    /// Sends, and reads an answer that is not JSON.
    pub(super) async fn bytes(&self, request: RequestBuilder) -> Result<Vec<u8>, Error> {
        let response = self.accepted(request).await?;
        self.body(response, ANSWER_SIZE_BYTES_MAX).await
    }

    /// Sends, and reads nothing of a successful answer.
    pub(super) async fn done(&self, request: RequestBuilder) -> Result<(), Error> {
        self.accepted(request).await.map(drop)
    }

    /// Puts bytes to an address that the server gave, without the token. Never tells the address: it is a secret.
    pub(super) async fn put_elsewhere(&self, url: &str, bytes: Bytes) -> Result<(), Error> {
        let sent = self.elsewhere.put(url).body(bytes).send().await;
        let host = || {
            let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
            host.unwrap_or_else(|| "the bucket".to_owned())
        };
        match sent {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => {
                let error = Error::Elsewhere { host: host(), status: Some(response.status().as_u16()) };
                Err(asked_to_wait(error, wait_seconds(response.headers())))
            }
            Err(_) => Err(Error::Elsewhere { host: host(), status: None }),
        }
    }

    /// Sends, and gives status and text of any answer, successful or not.
    pub(super) async fn status_and_text(&self, request: RequestBuilder) -> Result<(u16, String), Error> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        let body = self.body(response, PROBLEM_SIZE_BYTES_MAX).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Sends, and gives status and body of any answer, successful or not.
    pub(super) async fn status_and_bytes(&self, request: RequestBuilder) -> Result<(u16, Vec<u8>), Error> {
        let response = self.send(request).await?;
        let status = response.status().as_u16();
        Ok((status, self.body(response, ANSWER_SIZE_BYTES_MAX).await?))
    }

    /// Sends for the first byte of a file, and follows a redirect, once and without the token. Never tells where it
    /// leads but for the host: the address may be a secret.
    pub(super) async fn first_byte(&self, request: RequestBuilder) -> Result<FirstByte, Error> {
        let response = self.send(request.header(RANGE, FIRST_BYTE)).await?;
        if !response.status().is_redirection() {
            return Ok(FirstByte::of(response).await);
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| response.url().join(location).ok());
        let Some(target) = target else {
            return Ok(FirstByte { status: Some(response.status().as_u16()), came: false, elsewhere: None });
        };
        let elsewhere = target.host_str().map(str::to_owned);
        match self.elsewhere.get(target).header(RANGE, FIRST_BYTE).send().await {
            Ok(response) => Ok(FirstByte { elsewhere, ..FirstByte::of(response).await }),
            Err(_) => Ok(FirstByte { status: None, came: false, elsewhere }),
        }
    }

    /// Sends, and gives one header of any answer, if it is there and is text.
    pub(super) async fn header(&self, request: RequestBuilder, name: &str) -> Result<Option<String>, Error> {
        let response = self.send(request).await?;
        Ok(response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        request.send().await.map_err(|source| self.transport_error(source))
    }

    /// Sends, and turns every answer that is not a success into its error.
    async fn accepted(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = self.send(request).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.is_redirection() {
            let location = response.headers().get(LOCATION).map(HeaderValue::as_bytes).unwrap_or_default();
            let location = String::from_utf8_lossy(location).into_owned();
            return Err(Error::Redirected { url: self.url.clone(), location });
        }
        let status = status.as_u16();
        let foreign = Error::Foreign { url: self.url.clone(), status };
        let wait_seconds = wait_seconds(response.headers());
        let error = match self.body(response, PROBLEM_SIZE_BYTES_MAX).await {
            // The status that came over the wire counts, whatever the body says.
            Ok(body) => serde_json::from_slice::<Problem>(&body)
                .map(|problem| Error::Problem(Box::new(Problem { status, ..problem })))
                .unwrap_or(foreign),
            Err(_) => foreign,
        };
        Err(asked_to_wait(error, wait_seconds))
    }

    /// Reads a body of at most `limit` bytes.
    async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| self.transport_error(source))? {
            if body.len() + chunk.len() > limit {
                return Err(Error::AnswerTooLarge { url: self.url.clone(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn transport_error(&self, source: reqwest::Error) -> Error {
        // The address is named by our own error; theirs would repeat it with every query parameter.
        let source = source.without_url();
        let url = self.url.clone();
        if source.is_connect() {
            Error::Unreachable { url, source }
        } else if source.is_timeout() {
            Error::TimedOut { url, source }
        } else {
            Error::Broken { url, source }
        }
    }
}

/// What came of asking for a file's first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstByte {
    /// The status of the last answer; `None` if nobody answered where a redirect led to.
    pub status: Option<u16>,
    /// Whether a byte came.
    pub came: bool,
    /// The host that a redirect led to.
    pub elsewhere: Option<String>,
}

impl FirstByte {
    /// Reads no more than comes first: who does not know ranges sends everything.
    async fn of(mut response: Response) -> Self {
        let status = response.status();
        let came =
            status.is_success() && matches!(response.chunk().await, Ok(Some(chunk)) if !chunk.is_empty());
        Self { status: Some(status.as_u16()), came, elsewhere: None }
    }
}

fn asked_to_wait(error: Error, wait_seconds: Option<u64>) -> Error {
    match wait_seconds {
        Some(seconds) => Error::AskedToWait { seconds, error: Box::new(error) },
        None => error,
    }
}

/// `Retry-After` in seconds. A moment is counted from the `Date` of the same answer, so that no clock here has to agree
/// with one there; without a `Date` it counts as none.
fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(asked.parse().unwrap_or(u64::MAX));
    }
    let moment = |text| httpdate::parse_http_date(text).ok();
    let (until, now) = (moment(asked)?, moment(text(DATE)?)?);
    Some(until.duration_since(now).map_or(0, |wait| wait.as_secs()))
}

fn bearer(token: &SecretString) -> Result<HeaderValue, Error> {
    let token = token.expose_secret();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if token.is_empty() || !token.bytes().all(plain) {
        return Err(Error::TokenForm);
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::TokenForm)?;
    // Kept out of debug output and of HTTP/2's shared header table.
    value.set_sensitive(true);
    Ok(value)
}

/// Name lookup, TCP and TLS together take well below a second on a working network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The slowest call is the deletion of a cache with all its paths, in batches of 200 rows.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest answer that is read: a page of 200 paths with 10 keys each is below 1 MiB; 10 000 missing hashes are 350 KiB;
/// one path with 10 000 references is 1 MiB.
const ANSWER_SIZE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The value of `Range` that asks for one byte.
const FIRST_BYTE: &str = "bytes=0-0";

/// Largest explanation that is read: ours stay below 2 KiB.
const PROBLEM_SIZE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::error::ErrorKind;
    use super::*;

    /// Answers one request with `answer` and gives back what was asked.
    async fn ask_a_server_that_answers(answer: Vec<u8>) -> (String, Result<serde_json::Value, Error>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            // A client that has read enough hangs up in the middle of a large answer.
            let _ = stream.write_all(&answer).await;
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let url = format!("http://{address}/base").parse().unwrap();
        let client = Client::new(url, Some(&"nvt_abc".into()), false).unwrap();

        let result = client.answer(client.request(Method::GET, &["x", "a b"]).unwrap()).await;

        (server.await.unwrap(), result)
    }

    fn answer(head: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    }

    #[tokio::test]
    async fn the_token_goes_with_the_call() {
        let (asked, result) = ask_a_server_that_answers(answer("200 OK", r#"{"a":1}"#)).await;

        assert!(asked.starts_with("GET /base/x/a%20b HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("authorization: Bearer nvt_abc\r\n"), "{asked}");
        assert_eq!(result.unwrap()["a"], 1);
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let moved = answer("307 Temporary Redirect\r\nlocation: https://evil.example/", "");
        let (_, result) = ask_a_server_that_answers(moved).await;

        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::Redirected { location, .. } if location == "https://evil.example/"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_problem_is_told_in_the_servers_words_and_the_wires_status() {
        let body = r#"{"type":"urn:narvault:problem:conflict","title":"Conflict","status":200,"detail":"cache `main` holds paths","request_id":"r"}"#;
        let (_, result) = ask_a_server_that_answers(answer("409 Conflict", body)).await;

        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "cache `main` holds paths");
        assert_eq!(error.kind(), ErrorKind::Refused);
    }

    #[tokio::test]
    async fn answers_that_are_not_narvaults_are_refused() {
        let (_, result) = ask_a_server_that_answers(answer("404 Not Found", "<html>")).await;
        assert!(matches!(result.unwrap_err(), Error::Foreign { status: 404, .. }));

        let (_, result) = ask_a_server_that_answers(answer("200 OK", "<html>")).await;
        assert!(matches!(result.unwrap_err(), Error::AnswerForm { .. }));

        let (_, result) =
            ask_a_server_that_answers(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".to_vec()).await;
        assert!(matches!(result.unwrap_err(), Error::Broken { .. }));

        let large = " ".repeat(ANSWER_SIZE_BYTES_MAX + 1);
        let (_, result) = ask_a_server_that_answers(answer("200 OK", &large)).await;
        assert!(matches!(result.unwrap_err(), Error::AnswerTooLarge { .. }));
    }

    #[test]
    fn a_wait_is_asked_for_in_seconds_or_as_a_moment_of_the_answers_own_clock() {
        const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (asked, date, expected) in [
            ("0", None, Some(0)),
            (" 120 ", None, Some(120)),
            ("99999999999999999999999", None, Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(NOW), Some(30)),
            // The two forms that HTTP had before, which have to be understood.
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(NOW), Some(30)),
            ("Sun Nov  6 08:50:07 1994", Some(NOW), Some(30)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(NOW), Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(NOW), Some(0)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(NOW), Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", None, None),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some("yesterday"), None),
            ("-1", Some(NOW), None),
            ("+1", Some(NOW), None),
            ("1.5", Some(NOW), None),
            ("soon", Some(NOW), None),
            ("", Some(NOW), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, asked.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }

            assert_eq!(wait_seconds(&headers), expected, "{asked:?} {date:?}");
        }
        assert_eq!(wait_seconds(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn the_bucket_is_obeyed_too_when_it_asks_to_wait() {
        for (head, expected, status) in [
            ("503 Slow Down\r\nretry-after: 7", Some(7), 503),
            ("429 Too Many Requests\r\nretry-after: 900", Some(900), 429),
            ("503 Slow Down", None, 503),
            ("403 Forbidden\r\nretry-after: 7", Some(7), 403),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/part?signature=secret", listener.local_addr().unwrap());
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&answer(head, "<Error/>")).await;
            });
            let client = Client::new("http://127.0.0.1:1".parse().unwrap(), None, false).unwrap();

            let error = client.put_elsewhere(&url, Bytes::from_static(b"part")).await.unwrap_err();

            assert_eq!(error.wait_seconds(), expected, "{head:?}");
            assert_eq!(error.is_passing(), status != 403, "{head:?}");
            let told = format!("{error} {error:?} {:?}", error.hint());
            assert!(told.contains(&format!("answered with status {status}")), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
    }

    #[tokio::test]
    async fn an_answer_of_another_form_is_not_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&answer("201 Created", r#"{"revoked":"nvt_secret"}"#)).await;
        });
        let client = Client::new(url, None, false).unwrap();

        let request = client.request(Method::GET, &["x"]).unwrap();
        let error = client.answer::<crate::api::Revoked>(request).await.unwrap_err();

        assert!(matches!(error, Error::AnswerForm { line: 1, .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }

    #[tokio::test]
    async fn a_refused_connection_is_unreachable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let client = Client::new(url, None, false).unwrap();

        let error = client.done(client.request(Method::GET, &["x"]).unwrap()).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Unreachable);
    }

    #[test]
    fn a_token_is_not_sent_in_clear_unless_told() {
        let token = SecretString::from("nvt_abc");
        for text in ["http://cache.example.org", "http://10.0.0.1:8750", "http://0.0.0.0"] {
            let url: ServerUrl = text.parse().unwrap();

            let refused = Client::new(url.clone(), Some(&token), false).err().unwrap();
            assert!(matches!(refused, Error::PlainHttp { .. }), "{text}");
            assert!(refused.hint().unwrap().contains("--insecure-http"));

            assert!(Client::new(url.clone(), Some(&token), true).is_ok(), "{text}");
            assert!(Client::new(url.clone(), None, false).is_ok(), "{text}");
            assert!(Client::new(url, None, false).unwrap().require_secrecy().is_err(), "{text}");
        }
        for text in ["https://cache.example.org", "http://127.0.0.1:8750", "http://localhost"] {
            assert!(Client::new(text.parse().unwrap(), Some(&token), false).is_ok(), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_token_are_refused_without_repeating_them() {
        for text in ["", "nvt a", "nvt_a\n", "nvt_a\r\nx: y", "nvt_é", "\"nvt_a\""] {
            let url = "https://cache.example.org".parse().unwrap();

            let error = Client::new(url, Some(&text.into()), false).err().unwrap();

            assert!(matches!(error, Error::TokenForm), "{text:?}");
            assert!(text.is_empty() || !error.to_string().contains(text), "{error}");
        }
    }
}

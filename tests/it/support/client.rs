//! A client of our own: requests as a test wants them, with nothing added, followed or tried again, and small
//! store paths to push with them.

use std::collections::BTreeSet;

use bytes::Bytes;
use narvault::nix::hash::Sha256Digest;
use narvault::nix::nar::build::Node;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Method, RequestBuilder};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::PATIENCE;

/// Requests to one server, with or without a token.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    url: String,
    authorization: Option<String>,
}

/// A token with its text, and requests that carry it.
#[derive(Clone)]
pub struct Token {
    pub id: String,
    pub text: String,
    pub http: Http,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Http {
    pub fn new(url: &str) -> Self {
        let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = builder.timeout(PATIENCE).build().unwrap();
        Self { client, url: url.to_owned(), authorization: None }
    }

    /// The same with `Authorization: Bearer`.
    pub fn with_token(&self, token: &str) -> Self {
        self.with_authorization(&format!("Bearer {token}"))
    }

    /// The same with this `Authorization`, whatever it be.
    pub fn with_authorization(&self, value: &str) -> Self {
        Self { authorization: Some(value.to_owned()), ..self.clone() }
    }

    /// A request that is not sent yet; `path` begins with `/` and goes out as it is.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn head(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::HEAD, path)).await
    }

    pub async fn put(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        Answer::of(self.request(Method::PUT, path).body(body.into())).await
    }

    /// Pushes as Nix does: the NAR, then the narinfo.
    pub async fn push(&self, cache: &str, path: &TestPath) {
        self.put_nar(cache, path).await.assert_status(201);
        self.put_narinfo(cache, path).await.assert_status(201);
    }

    pub async fn put_nar(&self, cache: &str, path: &TestPath) -> Answer {
        self.put(&format!("/push/{cache}/{}", path.nar_url()), path.file.clone()).await
    }

    pub async fn put_narinfo(&self, cache: &str, path: &TestPath) -> Answer {
        self.put(&format!("/push/{cache}/{}.narinfo", path.hash()), path.narinfo()).await
    }
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.unwrap() }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn assert_status(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{:?}", self.body);
        self
    }

    /// Refused as Nix is: with a short plain text that mentions `text`, and nothing that a cache may keep.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, text: &str) {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert!(self.text().contains(text), "{text:?} is not in {:?}", self.text());
        assert!(self.body.len() < 1024, "Nix does not print {} bytes", self.body.len());
        assert_eq!(self.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(self.header("cache-control"), "no-store");
    }
}

/// A connection on which a test says every byte itself, such as the head of a request without its body.
pub struct Raw {
    stream: BufReader<TcpStream>,
}

impl Raw {
    /// Connects to the server at `http://host:port`.
    pub async fn connect(url: &str) -> Self {
        let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends the head of a PUT whose sender waits for a word before the body.
    pub async fn expect_put(&mut self, path: &str, token: Option<&str>, size_bytes: usize) {
        let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: test\r\n{authorization}Content-Length: {size_bytes}\r\n\
             Expect: 100-continue\r\n\r\n"
        );
        self.send(head).await;
    }

    /// The next head that the server sends, interim answers included: its status.
    pub async fn status(&mut self) -> u16 {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {lines:?}"))
    }

    /// All that still comes before the server closes the connection.
    pub async fn rest(&mut self) -> String {
        let mut rest = String::new();
        tokio::time::timeout(PATIENCE, self.stream.read_to_string(&mut rest)).await.unwrap().unwrap();
        rest
    }

    /// A line that is not empty.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await.unwrap().unwrap();
        Some(line).filter(|line| !line.trim().is_empty())
    }
}

/// A store path of one regular file, uncompressed. Its hash is made of its name and content, as that of a path
/// that somebody built: it proves nothing.
#[derive(Clone, Debug)]
pub struct TestPath {
    pub store_path: String,
    /// The file that is uploaded; here the NAR itself.
    pub file: Bytes,
    nar_hash: String,
    pub references: BTreeSet<String>,
}

impl TestPath {
    pub fn new(name: &str, contents: impl AsRef<[u8]>) -> Self {
        Self::with_references(name, contents, &[])
    }

    /// A path that refers to others; the contents name them.
    pub fn with_references(name: &str, contents: impl AsRef<[u8]>, references: &[&Self]) -> Self {
        let references: BTreeSet<_> = references.iter().map(|path| path.store_path.clone()).collect();
        let mut contents = contents.as_ref().to_vec();
        for path in &references {
            contents.push(b'\n');
            contents.extend_from_slice(path.as_bytes());
        }
        let seed = Sha256Digest::of(&[name.as_bytes(), &contents].concat()).base32();
        let file = Bytes::from(Node::file(contents).to_nar());
        let nar_hash = Sha256Digest::of(&file).base32();
        Self { store_path: format!("/nix/store/{}-{name}", &seed[20..]), file, nar_hash, references }
    }

    /// The 32 characters.
    pub fn hash(&self) -> &str {
        hash_part(&self.store_path)
    }

    pub fn nar_url(&self) -> String {
        format!("nar/{}.nar", self.nar_hash)
    }

    /// As Nix writes it.
    pub fn narinfo(&self) -> String {
        let Self { store_path, file, nar_hash, references } = self;
        let (url, size) = (self.nar_url(), file.len());
        let references: Vec<&str> = references.iter().map(|path| base_name(path)).collect();
        let references = references.join(" ");
        format!(
            "StorePath: {store_path}\nURL: {url}\nCompression: none\nFileHash: sha256:{nar_hash}\nFileSize: {size}\n\
             NarHash: sha256:{nar_hash}\nNarSize: {size}\nReferences: {references}\n"
        )
    }
}

/// `/nix/store/hash-name` without the folder.
pub fn base_name(store_path: &str) -> &str {
    store_path.strip_prefix("/nix/store/").unwrap()
}

/// The 32 characters of `/nix/store/hash-name`.
pub fn hash_part(store_path: &str) -> &str {
    &base_name(store_path)[..32]
}

/// The values of a narinfo's lines with this key.
pub fn lines<'a>(narinfo: &'a str, key: &str) -> Vec<&'a str> {
    narinfo.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).collect()
}

//! A whole server in this process, on SQLite and a folder, with its first administrator.

use narvault::cli::server::Server;
use narvault::config::{Config, Flags};
use narvault::time::Clock;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use tempfile::TempDir;

pub struct ApiServer {
    server: Server,
    http: reqwest::Client,
    url: String,
    _data: TempDir,
}

impl ApiServer {
    pub async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let flags = Flags {
            data: Some(data.path().join("narvault").to_string_lossy().into_owned()),
            listen: Some("127.0.0.1:0".to_owned()),
            ..Flags::default()
        };
        let config = Config::load(&flags, [], |_| Err(std::io::ErrorKind::NotFound.into())).unwrap();
        let server = Server::start(config, Clock::System).await.unwrap();
        let url = format!("http://{}", server.http.address);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { server, http, url, _data: data }
    }

    /// A request of a stranger.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method: Method = method.parse().unwrap();
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// The token of the first administrator.
    pub async fn admin(&self) -> String {
        let claim = self.server.first.as_ref().unwrap().claim.expose();
        let body = serde_json::json!({ "claim": claim });
        let answer = self.call("POST", "/api/v1/auth/claim", None, Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["token"].as_str().unwrap().to_owned()
    }

    /// A call of the API.
    pub async fn call(&self, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
        let mut request = self.request(method, path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::read(request.send().await.unwrap()).await
    }

    pub async fn stop(self) {
        self.server.shut_down().await.unwrap();
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    /// `Null` if it was not JSON.
    pub body: Value,
}

impl Answer {
    pub async fn read(response: Response) -> Self {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null);
        Self { status, headers, body }
    }

    /// The status and the problem's slug, of a problem as it has to be.
    pub fn refusal(&self) -> (u16, &str) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.headers["cache-control"], "no-store", "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert_eq!(self.body["request_id"].as_str().unwrap(), self.headers["x-request-id"], "{self:?}");
        let kind = self.body["type"].as_str().unwrap();
        (self.status, kind.strip_prefix("urn:narvault:problem:").unwrap())
    }
}

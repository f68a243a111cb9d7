//! Who asks, and from where, as the request says it.

use std::net::{IpAddr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use super::App;
use super::error::Refusal;
use crate::access::Credential;
use crate::service::{Call, Liveness, Origin};

/// The id of a request, as a header, in the log and in audit rows.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub String);

/// Authenticates: no credential is anonymous, a bad one is refused.
pub(super) async fn call(app: &App, parts: &Parts, liveness: Liveness) -> Result<Call, Refusal> {
    let values = parts.headers.get_all(header::AUTHORIZATION).iter().map(|value| value.as_bytes());
    let credential = Credential::from_headers(values);
    let caller = app.service.authenticate(&credential, liveness).await?;
    Ok(Call { caller, origin: origin(app, parts) })
}

/// Where the request comes from, for audit rows and limits.
pub(super) fn origin(app: &App, parts: &Parts) -> Origin {
    let client = parts.headers.get(header::USER_AGENT).map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes());
        text.chars().filter(|c| !c.is_control()).take(CLIENT_CHARS_MAX).collect()
    });
    Origin { address: address(app, parts), client, request_id: Some(request_id(parts)) }
}

/// The id that the request got when it came in.
pub(super) fn request_id(parts: &Parts) -> String {
    parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// The client's address: the peer's, or what trusted proxies say, read from the near end.
fn address(app: &App, parts: &Parts) -> Option<IpAddr> {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>()?.0.ip().to_canonical();
    let trusted = |address: &IpAddr| app.settings.trusted_proxies.iter().any(|net| net.contains(address));
    let mut address = peer;
    for said in forwarded_for(&parts.headers).rev() {
        if !trusted(&address) {
            break;
        }
        match said.trim().parse::<IpAddr>() {
            Ok(before) => address = before.to_canonical(),
            Err(_) => break,
        }
    }
    Some(address)
}

fn forwarded_for(headers: &HeaderMap) -> impl DoubleEndedIterator<Item = &str> {
    let all = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).collect::<Vec<_>>().into_iter()
}

const CLIENT_CHARS_MAX: usize = 200;

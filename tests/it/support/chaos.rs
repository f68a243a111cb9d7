//! A proxy that stands before an S3 server and disturbs chosen calls, each in one way that networks and
//! servers really do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::PATIENCE;

/// A call of the S3 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Put,
    Get,
    Head,
    Delete,
    CreateUpload,
    UploadPart,
    CompleteUpload,
    AbortUpload,
    Other,
}

/// What happens to a call instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server says no by itself, and does nothing.
    Answer(u16, &'static str),
    /// The request is taken, and nothing ever comes back.
    Stall,
    /// The connection ends in the middle of the request.
    CutRequest,
    /// The connection ends after so many bytes of the answer's body.
    CutAnswer(usize),
    /// The server does it, then the connection ends without an answer.
    LoseAnswer,
    /// The server does it, but the answer does not come while anybody waits.
    LateAnswer,
    /// The server does it, and then says 500.
    FailAfterSuccess,
}

pub struct Chaos {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    faults: Mutex<VecDeque<(Call, Fault)>>,
    holds: Mutex<Vec<Hold>>,
    /// Calls that have been dealt with, in the order of their end.
    seen: watch::Sender<Vec<Call>>,
}

/// The next call of a kind to an object whose name contains a text, which waits before the server hears of it.
struct Hold {
    call: Call,
    part: &'static str,
    reached: watch::Sender<bool>,
    let_go: watch::Receiver<bool>,
}

/// A call that is held up, or will be, until this is dropped. It reaches the server even if its sender is gone by then.
pub struct Held {
    reached: watch::Receiver<bool>,
    let_go: watch::Sender<bool>,
}

impl Held {
    /// Waits until the call has come.
    pub async fn reached(&mut self) {
        let waiting = self.reached.wait_for(|reached| *reached);
        tokio::time::timeout(PATIENCE, waiting).await.expect("the call did not come").unwrap();
    }

    /// Lets the call go on to the server.
    pub fn let_go(self) {
        self.let_go.send_replace(true);
    }
}

type Body = BoxBody<Bytes, io::Error>;

impl Chaos {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (faults, holds, seen) = (Mutex::default(), Mutex::default(), watch::Sender::new(Vec::new()));
        let shared = Arc::new(Shared { server, faults, holds, seen });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = accepting.clone();
                let service = service_fn(move |request| answer(shared.clone(), request));
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), service);
                tokio::spawn(serving);
            }
        });
        Self { address, shared }
    }

    /// The next `times` calls of this kind meet this fault.
    pub fn inject(&self, call: Call, fault: Fault, times: usize) {
        self.shared.faults.lock().unwrap().extend(std::iter::repeat_n((call, fault), times));
    }

    /// From now on no call meets a fault that was injected before.
    pub fn calm(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Holds up the next call of this kind to an object whose name contains `part`.
    pub fn hold(&self, call: Call, part: &'static str) -> Held {
        let (reached, let_go) = (watch::Sender::new(false), watch::Sender::new(false));
        let held = Held { reached: reached.subscribe(), let_go };
        let hold = Hold { call, part, reached, let_go: held.let_go.subscribe() };
        self.shared.holds.lock().unwrap().push(hold);
        held
    }

    /// How many calls of this kind have been dealt with.
    pub fn seen(&self, call: Call) -> usize {
        self.shared.seen.borrow().iter().filter(|seen| **seen == call).count()
    }

    /// Waits until `count` calls of this kind have been dealt with.
    pub async fn wait_for(&self, call: Call, count: usize) {
        let enough = |seen: &Vec<Call>| seen.iter().filter(|seen| **seen == call).count() >= count;
        self.shared.seen.subscribe().wait_for(enough).await.unwrap();
    }
}

/// An error here ends the connection without an answer.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    // The signature log is published beside everything, at times of its own: no test means those calls.
    if request.uri().path().contains("/_log/") {
        return forward(&shared, request).await;
    }
    let call = kind(&request);
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let place = faults.iter().position(|(disturbed, _)| *disturbed == call);
        place.and_then(|place| faults.remove(place)).map(|(_, fault)| fault)
    };
    let hold = {
        let mut holds = shared.holds.lock().unwrap();
        let meant = |hold: &Hold| hold.call == call && request.uri().path().contains(hold.part);
        holds.iter().position(meant).map(|place| holds.remove(place))
    };
    let result = match hold {
        Some(hold) => held(&shared, request, hold).await,
        None => disturb(&shared, request, fault).await,
    };
    shared.seen.send_modify(|seen| seen.push(call));
    if matches!(fault, Some(Fault::Stall | Fault::LateAnswer)) {
        std::future::pending::<()>().await;
    }
    result
}

/// Goes on in a task of its own: whether somebody still waits for the answer makes no difference to the server.
async fn held(shared: &Shared, request: Request<Incoming>, mut hold: Hold) -> io::Result<Response<Body>> {
    let request = received(request).await?;
    let server = shared.server;
    let going_on = tokio::spawn(async move {
        hold.reached.send_replace(true);
        // An error: the test has dropped its end.
        let _ = hold.let_go.wait_for(|let_go| *let_go).await;
        send(server, request).await
    });
    going_on.await.map_err(io::Error::other)?
}

async fn disturb(
    shared: &Shared,
    mut request: Request<Incoming>,
    fault: Option<Fault>,
) -> io::Result<Response<Body>> {
    match fault {
        Some(Fault::Answer(status, code)) => {
            let _ = request.into_body().collect().await;
            Ok(refusal(status, code))
        }
        Some(Fault::CutRequest) => {
            let _ = request.body_mut().frame().await;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::Stall) => {
            let _ = request.into_body().collect().await;
            Err(io::ErrorKind::TimedOut.into())
        }
        Some(Fault::LoseAnswer | Fault::LateAnswer) => {
            forward(shared, request).await?;
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Some(Fault::FailAfterSuccess) => {
            forward(shared, request).await?;
            Ok(refusal(500, "InternalError"))
        }
        Some(Fault::CutAnswer(after)) => {
            let (parts, body) = forward(shared, request).await?.into_parts();
            let whole = body.collect().await?.to_bytes();
            let frames = [
                Ok(Frame::data(whole.slice(..after.min(whole.len())))),
                Err(io::ErrorKind::ConnectionAborted.into()),
            ];
            Ok(Response::from_parts(parts, StreamBody::new(stream::iter(frames)).boxed()))
        }
        None => forward(shared, request).await,
    }
}

/// The server's answer to the unchanged request.
async fn forward(shared: &Shared, request: Request<Incoming>) -> io::Result<Response<Body>> {
    send(shared.server, received(request).await?).await
}

/// The request with its whole body.
async fn received(request: Request<Incoming>) -> io::Result<Request<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Request::from_parts(parts, Full::new(body)))
}

async fn send(server: SocketAddr, request: Request<Full<Bytes>>) -> io::Result<Response<Body>> {
    let socket = TcpStream::connect(server).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    // Wholly, so that what the server does is done before the fault.
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Response::from_parts(parts, Full::new(body).map_err(never).boxed()))
}

fn refusal(status: u16, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>chaos</Message></Error>");
    let body = Full::new(Bytes::from(text)).map_err(never).boxed();
    Response::builder().status(status).header("content-type", "application/xml").body(body).unwrap()
}

fn never(error: Infallible) -> io::Error {
    match error {}
}

fn kind(request: &Request<Incoming>) -> Call {
    let query = request.uri().query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match *request.method() {
        Method::POST if has("uploads") => Call::CreateUpload,
        Method::POST if has("uploadId") => Call::CompleteUpload,
        Method::PUT if has("partNumber") => Call::UploadPart,
        Method::DELETE if has("uploadId") => Call::AbortUpload,
        Method::PUT => Call::Put,
        Method::DELETE => Call::Delete,
        Method::HEAD => Call::Head,
        Method::GET if !has("list-type") && !has("uploads") => Call::Get,
        _ => Call::Other,
    }
}

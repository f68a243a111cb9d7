//! A proxy before a narvault server that behaves as badly as real ones do, by a fixed pattern or by chance, and that
//! remembers what the server accepted.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use narvault::api::{NarFrame, NarsStored, PartUrl, Problem, Refused};
use narvault::nix::hash::Sha256Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{PATIENCE, variable};

/// What the proxy does wrong. Requests are counted from 1; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manners {
    /// Larger bodies are refused with 413 and a page of HTML.
    pub body_size_bytes_max: Option<usize>,
    /// Each so many-th request is answered by 502, and the server never sees it.
    pub bad_gateway_every: usize,
    /// Each so many-th request's connection ends before the request is read.
    pub cut_every: usize,
    /// Each so many-th request's connection ends in the middle of the request's body.
    pub cut_body_every: usize,
    /// The server does what each so many-th request asks for, and the connection ends in the middle of the answer's body.
    pub cut_answer_every: usize,
    /// The server does what each so many-th request asks for, and the answer is lost.
    pub lose_answer_every: usize,
    /// Each answer is late by so much.
    pub delay: Duration,
    /// From when so many files and parts are accepted on, nothing more gets through.
    pub hold_after: Option<usize>,
    /// Publications wait until [`Proxy::let_publish`].
    pub hold_publications: bool,
    /// Addresses of the bucket that the server gives out lead nowhere.
    pub lose_bucket: bool,
    /// Answers that the server never hears of.
    pub refusals: &'static [Refusal],
    /// What happens by chance, beside all that.
    pub hazard: Option<Hazard>,
    /// Of the first batch of files, the first one is said to have failed in passing, with this many seconds to wait.
    pub postpone_file: Option<u64>,
    /// The `Date` of every answer, in place of the server's.
    pub date: &'static str,
}

/// Half of all requests go wrong: of each eight that follow one another four, one in each of four ways. Which of the
/// eight, and how late answers are, follows from the seed and the request's number alone.
#[derive(Clone, Copy, Debug)]
pub struct Hazard {
    pub seed: u64,
}

/// What goes wrong with a request by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    BadGateway,
    Cut,
    CutBody,
    LoseAnswer,
}

impl Hazard {
    /// With a seed that is printed, and that `NARVAULT_TEST_SEED` sets, to see a failure again.
    pub fn new() -> Self {
        let seed = match variable("NARVAULT_TEST_SEED") {
            Some(text) => text.parse().expect("NARVAULT_TEST_SEED is a whole number"),
            None => uuid::Uuid::now_v7().as_u64_pair().1,
        };
        println!("seed: run again with NARVAULT_TEST_SEED={seed}");
        Self { seed }
    }

    /// For the request of this number, counted from 1.
    fn mishap(self, number: usize) -> Option<Mishap> {
        let [round, at] = [(number - 1) / 8, (number - 1) % 8];
        let mut fates = [None; 8];
        fates[..4].copy_from_slice(
            &[Mishap::BadGateway, Mishap::Cut, Mishap::CutBody, Mishap::LoseAnswer].map(Some),
        );
        let draws = self.draw("order", round);
        for last in (1..8).rev() {
            fates.swap(last, usize::from(draws[last]) % (last + 1));
        }
        fates[at]
    }

    fn delay(self, number: usize) -> Duration {
        Duration::from_millis(u64::from(self.draw("delay", number)[0]) / 4)
    }

    fn draw(self, what: &str, number: usize) -> [u8; 32] {
        Sha256Digest::of(format!("{} {what} {number}", self.seed).as_bytes()).0
    }
}

/// An answer in place of the server's.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Which request is answered so, counted from 1; 0 is each.
    pub request: usize,
    pub status: u16,
    /// Of the problem, as narvault says it; empty for a page of HTML.
    pub slug: &'static str,
    /// The header `Retry-After`, if there is one. The answer's own clock stands at [`PROXY_DATE`].
    pub retry_after: &'static str,
}

/// The `Date` of every [`Refusal`].
pub const PROXY_DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// What a [`Refusal`] with a slug says.
pub const REFUSAL_DETAIL: &str = "what the server says";

pub struct Proxy {
    /// `http://127.0.0.1:port`.
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    manners: Manners,
    requests: AtomicUsize,
    /// How often the server accepted each file and each part.
    accepted: watch::Sender<BTreeMap<String, usize>>,
    /// Bytes of all files and parts that the server accepted, each time counted.
    accepted_bytes: AtomicU64,
    largest: AtomicUsize,
    /// Bodies of requests and of answers that were cut.
    cut: AtomicUsize,
    /// Publications that came.
    publications: watch::Sender<usize>,
    may_publish: watch::Sender<bool>,
    /// Addresses of the bucket that were asked for.
    bucket_urls: AtomicUsize,
    /// When each request came.
    came: Mutex<Vec<Instant>>,
    /// How often in a row something went wrong by chance, for each address.
    in_a_row: Mutex<BTreeMap<String, usize>>,
    /// How often in all.
    mishaps: AtomicUsize,
    /// Batches of files whose first one was looked at for [`Manners::postpone_file`].
    postponed: AtomicUsize,
}

impl Proxy {
    /// Before the server at `http://host:port`.
    pub async fn before(server: &str, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let shared = Arc::new(Shared {
            server,
            manners,
            requests: AtomicUsize::new(0),
            accepted: watch::Sender::new(BTreeMap::new()),
            accepted_bytes: AtomicU64::new(0),
            largest: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            publications: watch::Sender::new(0),
            may_publish: watch::Sender::new(!manners.hold_publications),
            bucket_urls: AtomicUsize::new(0),
            came: Mutex::default(),
            in_a_row: Mutex::default(),
            mishaps: AtomicUsize::new(0),
            postponed: AtomicUsize::new(0),
        });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let shared = accepting.clone();
                let service = service_fn(move |request| answer(shared.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        Self { url, shared }
    }

    /// How often the server accepted each file, by its name, and each part, by its digest and size.
    pub fn accepted(&self) -> BTreeMap<String, usize> {
        self.shared.accepted.borrow().clone()
    }

    /// Bytes of all files and parts that the server accepted, each time counted.
    pub fn accepted_bytes(&self) -> u64 {
        self.shared.accepted_bytes.load(Ordering::SeqCst)
    }

    /// How many bodies were cut in the middle.
    pub fn cut(&self) -> usize {
        self.shared.cut.load(Ordering::SeqCst)
    }

    /// Waits until the server accepted so many files and parts.
    pub async fn wait_for(&self, count: usize) {
        let mut accepted = self.shared.accepted.subscribe();
        let enough = accepted.wait_for(|accepted| accepted.len() >= count);
        tokio::time::timeout(PATIENCE, enough).await.expect("too little was accepted").unwrap();
    }

    /// Waits until a publication is held.
    pub async fn publication(&self) {
        let mut publications = self.shared.publications.subscribe();
        let first = publications.wait_for(|count| *count > 0);
        tokio::time::timeout(PATIENCE, first).await.expect("nothing was published").unwrap();
    }

    /// Lets publications through.
    pub fn let_publish(&self) {
        self.shared.may_publish.send_replace(true);
    }

    /// How often an address of the bucket was asked for.
    pub fn bucket_urls(&self) -> usize {
        self.shared.bucket_urls.load(Ordering::SeqCst)
    }

    /// The largest body that came, in bytes.
    pub fn largest_body(&self) -> usize {
        self.shared.largest.load(Ordering::SeqCst)
    }

    /// How long after the one before it each request came, from the second on.
    pub fn distances(&self) -> Vec<Duration> {
        let came = self.shared.came.lock().unwrap();
        came.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// How often something went wrong by chance.
    pub fn mishaps(&self) -> usize {
        self.shared.mishaps.load(Ordering::SeqCst)
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

/// An error here ends the connection without an answer.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let manners = shared.manners;
    let number = shared.requests.fetch_add(1, Ordering::SeqCst) + 1;
    shared.came.lock().unwrap().push(Instant::now());
    let is_nth = |every: usize| every > 0 && number.is_multiple_of(every);
    let mishap = shared.mishap(number, request.uri().path());
    if is_nth(manners.cut_every) || mishap == Some(Mishap::Cut) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let (parts, mut body) = request.into_parts();
    let cut_body = is_nth(manners.cut_body_every) || mishap == Some(Mishap::CutBody);
    if cut_body && body.size_hint().lower() > 1 {
        let half = body.size_hint().lower() / 2;
        let mut read = 0;
        while read < half {
            let Some(frame) = body.frame().await else { break };
            read += frame.map_err(io::Error::other)?.data_ref().map_or(0, |data| data.len() as u64);
        }
        shared.cut.fetch_add(1, Ordering::SeqCst);
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    shared.largest.fetch_max(body.len(), Ordering::SeqCst);
    if manners.hold_after.is_some_and(|count| shared.accepted.borrow().len() >= count) {
        std::future::pending::<()>().await;
    }
    if let Some(refusal) = manners.refusals.iter().find(|refusal| [0, number].contains(&refusal.request)) {
        return Ok(refusal.answer());
    }
    if is_nth(manners.bad_gateway_every) || mishap == Some(Mishap::BadGateway) {
        return Ok(page(502));
    }
    if manners.body_size_bytes_max.is_some_and(|max| body.len() > max) {
        return Ok(page(413));
    }
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    if path.ends_with("/publish") {
        shared.publications.send_modify(|count| *count += 1);
        let _ = shared.may_publish.subscribe().wait_for(|may| *may).await;
    }
    if path.contains("/parts/") && path.ends_with("/url") {
        shared.bucket_urls.fetch_add(1, Ordering::SeqCst);
        if manners.lose_bucket {
            return Ok(nowhere());
        }
    }
    let answer = forward(&shared.server, Request::from_parts(parts, Full::new(body.clone()))).await;
    // As a proxy does whose server is gone.
    let Ok(mut answer) = answer else { return Ok(page(502)) };
    if answer.status().is_success() {
        remember(&shared, &method, &path, &body, answer.body());
    }
    if let Some(seconds) = manners.postpone_file.filter(|_| path.ends_with("/nars")) {
        postpone_first(&shared, &mut answer, seconds);
    }
    if !manners.date.is_empty() {
        answer.headers_mut().insert("date", manners.date.parse().unwrap());
    }
    let by_chance = manners.hazard.map_or(Duration::ZERO, |hazard| hazard.delay(number));
    tokio::time::sleep(manners.delay + by_chance).await;
    if is_nth(manners.lose_answer_every) || mishap == Some(Mishap::LoseAnswer) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    if is_nth(manners.cut_answer_every) && answer.body().len() > 1 {
        shared.cut.fetch_add(1, Ordering::SeqCst);
        return Ok(answer.map(half));
    }
    Ok(answer.map(whole))
}

impl Shared {
    /// What goes wrong with a request by chance. Never more than twice in a row at one address: that is as much as whoever
    /// calls a server for the first time puts up with.
    fn mishap(&self, number: usize, path: &str) -> Option<Mishap> {
        let mishap = self.manners.hazard?.mishap(number);
        let mut in_a_row = self.in_a_row.lock().unwrap();
        let in_a_row = in_a_row.entry(path.to_owned()).or_default();
        if mishap.is_none() || *in_a_row == 2 {
            *in_a_row = 0;
            return None;
        }
        *in_a_row += 1;
        self.mishaps.fetch_add(1, Ordering::SeqCst);
        mishap
    }
}

/// Says of the first file of the first batch that it failed in passing.
fn postpone_first(shared: &Shared, answer: &mut Response<Bytes>, seconds: u64) {
    if shared.postponed.fetch_add(1, Ordering::SeqCst) > 0 {
        return;
    }
    let mut stored: NarsStored = serde_json::from_slice(answer.body()).unwrap();
    stored.results[0].refused = Some(Refused {
        kind: "urn:narvault:problem:busy".to_owned(),
        status: 503,
        detail: REFUSAL_DETAIL.to_owned(),
        retry_after_seconds: Some(seconds),
    });
    let body: Bytes = serde_json::to_vec(&stored).unwrap().into();
    answer.headers_mut().remove("content-length");
    *answer.body_mut() = body;
}

type Body = BoxBody<Bytes, io::Error>;

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// The first half; then the connection ends.
fn half(bytes: Bytes) -> Body {
    let half = bytes.slice(..bytes.len() / 2);
    let frames = [Ok(Frame::data(half)), Err(io::ErrorKind::ConnectionAborted.into())];
    StreamBody::new(stream::iter(frames)).boxed()
}

impl Refusal {
    fn answer(&self) -> Response<Body> {
        let mut answer = if self.slug.is_empty() {
            page(self.status)
        } else {
            let problem = Problem {
                kind: format!("urn:narvault:problem:{}", self.slug),
                title: "Title".to_owned(),
                status: self.status,
                detail: REFUSAL_DETAIL.to_owned(),
                request_id: "r-1".to_owned(),
            };
            let body = whole(serde_json::to_vec(&problem).unwrap().into());
            Response::builder().status(self.status).body(body).unwrap()
        };
        answer.headers_mut().insert("date", PROXY_DATE.parse().unwrap());
        if !self.retry_after.is_empty() {
            answer.headers_mut().insert("retry-after", self.retry_after.parse().unwrap());
        }
        answer
    }
}

async fn forward(server: &str, request: Request<Full<Bytes>>) -> io::Result<Response<Bytes>> {
    let socket = TcpStream::connect(server).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

fn remember(shared: &Shared, method: &Method, path: &str, body: &Bytes, answer: &Bytes) {
    let mut accepted = Vec::new();
    if path.ends_with("/nars") {
        let stored: NarsStored = serde_json::from_slice(answer).unwrap();
        accepted.extend(stored.results.into_iter().filter(|one| one.refused.is_none()).map(|one| one.file));
        let frames = frames(body);
        assert_eq!(frames.len(), accepted.len(), "some were refused");
        let bytes = frames.iter().map(|frame| frame.size_bytes).sum();
        shared.accepted_bytes.fetch_add(bytes, Ordering::SeqCst);
    } else if method == Method::PUT && path.contains("/parts/") {
        let digest = narvault::nix::hash::Sha256Digest::of(body).hex();
        accepted.push(format!("part {digest} of {} bytes", body.len()));
        shared.accepted_bytes.fetch_add(body.len() as u64, Ordering::SeqCst);
    }
    shared.accepted.send_modify(|all| {
        for name in accepted {
            *all.entry(name).or_default() += 1;
        }
    });
}

/// The files of a batch.
fn frames(mut body: &[u8]) -> Vec<NarFrame> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let end = body.iter().position(|byte| *byte == b'\n').unwrap();
        let frame: NarFrame = serde_json::from_slice(&body[..end]).unwrap();
        body = &body[end + 1 + usize::try_from(frame.size_bytes).unwrap()..];
        frames.push(frame);
    }
    frames
}

/// The address of a bucket where nobody listens: port 1 is nobody's on a machine that runs tests.
fn nowhere() -> Response<Body> {
    let place = PartUrl {
        url: "http://127.0.0.1:1/bucket?signature=secret".to_owned(),
        expires_at: "2126-11-22T13:10:00Z".to_owned(),
    };
    Response::new(whole(serde_json::to_vec(&place).unwrap().into()))
}

fn page(status: u16) -> Response<Body> {
    let body = whole(Bytes::from_static(b"<html><h1>no</h1></html>"));
    Response::builder().status(status).header("content-type", "text/html").body(body).unwrap()
}

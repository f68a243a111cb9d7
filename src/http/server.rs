//! Listening: HTTP/1.1 and cleartext HTTP/2 on one port, limits against slow clients, an orderly end.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use hyper_util::rt::TokioTimer;
use tokio::task::JoinHandle;

use super::{App, router};

/// Why the server did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the server stopped")]
    Stopped(#[source] std::io::Error),
}

/// A server that takes requests.
pub struct RunningServer {
    /// Where it listens; with a port of its own choice if it was asked for port 0.
    pub address: SocketAddr,
    handle: Handle<SocketAddr>,
    task: JoinHandle<std::io::Result<()>>,
    shutdown_wait: Duration,
}

/// Begins to listen on `address`.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Serves `app` on `listener`.
pub fn serve(app: App, listener: TcpListener) -> Result<RunningServer, ServeError> {
    let address = listener.local_addr().map_err(ServeError::Stopped)?;
    let shutdown_wait = app.settings.shutdown_wait;
    let handle = Handle::new();
    let service = router(app).into_make_service_with_connect_info::<SocketAddr>();
    let task = tokio::spawn(run(listener, handle.clone(), service));
    Ok(RunningServer { address, handle, task, shutdown_wait })
}

async fn run(
    listener: TcpListener,
    handle: Handle<SocketAddr>,
    service: axum::extract::connect_info::IntoMakeServiceWithConnectInfo<Router, SocketAddr>,
) -> std::io::Result<()> {
    let mut server = axum_server::from_tcp(listener)?.acceptor(NoDelayAcceptor::new()).handle(handle);
    let builder = server.http_builder();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_buf_size(READ_BUFFER_BYTES)
        .pipeline_flush(true);
    // Windows of our own: the adaptive ones of the library made uploads several times slower.
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(256 << 10)
        .max_concurrent_streams(256)
        .keep_alive_interval(Duration::from_secs(20));
    server.serve(service).await
}

impl RunningServer {
    /// Takes no new requests, lets those under way end within the configured time, then stops.
    pub async fn shut_down(self) -> Result<(), ServeError> {
        self.handle.graceful_shutdown(Some(self.shutdown_wait));
        self.task
            .await
            .map_err(|panic| ServeError::Stopped(std::io::Error::other(panic)))?
            .map_err(ServeError::Stopped)
    }

    /// Cuts every connection at once.
    pub async fn cut(self) {
        self.handle.shutdown();
        let _ = self.task.await;
    }
}

/// How long a client may take to send the head of a request.
const HEADER_TIME_MAX: Duration = Duration::from_secs(15);

/// The read buffer of one HTTP/1.1 connection.
const READ_BUFFER_BYTES: usize = 256 << 10;

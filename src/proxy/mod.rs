//! Floor 2: the only floor that knows Pingora. It reads downward as the life of a request: [`ingress`] (authenticate, peek,
//! plan, reserve) → [`exchange`] (attempts until one commits, then the answer; [`attempt`], [`relay`]) → [`settle`] (once,
//! also on drop). Beside it what is not inference: [`own`] (self-service) and [`models`].
//!
//! Pingora's own proxy loop is not used: it commits to an upstream when its headers arrive and replays a body up to 64 KiB,
//! while an LLM answer can be judged by its first event only and a request is often larger. weir is a
//! [`ServerApp`] on Pingora's listeners, sessions and connection pools, with its own loop between them.

mod aside;
pub mod attempt;
pub mod body;
pub mod client_ids;
pub mod cores;
pub use crate::engine::refusal::denied;
pub mod exchange;
pub mod gateway;
pub mod headers;
mod heap;
pub mod idempotency;
pub mod ingress;
pub mod models;
pub mod own;
pub mod plugin;
#[cfg(feature = "lua-policy")]
pub mod policed;
pub mod pool;
pub mod probe;
pub mod queue;
pub mod race;
pub mod relay;
pub mod respond;
pub mod settle;
pub mod together;
pub mod upstream;

use crate::engine::catalog::Catalog;
use crate::engine::dialect::{Dialect, Endpoint};
use crate::engine::limit::Standings;
use crate::engine::refusal::Refusal;
use crate::store::ledger::{End, Outcome};
use async_trait::async_trait;
use body::Share;
use bytes::Bytes;
use gateway::Gateway;
use heap::pinned;
use ingress::{Caller, Head, Refused, Stopped, Wanted};
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::{ALPN, Stream};
use pingora_core::server::ShutdownWatch;
use std::future::{Future, poll_fn};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;
use together::Together;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::timeout;

/// An idle client connection is kept this long, above the 60 s of common clients' pools, so that they close first.
const CLIENT_IDLE_SECONDS: u64 = 75;
/// What is left of a refused request's body is read for at most this long to keep the connection.
const DRAIN_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// How an HTTP/2 connection begins (RFC 9113, 3.4). No method is called like this, and no request is shorter.
const HTTP2_PREFACE: &[u8; 4] = b"PRI ";
/// What is read of a connection before it is known what it speaks; room for the head of most requests, which is then not read by itself.
const FIRST_BYTES_MAX: usize = 4 << 10;

/// The proxy listener.
pub struct Proxy {
    gateway: Arc<Gateway>,
    http2: Arc<Http2>,
}

/// Its HTTP/2 connections, which are Pingora's to take apart.
struct Http2 {
    gateway: Arc<Gateway>,
    options: HttpServerOptions,
}

impl Proxy {
    /// Serves `gateway`.
    pub fn new(gateway: Arc<Gateway>) -> Proxy {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        Proxy { http2: Arc::new(Http2 { gateway: gateway.clone(), options }), gateway }
    }
}

impl ServerApp for Proxy {
    // What `async_trait` makes of it, in one box: Pingora's own loop over a connection's requests has one, and each request another
    // inside, for as long as a stream runs.
    fn process_new<'life0, 'life1, 'async_trait>(
        self: &'life0 Arc<Self>,
        stream: Stream,
        shutdown: &'life1 ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = Option<Stream>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        pinned(|| connection(self, stream, shutdown))
    }
}

#[async_trait]
impl HttpServerApp for Http2 {
    async fn process_new_http(self: &Arc<Self>, session: ServerSession, _: &ShutdownWatch) -> Option<ReusedHttpStream> {
        converse(&self.gateway, Box::new(session)).await
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// A connection, from its first request to its last. There is none to give back.
async fn connection(proxy: &Arc<Proxy>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
    let (stream, is_http2) = pinned(|| told_apart(stream)).await?;
    if is_http2 {
        return proxy.http2.process_new(stream, shutdown).await;
    }
    let mut session = Box::new(ServerSession::new_http1(Box::new(Together::to_client(stream))));
    session.set_keepalive(Some(CLIENT_IDLE_SECONDS));
    while let Some(reused) = converse(&proxy.gateway, session).await {
        let (stream, settings) = reused.consume();
        session = Box::new(ServerSession::new_http1(stream));
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
    None
}

/// A connection, and whether it begins as one of HTTP/2: over TLS it was agreed on before. `None`: it was closed, or nothing came for
/// as long as an idle connection is kept.
async fn told_apart(stream: Stream) -> Option<(Stream, bool)> {
    if stream.get_ssl_digest().is_some() {
        let is_http2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
        return Some((stream, is_http2));
    }
    // What is read ahead can only be given back to Pingora's own type, which every connection without TLS is.
    let mut stream = stream.into_any().downcast::<L4Stream>().ok()?;
    let mut first = Vec::new();
    let enough = poll_fn(|cx| {
        while first.len() < HTTP2_PREFACE.len() {
            // On the stack: a connection that waits for its first request has no buffer.
            let mut room = [MaybeUninit::uninit(); FIRST_BYTES_MAX];
            let mut read = ReadBuf::uninit(&mut room);
            if ready!(Pin::new(&mut *stream).poll_read(cx, &mut read)).is_err() || read.filled().is_empty() {
                return Poll::Ready(None);
            }
            first.extend_from_slice(read.filled());
        }
        Poll::Ready(Some(()))
    });
    timeout(Duration::from_secs(CLIENT_IDLE_SECONDS), enough).await.ok()??;
    stream.rewind(&first);
    Some((stream, first.starts_with(HTTP2_PREFACE)))
}

/// One request of a connection, from its head to its answer's end.
async fn converse(gateway: &Arc<Gateway>, mut session: Box<ServerSession>) -> Option<ReusedHttpStream> {
    match session.read_request().await {
        Ok(true) => {}
        Ok(false) => return None,
        Err(_) => {
            // Not HTTP, or headers beyond the bounds: say so in HTTP, there is no dialect yet.
            let _ = pinned(|| session.respond_error(400)).await;
            return None;
        }
    }
    set_up(&mut session, (!gateway.drain.is_closing()).then_some(CLIENT_IDLE_SECONDS));
    let reusable = {
        let _active = gateway.drain.begin();
        dispatch(gateway, &mut session).await
    };
    finish(session, reusable).await
}

/// Tells a session whose head was read how to go on. `keepalive`: seconds that the connection may idle; `None`: it is closed.
fn set_up(session: &mut ServerSession, keepalive: Option<u64>) {
    keep_alive(session, keepalive);
    session.set_pipelining_enabled(true);
    // What is left of a body is read by `finish`, within bounds.
    session.set_close_on_response_before_downstream_finish(false);
}

/// Keeps a client's connection for its next request, if Pingora would: not where a head says two lengths (RFC 9112, 6.1), nor for a client
/// of HTTP/1.0 that did not ask for it (9.3). `seconds` that it may idle; `None`: it is closed.
pub fn keep_alive(session: &mut ServerSession, seconds: Option<u64>) {
    session.set_keepalive(seconds.filter(|_| session.get_keepalive().is_some()));
}

/// Ends a request: the connection goes back for the next one if it can.
pub async fn finish(mut session: Box<ServerSession>, reusable: bool) -> Option<ReusedHttpStream> {
    if !reusable {
        session.set_keepalive(None);
        return None;
    }
    if !session.is_body_done() {
        session.set_total_drain_timeout(Some(DRAIN_BODY_TIMEOUT));
        pinned(|| session.drain_request_body()).await.ok()?;
    }
    let settings = HttpPersistentSettings::for_session(&session);
    // What `finish` does with HTTP/1, without moving the session three times.
    if let ServerSession::H1(session) = &mut *session {
        session.finish_body().await.ok()?;
    }
    let stream = match *session {
        ServerSession::H1(session) => pinned(|| session.reuse()).await,
        session => Box::pin(session.finish()).await,
    };
    let stream = stream.ok()??;
    Some(ReusedHttpStream::from_reusable_stream(stream, settings))
}

/// Finds what a request is about. Returns whether the connection may be used again.
async fn dispatch(gateway: &Arc<Gateway>, session: &mut ServerSession) -> bool {
    let header = session.req_header();
    let path = header.uri.path();
    let endpoint = Endpoint::of_path(path);
    let dialect = endpoint.map_or(Dialect::OpenAi, Endpoint::dialect);
    if gateway.drain.is_draining() {
        gateway.metrics.refusals.with_label_values(&[Refusal::Draining.reason()]).inc();
        return Box::pin(exchange::write_refusal(session, None, dialect, &Refusal::Draining, &Standings::default())).await;
    }
    match endpoint {
        Some(endpoint) if header.method == http::Method::POST => inference(gateway, session, endpoint).await,
        // Boxed, here and below: what is not an answer's stream must not take room beside one.
        Some(_) => Box::pin(refuse(gateway, session, dialect, &Refusal::WrongMethod { allow: "POST" })).await,
        None if path == "/v1/models" || path.starts_with("/v1/models/") => Box::pin(models::serve(gateway, session)).await,
        None if path.starts_with("/weir/v1/") => Box::pin(own::serve(gateway, session)).await,
        None => Box::pin(refuse(gateway, session, dialect, &Refusal::UnknownPath)).await,
    }
}

/// Says no outside of inference.
async fn refuse(gateway: &Gateway, session: &mut ServerSession, dialect: Dialect, refusal: &Refusal) -> bool {
    gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
    exchange::write_refusal(session, None, dialect, refusal, &Standings::default()).await
}

async fn inference(gateway: &Arc<Gateway>, session: &mut ServerSession, endpoint: Endpoint) -> bool {
    let catalog = gateway.catalog.load_full();
    let head = Head::new(endpoint, &session.req_header().headers);
    #[cfg(feature = "lua-policy")]
    if let Some(policy) = catalog.lua_policy.clone() {
        return Box::pin(policed::serve(gateway, session, &head, catalog, policy)).await;
    }
    serve(gateway, session, &head, catalog, |_, _, body, _| Ok(body)).await
}

/// Serves an inference request, once `access` lets it in.
async fn serve<A>(gateway: &Arc<Gateway>, session: &mut ServerSession, head: &Head, catalog: Arc<Catalog>, access: A) -> bool
where
    A: FnOnce(&mut ServerSession, &Caller, Bytes, &mut Share) -> Result<Bytes, Stopped>,
{
    match pinned(|| ingress::admit(gateway, session, head, catalog, access)).await {
        Ok(admitted) => exchange::serve(gateway, session, head, admitted).await,
        Err(stopped) => Box::pin(stop(gateway, session, head, stopped)).await,
    }
}

/// Answers a request that was not admitted.
async fn stop(gateway: &Arc<Gateway>, session: &mut ServerSession, head: &Head, stopped: Stopped) -> bool {
    let endpoint = head.endpoint;
    match stopped {
        Stopped::Gone => false,
        Stopped::Answered(kept, caller) => {
            gateway.metrics.of_none().answered(endpoint, kept.status);
            gateway.log_replay(head.id.as_str(), &caller.key, endpoint, kept.status);
            idempotency::replay(session, *kept).await
        }
        Stopped::Refused(refused) => {
            let Refused { refusal, caller, wanted } = *refused;
            gateway.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
            gateway.metrics.of_none().answered(endpoint, refusal.status());
            let mut standings = Standings::default();
            if let Some(caller) = caller {
                standings = ingress::standing(gateway, &caller, head.started_ms);
                record_refused(gateway, head, &caller, wanted, refusal.status()).await;
            }
            exchange::write_refusal(session, Some(head), endpoint.dialect(), &refusal, &standings).await
        }
        #[cfg(feature = "lua-policy")]
        Stopped::Decided(decided, caller) => {
            gateway.metrics.refusals.with_label_values(&["policy"]).inc();
            gateway.metrics.of_none().answered(endpoint, decided.status);
            record_refused(gateway, head, &caller, Wanted::default(), decided.status).await;
            decided.write(session, head, &ingress::standing(gateway, &caller, head.started_ms)).await
        }
    }
}

/// The row of a request that no target was asked for. It costs nothing; when even it finds no room the answer is the same.
async fn record_refused(gateway: &Gateway, head: &Head, caller: &Caller, wanted: Wanted, status: u16) {
    let outcome = Outcome { status, end: End::Refused, duration_ms: head.started.elapsed().as_millis() as u64, ..Outcome::default() };
    if let Ok(closed) = gateway.ledger.record(ingress::refused_facts(head, caller, wanted), outcome) {
        closed.safe().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Box::new(L4Stream::from(listener.accept().await.unwrap().0)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_known_by_its_first_bytes_or_given_up() {
        let long = vec![b'a'; 2 * FIRST_BYTES_MAX];
        for (sent, expected) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], Some(true)),
            (b"POST / HTTP/1.1\r\n", Some(false)),
            (b"GET ", Some(false)),
            (&long, Some(false)),
            // Nothing more comes: the time runs out.
            (b"GET", None),
            (b"", None),
        ] {
            let (mut client, stream) = pair().await;
            client.write_all(sent).await.unwrap();
            let found = told_apart(stream).await;
            assert_eq!(found.as_ref().map(|(_, is_http2)| *is_http2), expected, "{}", String::from_utf8_lossy(sent));
            if let Some((mut stream, _)) = found {
                // What was read ahead comes first, and what comes later follows it.
                client.write_all(b"later").await.unwrap();
                drop(client);
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                assert_eq!(all, [sent, b"later"].concat());
            }
        }
    }

    #[tokio::test]
    async fn first_bytes_may_come_one_by_one_or_end() {
        let (mut client, stream) = pair().await;
        client.write_all(b"PR").await.unwrap();
        let (found, ()) = tokio::join!(told_apart(stream), async {
            // The reader has run by then, and waits.
            tokio::task::yield_now().await;
            client.write_all(b"I *").await.unwrap();
            client.shutdown().await.unwrap();
        });
        let (mut stream, is_http2) = found.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!((&all[..], is_http2), (&b"PRI *"[..], true));

        let (mut client, stream) = pair().await;
        client.write_all(b"GET").await.unwrap();
        client.shutdown().await.unwrap();
        let time = tokio::time::Instant::now();
        assert!(told_apart(stream).await.is_none());
        assert!(time.elapsed() < Duration::from_secs(CLIENT_IDLE_SECONDS));
    }
}

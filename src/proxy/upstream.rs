//! Connections to providers: names resolved off the path, pools that mix neither hosts nor authorities, verified TLS.

use super::heap::boxed;
use super::pool::{self, Pool};
use super::together::Together;
use crate::engine::catalog::{BaseUrl, Provider};
use crate::store::outbound::is_public;
use crate::telemetry::log_lines::{Severity, event};
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::Connector;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::protocols::http::v1::client::HttpSession as Http1Session;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::{HttpPeer, Peer};
use pingora_core::utils::tls::WrappedX509;
use pingora_error::ErrorType;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A resolved name is used this long before it is looked up again behind the requests' backs.
pub const DNS_FRESH: Duration = Duration::from_secs(30);
/// A name that could not be looked up again serves this long from its last answer; then requests wait for a look-up.
pub const DNS_STALE: Duration = Duration::from_secs(600);
/// A look-up may take this long.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams a pooled HTTP/2 connection carries at once.
const H2_STREAMS: usize = 64;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectError {
    /// The name does not resolve.
    Name,
    /// Refused, unreachable, reset.
    Connect,
    /// The certificate or handshake.
    Tls,
    /// Not within the provider's `connect` time.
    Timeout,
    /// A caller's base URL points to an address that is not public.
    NotPublic,
    /// The provider's `ca` file cannot be read.
    Authorities,
}

/// Connections to every provider.
pub struct Upstreams {
    /// New connections with TLS, and HTTP/2. Made with the first of them: it reads the system's authorities, which are megabytes to
    /// hold and milliseconds to read, and plain HTTP needs none of it.
    connector: OnceLock<Connector>,
    /// Idle HTTP/1 connections.
    pool: Pool,
    peers: papaya::HashMap<u64, Arc<Resolved>>,
    hasher: std::hash::RandomState,
}

/// A provider's addresses, ready to connect to.
struct Resolved {
    /// Each with its key in the pool.
    peers: Vec<(HttpPeer, u64)>,
    next: AtomicUsize,
    at: Instant,
    refreshing: AtomicBool,
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upstreams")
    }
}

/// A connection for one exchange.
pub struct Connected {
    /// The session to write to and read from. In a box: it is moved along with every step of an exchange.
    pub session: Box<HttpSession>,
    /// It came from the pool: a reset before any answer may be its age, not the provider's fault.
    pub reused: bool,
    /// The request went out as a whole. With half of one on its way a connection is of no use to the next.
    pub sent_whole: bool,
    /// Over HTTP/1: while set, writes stay back (see [`super::together`]).
    pub holds: Option<Arc<AtomicBool>>,
    resolved: Arc<Resolved>,
    index: usize,
}

/// A session and, over HTTP/1, what holds its writes back.
type Session = (Box<HttpSession>, Option<Arc<AtomicBool>>);

/// A connection without TLS, HTTP/1 always.
async fn plain(address: SocketAddr, limit: Duration) -> Result<Stream, ConnectError> {
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Err(_) => Err(ConnectError::Timeout),
        Ok(Err(_)) => Err(ConnectError::Connect),
        Ok(Ok(stream)) => {
            // Small writes are whole requests: none waits for another.
            stream.set_nodelay(true).map_err(|_| ConnectError::Connect)?;
            Ok(Box::new(L4Stream::from(stream)))
        }
    }
}

/// An HTTP/1 session whose writes can be held together. A connection from the pool is of that kind already.
fn together(stream: Stream, peer: &HttpPeer) -> Session {
    let known = (*stream).as_any().downcast_ref::<Together>().and_then(Together::holds);
    let (stream, holds): (Stream, _) = match known {
        Some(holds) => (stream, holds),
        None => {
            let (stream, holds) = Together::to_upstream(stream);
            (Box::new(stream), holds)
        }
    };
    (boxed(|| HttpSession::H1(Http1Session::new_with_options(stream, peer))), Some(holds))
}

impl Upstreams {
    /// Nothing is connected yet.
    pub fn new() -> Upstreams {
        Upstreams {
            connector: OnceLock::new(),
            pool: Pool::default(),
            peers: papaya::HashMap::new(),
            hasher: std::hash::RandomState::new(),
        }
    }

    /// A connection to `provider`. `public_only`: the base URL is a caller's, its address must be public (checked on the
    /// address connected to, so that a name cannot change its mind in between).
    /// Cancel-safe: a dropped call closes what it opened.
    pub async fn connect(self: &Arc<Self>, provider: &Arc<Provider>, public_only: bool) -> Result<Connected, ConnectError> {
        let resolved = self.resolve(provider).await?;
        let count = resolved.peers.len();
        let start = resolved.next.load(Relaxed);
        let mut failure = ConnectError::Connect;
        for step in 0..count {
            let index = (start + step) % count;
            let (peer, place) = &resolved.peers[index];
            if public_only && !peer._address.as_inet().is_some_and(|address| is_public(address.ip())) {
                return Err(ConnectError::NotPublic);
            }
            if let Some(stream) = self.pool.take(*place) {
                let (session, holds) = together(stream, peer);
                return Ok(Connected { session, reused: true, sent_whole: true, holds, resolved, index });
            }
            // Boxed: rare, and large with its handshakes.
            let connected = match peer._address.as_inet().filter(|_| !provider.base.tls) {
                Some(address) => plain(*address, provider.timeouts.connect).await.map(|stream| (together(stream, peer), false)),
                None => Box::pin(self.secure(peer)).await,
            };
            match connected {
                Ok(((session, holds), reused)) => {
                    return Ok(Connected { session, reused, sent_whole: true, holds, resolved, index });
                }
                Err(error) => {
                    failure = error;
                    // The next request begins with the next address.
                    resolved.next.store((index + 1) % count, Relaxed);
                }
            }
        }
        Err(failure)
    }

    /// A connection with TLS. Returns whether it was used before (HTTP/2).
    async fn secure(self: &Arc<Self>, peer: &HttpPeer) -> Result<(Session, bool), ConnectError> {
        let (session, reused) = self.connector().await.get_http_session(peer).await.map_err(|error| match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => ConnectError::Timeout,
            ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => ConnectError::Tls,
            _ => ConnectError::Connect,
        })?;
        Ok(match session {
            HttpSession::H1(session) => (together(session.into_inner(), peer), reused),
            session => ((Box::new(session), None), reused),
        })
    }

    async fn connector(self: &Arc<Self>) -> &Connector {
        let make = || Connector::new(Some(ConnectorOptions::new(pool::CONNECTIONS_MAX)));
        if self.connector.get().is_none() {
            let this = self.clone();
            // Reading files is nothing for a worker that has streams to serve. Should that thread be no more, it is made here.
            let _ = tokio::task::spawn_blocking(move || _ = this.connector.get_or_init(make)).await;
        }
        self.connector.get_or_init(make)
    }

    /// Gives a connection whose answer was read to its end back to the pool.
    pub async fn release(self: &Arc<Self>, mut connected: Connected) {
        let (peer, place) = &connected.resolved.peers[connected.index];
        if let HttpSession::H1(session) = &mut *connected.session {
            session.respect_keepalive();
        }
        match *connected.session {
            // Dropped, it is closed.
            HttpSession::H1(_) if !connected.sent_whole => {}
            HttpSession::H1(session) => {
                if let Some(stream) = session.reuse().await {
                    self.pool.put(*place, stream);
                }
            }
            session => Box::pin(self.connector().await.release_http_session(session, peer, Some(pool::IDLE_MAX))).await,
        }
    }

    /// Closes idle connections that are too old or were closed by the other side. Called with every look at the hot files.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    async fn resolve(self: &Arc<Self>, provider: &Arc<Provider>) -> Result<Arc<Resolved>, ConnectError> {
        let key = self.key(provider);
        let known = self.peers.pin().get(&key).cloned();
        if let Some(known) = known {
            let age = known.at.elapsed();
            if age < DNS_FRESH || is_literal(&provider.base) {
                return Ok(known);
            }
            if age < DNS_STALE {
                if !known.refreshing.swap(true, Relaxed) {
                    let (upstreams, provider) = (self.clone(), provider.clone());
                    tokio::spawn(async move {
                        if upstreams.look_up(key, &provider).await.is_err() {
                            event(Severity::Warn, "name look-up failed", &provider.base.host);
                        }
                    });
                }
                return Ok(known);
            }
        }
        self.look_up(key, provider).await
    }

    async fn look_up(&self, key: u64, provider: &Provider) -> Result<Arc<Resolved>, ConnectError> {
        let base = &provider.base;
        let addresses: Vec<SocketAddr> = match base.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, base.port)],
            Err(_) => match tokio::time::timeout(DNS_TIMEOUT, tokio::net::lookup_host((base.host.as_ref(), base.port))).await {
                Ok(Ok(found)) => found.collect(),
                _ => Vec::new(),
            },
        };
        let authorities = provider.ca.as_deref().map(authorities).transpose()?;
        let peers: Vec<_> = addresses
            .into_iter()
            .map(|address| {
                let peer = peer(provider, address, key, authorities.as_ref());
                let place = peer.reuse_hash();
                (peer, place)
            })
            .collect();
        if peers.is_empty() {
            if let Some(known) = self.peers.pin().get(&key) {
                known.refreshing.store(false, Relaxed);
            }
            return Err(ConnectError::Name);
        }
        let resolved = Arc::new(Resolved { peers, next: AtomicUsize::new(0), at: Instant::now(), refreshing: AtomicBool::new(false) });
        self.peers.pin().insert(key, resolved.clone());
        Ok(resolved)
    }

    /// Everything that tells one provider's connections from another's.
    fn key(&self, provider: &Provider) -> u64 {
        let timeouts = &provider.timeouts;
        self.hasher.hash_one((
            &provider.name,
            provider.base.tls,
            &provider.base.host,
            provider.base.port,
            &provider.ca,
            provider.http2,
            timeouts.connect,
        ))
    }
}

impl Default for Upstreams {
    fn default() -> Upstreams {
        Upstreams::new()
    }
}

fn is_literal(base: &BaseUrl) -> bool {
    base.host.parse::<IpAddr>().is_ok()
}

fn peer(provider: &Provider, address: SocketAddr, group: u64, authorities: Option<&Arc<CaType>>) -> HttpPeer {
    let mut peer = HttpPeer::new(address, provider.base.tls, provider.base.host.to_string());
    peer.group_key = group;
    peer.options.connection_timeout = Some(provider.timeouts.connect);
    peer.options.total_connection_timeout = Some(provider.timeouts.connect);
    peer.options.idle_timeout = Some(pool::IDLE_MAX);
    peer.options.ca = authorities.cloned();
    if provider.base.tls && provider.http2 {
        peer.options.set_http_version(2, 1);
        peer.options.max_h2_streams = H2_STREAMS;
    }
    peer
}

/// The certificates of a PEM file.
fn authorities(path: &str) -> Result<Arc<CaType>, ConnectError> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let certificates: Vec<WrappedX509> = CertificateDer::pem_file_iter(path)
        .map_err(|_| ConnectError::Authorities)?
        .filter_map(Result::ok)
        .filter_map(|certificate| {
            WrappedX509::try_new(certificate.to_vec(), |raw| X509Certificate::from_der(raw).map(|(_, parsed)| parsed)).ok()
        })
        .collect();
    if certificates.is_empty() { Err(ConnectError::Authorities) } else { Ok(certificates.into()) }
}

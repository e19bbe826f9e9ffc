//! Reading a request body once, bounded alone ([`max_body`](ReadLimits)) and together with all others ([`InFlight`]).

use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::http::v1::server::HttpSession;
use pingora_error::ErrorType;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

/// A client that sends nothing of its body for this long is answered 408.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// A body must have arrived whole within this (64 MiB at 2 Mbit/s), else 408: a drip cannot hold memory for ever.
pub const BODY_TOTAL_TIMEOUT: Duration = Duration::from_secs(300);
/// What is set aside at first for a body of unknown length.
const CHUNKED_START_BYTES: usize = 8 << 10;
/// When more than this of a body of declared length is still to come, it is read right into its place. Pingora's session reads up to
/// 64 KiB at a time into a buffer of its own and copies that.
const LONG_REST_BYTES: u64 = 64 << 10;

/// Bytes of all bodies, of requests and of whole answers, that are held at this moment, and their bound.
#[derive(Debug)]
pub struct InFlight {
    held: AtomicU64,
    max: u64,
}

impl InFlight {
    /// A budget of `max` bytes.
    pub fn new(max: u64) -> Arc<InFlight> {
        Arc::new(InFlight { held: AtomicU64::new(0), max })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.held.fetch_update(Relaxed, Relaxed, |held| held.checked_add(bytes).filter(|sum| *sum <= self.max)).is_ok()
    }
}

/// A body's share of [`InFlight`]; given back on drop.
#[derive(Debug)]
pub struct Share {
    budget: Arc<InFlight>,
    bytes: u64,
}

impl Share {
    /// Nothing yet.
    pub fn of(budget: &Arc<InFlight>) -> Share {
        Share { budget: budget.clone(), bytes: 0 }
    }

    /// Takes more, up to `bytes` in all.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), BodyError> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 {
            if !self.budget.take(more) {
                return Err(BodyError::Overloaded);
            }
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Over `max_body`: 413.
    TooLarge,
    /// All bodies together are over `max_body_in_flight`: 503.
    Overloaded,
    /// 408.
    TooSlow,
    /// The client went away or broke the framing: nobody to answer.
    Gone,
}

/// Reads the whole body. Answers `Expect: 100-continue` first, unless the declared length is refused.
///
/// A long body leaves another session on the same connection and with the same head, so nothing may be changed in the head before.
/// Not cancel-safe: a dropped read loses the bytes read so far, and may leave a session of nothing.
pub async fn read(session: &mut ServerSession, max_body: u64, budget: &Arc<InFlight>) -> Result<(Bytes, Share), BodyError> {
    let headers = &session.req_header().headers;
    let declared =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    let expects = headers.get(http::header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut share = Share::of(budget);
    if let Some(length) = declared {
        if length > max_body {
            return Err(BodyError::TooLarge);
        }
        share.grow_to(length)?;
    }
    if expects {
        session.write_continue_response().await.map_err(|_| BodyError::Gone)?;
    }
    session.set_read_timeout(Some(BODY_IDLE_TIMEOUT));
    let started = Instant::now();
    let is_http1 = session.as_http1().is_some();
    // Most bodies are short and come in one chunk, which is not copied again.
    let (mut first, mut body) = (Bytes::new(), BytesMut::new());
    loop {
        match session.read_request_body().await {
            Ok(Some(chunk)) => {
                let length = (first.len() + body.len() + chunk.len()) as u64;
                if length > max_body {
                    return Err(BodyError::TooLarge);
                }
                share.grow_to(length)?;
                if started.elapsed() > BODY_TOTAL_TIMEOUT {
                    return Err(BodyError::TooSlow);
                }
                match chunk.len() as u64 {
                    // Of a chunked body, less than a chunk's own length has come.
                    0 => continue,
                    // What HTTP/2 gives is a part of a larger buffer, which would stay with it.
                    all if all == length && is_http1 => {
                        first = chunk;
                        if let Some(declared) = declared.filter(|declared| declared.saturating_sub(all) > LONG_REST_BYTES) {
                            let body = read_rest(session, &first, declared as usize, started).await?;
                            return Ok((body, share));
                        }
                    }
                    _ => {
                        if body.is_empty() {
                            body.reserve(declared.map_or(CHUNKED_START_BYTES, |length| length as usize));
                            body.extend_from_slice(&std::mem::take(&mut first));
                        }
                        body.extend_from_slice(&chunk);
                    }
                }
            }
            Ok(None) if body.is_empty() => return Ok((first, share)),
            Ok(None) => return Ok((body.freeze(), share)),
            Err(error) if *error.etype() == ErrorType::ReadTimedout => return Err(BodyError::TooSlow),
            Err(_) => return Err(BodyError::Gone),
        }
    }
}

/// Reads the rest of a body of `length` bytes that begins with `first`, from the HTTP/1 connection itself.
async fn read_rest(session: &mut ServerSession, first: &[u8], length: usize, started: Instant) -> Result<Bytes, BodyError> {
    let keepalive = session.get_keepalive();
    // A session gives its connection away only as it ends: until there is another, one of nothing is in its place.
    let nothing = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    let ServerSession::H1(of_head) = std::mem::replace(session, nothing) else { return Err(BodyError::Gone) };
    let head = of_head.get_headers_raw_bytes();
    let mut stream = of_head.into_inner();
    let mut body = BytesMut::with_capacity(length);
    body.extend_from_slice(first);
    let read = fill(&mut stream, &mut body, length, started).await;
    *session = ServerSession::H1(session_after(stream, head, length - body.len()).await.ok_or(BodyError::Gone)?);
    super::set_up(session, keepalive);
    session.set_read_timeout(Some(BODY_IDLE_TIMEOUT));
    read.map(|()| body.freeze())
}

/// Reads until the body has `length` bytes, and nothing of what comes after it.
async fn fill(stream: &mut Stream, body: &mut BytesMut, length: usize, started: Instant) -> Result<(), BodyError> {
    while body.len() < length {
        let left = length - body.len();
        let mut room = (&mut *body).limit(left);
        match timeout(BODY_IDLE_TIMEOUT, stream.read_buf(&mut room)).await {
            Ok(Ok(1..)) if started.elapsed() <= BODY_TOTAL_TIMEOUT => {}
            Ok(Ok(0) | Err(_)) => return Err(BodyError::Gone),
            Ok(Ok(_)) | Err(_) => return Err(BodyError::TooSlow),
        }
    }
    Ok(())
}

/// A session on a connection of whose request `head` was read, and all of the body but `left` bytes.
async fn session_after(stream: Stream, head: Bytes, left: usize) -> Option<HttpSession> {
    let mut session = HttpSession::new(stream);
    session.set_pipelined_prefix(BytesMut::from(head));
    session.read_request().await.ok()??;
    // How much is left to read it takes from the head, when it is first asked about the body.
    let declared = session.req_header().headers.get(CONTENT_LENGTH)?.clone();
    session.req_header_mut().insert_header(CONTENT_LENGTH, left).ok()?;
    session.is_body_done();
    session.req_header_mut().insert_header(CONTENT_LENGTH, declared).ok()?;
    Some(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    const LENGTH: usize = 300 << 10;
    const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nhost: weir\r\n\r\n";

    fn long_body() -> Vec<u8> {
        (0..LENGTH).map(|at| (at % 251) as u8).collect()
    }

    /// A connection whose request's head was read, and the client's end of it.
    async fn begun(extra: &str) -> (Box<ServerSession>, DuplexStream) {
        let (near, mut client) = duplex(32 << 10);
        let head = format!("POST /v1/chat/completions?a=b c HTTP/1.1\r\nHost: weir\r\nContent-Length: {LENGTH}\r\n{extra}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut session = Box::new(ServerSession::new_http1(Box::new(near)));
        assert!(session.read_request().await.unwrap());
        super::super::set_up(&mut session, Some(75));
        (session, client)
    }

    #[tokio::test]
    async fn a_long_body_is_all_that_is_read() {
        for extra in ["", "Expect: 100-continue\r\n"] {
            let (mut session, mut client) = begun(extra).await;
            let budget = InFlight::new(1 << 20);
            let expected = long_body();
            let sent = expected.clone();
            let send = async move {
                client.write_all(&sent).await.unwrap();
                client.write_all(NEXT).await.unwrap();
                client
            };
            let (read, _client) = tokio::join!(read(&mut session, 1 << 20, &budget), send);
            let (body, share) = read.unwrap();
            assert!(body == expected);
            assert_eq!(budget.held(), LENGTH as u64);
            drop(share);
            assert_eq!(budget.held(), 0);
            assert!(session.is_body_done());
            let header = session.req_header();
            assert_eq!(header.uri.path(), "/v1/chat/completions");
            assert_eq!(header.headers[CONTENT_LENGTH], LENGTH.to_string());
            // The next request is whole.
            let answer = pingora_http::ResponseHeader::build(204, None).unwrap();
            session.write_response_header(Box::new(answer)).await.unwrap();
            let (stream, settings) = crate::proxy::finish(session, true).await.unwrap().consume();
            let mut next = ServerSession::new_http1(stream);
            settings.unwrap().apply_to_session(&mut next);
            assert!(next.read_request().await.unwrap());
            assert_eq!(next.req_header().uri.path(), "/next");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_body_that_stops_leaves_the_rest_to_be_read() {
        let (mut session, mut client) = begun("").await;
        let body = long_body();
        let send = async {
            for piece in body[..LENGTH - 100].chunks(64 << 10) {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(BODY_IDLE_TIMEOUT / 2).await;
            }
        };
        let budget = InFlight::new(1 << 20);
        let (read, ()) = tokio::join!(read(&mut session, 1 << 20, &budget), send);
        assert_eq!(read.unwrap_err(), BodyError::TooSlow);
        assert!(!session.is_body_done(), "what comes late is no request");
        client.write_all(&body[LENGTH - 100..]).await.unwrap();
        session.drain_request_body().await.unwrap();
        assert!(session.is_body_done());
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_body_has_its_time_in_all() {
        let (mut session, mut client) = begun("").await;
        let drip = async {
            loop {
                tokio::time::sleep(BODY_IDLE_TIMEOUT / 2).await;
                if client.write_all(b"a").await.is_err() {
                    return;
                }
            }
        };
        let started = Instant::now();
        let budget = InFlight::new(1 << 20);
        tokio::select! {
            read = read(&mut session, 1 << 20, &budget) => assert_eq!(read.unwrap_err(), BodyError::TooSlow),
            () = drip => unreachable!("the connection is open"),
        }
        assert!(started.elapsed() < BODY_TOTAL_TIMEOUT + BODY_IDLE_TIMEOUT);
    }

    #[tokio::test]
    async fn a_client_that_leaves_within_a_long_body_is_gone() {
        let (mut session, mut client) = begun("").await;
        client.write_all(&[b'a'; 1000]).await.unwrap();
        drop(client);
        let read = read(&mut session, 1 << 20, &InFlight::new(1 << 20)).await;
        assert_eq!(read.unwrap_err(), BodyError::Gone);
    }
}

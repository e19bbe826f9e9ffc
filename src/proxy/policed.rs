//! Requests under a Lua policy ([`crate::policy`]).
//!
//! `access` runs once the caller is known and the body was read. From then on the client's session is wrapped ([`Policed`]), so
//! that whatever is written to the client passes through `header_filter` and `body_filter`, whoever writes it: an answer, a
//! refusal, a heartbeat, an error event. The rest of this floor knows nothing of it, and a gateway without a policy pays one branch.
//!
//! So the status in a request's row is the answer's before the filters: what `header_filter` makes of it, or the refusal in the
//! place of an answer whose filter failed, is what the client and `log` see.

use super::body::Share;
use super::exchange::{weirs_own, write_refusal};
use super::gateway::Gateway;
use super::ingress::{Caller, Head, Refused, Stopped, Wanted};
use super::respond;
use crate::engine::catalog::{Catalog, LuaPolicy};
use crate::engine::limit::Standings;
use crate::engine::refusal::Refusal;
use crate::policy::{self, Access, Exchange, HeaderEdits};
use async_trait::async_trait;
use bytes::Bytes;
use http::Version;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use parking_lot::Mutex;
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_error::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use std::sync::Arc;
use std::time::Duration;

/// An answer of the policy's own.
#[derive(Debug)]
pub struct Decided {
    /// Its status.
    pub status: u16,
    /// Its body; `None`: the connection is closed without an answer.
    pub body: Option<Bytes>,
}

impl Decided {
    /// Writes it. Returns whether the client's connection may be used again.
    pub async fn write(self, session: &mut ServerSession, head: &Head, standings: &Standings) -> bool {
        let Some(body) = self.body else { return false };
        let mut header = respond::document(self.status, "text/plain", body.len());
        weirs_own(head, None, standings, &mut header.headers);
        respond::write(session, header, body).await
    }
}

/// Serves a request under `policy`. Returns whether the client's connection may be used again.
pub async fn serve(
    gateway: &Arc<Gateway>,
    session: &mut ServerSession,
    head: &Head,
    catalog: Arc<Catalog>,
    policy: Arc<LuaPolicy>,
) -> bool {
    let back = Back::default();
    let max_body = gateway.settings.limits.max_body_bytes;
    let access = |session: &mut ServerSession, caller: &Caller, body: Bytes, share: &mut Share| {
        let mut exchange = Exchange::new(policy, seen(session, head, caller));
        let access = exchange.access(&body);
        let refused =
            |refusal: Refusal| Stopped::Refused(Box::new(Refused { refusal, caller: Some(caller.clone()), wanted: Wanted::default() }));
        let decided = match access {
            Ok(Access::Go { headers, body: new }) => {
                edit_request(session.req_header_mut(), headers);
                match new {
                    None => Ok(body),
                    Some(new) if new.len() as u64 > max_body => Err(refused(Refusal::BodyTooLarge { limit_bytes: max_body })),
                    Some(new) => match share.grow_to(new.len() as u64) {
                        Ok(()) => Ok(new),
                        Err(_) => Err(refused(Refusal::Overloaded { retry_after_ms: 1_000 })),
                    },
                }
            }
            Ok(Access::Answer { status, body }) => Err(Stopped::Decided(Decided { status, body: Some(body) }, caller.clone())),
            Ok(Access::Denied(status)) => Err(refused(Refusal::Policy { status })),
            Ok(Access::Close) => Err(Stopped::Decided(Decided { status: 444, body: None }, caller.clone())),
            Err(_) => {
                exchange.refuse(Refusal::PolicyFailed.status());
                Err(refused(Refusal::PolicyFailed))
            }
        };
        Policed::wrap(session, exchange, head.clone(), &back);
        decided
    };
    let reusable = super::serve(gateway, session, head, catalog, access).await;
    // The account is settled: the wrapping goes, and with it `log` runs.
    if session.is_custom() {
        *session = nobody();
        if let Some(inner) = back.lock().take() {
            *session = *inner;
        }
    }
    reusable
}

/// Where a wrapping leaves the session that it held.
type Back = Arc<Mutex<Option<Box<ServerSession>>>>;

/// A session in the place of one that is elsewhere for the moment.
fn nobody() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}

/// The request as the policy sees it.
fn seen(session: &ServerSession, head: &Head, caller: &Caller) -> policy::Head {
    let request = session.req_header();
    let address = session.client_addr().and_then(|address| address.as_inet());
    policy::Head {
        method: request.method.as_str().to_string(),
        target: String::from_utf8_lossy(request.raw_path()).into_owned(),
        protocol: match request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        },
        scheme: if session.digest().is_some_and(|digest| digest.ssl_digest.is_some()) { "https" } else { "http" },
        remote_address: address.map(|address| address.ip().to_string()).unwrap_or_default(),
        request_id: head.id.as_str().to_string(),
        started_ms: head.started_ms,
        account: caller.key.account_id.to_string(),
        key_id: caller.key.id.to_string(),
        tier: caller.tier.as_ref().map(|tier| tier.name.to_string()),
        headers: request.headers.clone(),
    }
}

fn edit_request(header: &mut RequestHeader, edits: HeaderEdits) {
    for (name, values) in edits {
        header.remove_header(&name);
        for value in values {
            let _ = header.append_header(name.clone(), value);
        }
    }
}

fn edit_response(header: &mut ResponseHeader, edits: HeaderEdits) {
    for (name, values) in edits {
        header.remove_header(&name);
        for value in values {
            let _ = header.append_header(name.clone(), value);
        }
    }
}

/// A client's session whose answer passes through a policy.
struct Policed {
    /// `None` once it is given back.
    inner: Option<Box<ServerSession>>,
    exchange: Exchange,
    head: Head,
    /// The answer is a stream of events.
    is_stream: bool,
    /// The answer has ended, whatever else is written.
    over: bool,
    back: Back,
}

impl Drop for Policed {
    fn drop(&mut self) {
        *self.back.lock() = self.inner.take();
    }
}

impl Policed {
    fn wrap(session: &mut ServerSession, exchange: Exchange, head: Head, back: &Back) {
        let inner = Some(Box::new(std::mem::replace(session, nobody())));
        *session =
            ServerSession::new_custom(Box::new(Policed { inner, exchange, head, is_stream: false, over: false, back: back.clone() }));
    }

    fn inner(&self) -> &ServerSession {
        // Taken in `drop` only.
        let Some(inner) = &self.inner else { unreachable!("a wrapped session is there until the wrapping goes") };
        inner
    }

    fn inner_mut(&mut self) -> &mut ServerSession {
        let Some(inner) = &mut self.inner else { unreachable!("a wrapped session is there until the wrapping goes") };
        inner
    }

    async fn header(&mut self, mut header: ResponseHeader) -> Result<()> {
        if header.status.is_informational() {
            return self.inner_mut().write_response_header(Box::new(header)).await;
        }
        match self.exchange.header_filter(header.status.as_u16(), &header.headers) {
            Ok((status, edits)) => {
                header.set_status(status)?;
                edit_response(&mut header, edits);
            }
            Err(_) => return self.refuse().await,
        }
        self.is_stream = header.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let version = self.inner().req_header().version;
        if self.exchange.filters_bodies() {
            header.remove_header(&CONTENT_LENGTH);
            if version == Version::HTTP_11 {
                header.insert_header(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
            }
        }
        // Whoever wrote this header could not tell the session behind it.
        let closes = header.headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        if closes || (version == Version::HTTP_10 && !header.headers.contains_key(CONTENT_LENGTH)) {
            self.inner_mut().set_keepalive(None);
        }
        self.inner_mut().write_response_header(Box::new(header)).await
    }

    /// A filter of the header failed: the client gets a refusal in the answer's place, and whoever writes the answer learns that
    /// nobody takes it.
    async fn refuse(&mut self) -> Result<()> {
        self.over = true;
        self.exchange.refuse(Refusal::PolicyFailed.status());
        let head = self.head.clone();
        let inner = self.inner_mut();
        inner.set_keepalive(None);
        write_refusal(inner, Some(&head), head.endpoint.dialect(), &Refusal::PolicyFailed, &Standings::default()).await;
        Err(ended())
    }

    async fn body(&mut self, bytes: Bytes, end: bool) -> Result<()> {
        if self.over {
            return Err(ended());
        }
        match self.exchange.body_filter(bytes, end) {
            Ok(filtered) => {
                self.over = filtered.cut;
                self.inner_mut().write_response_body(filtered.bytes, end || filtered.cut).await
            }
            Err(_) => {
                self.over = true;
                self.exchange.refuse(Refusal::PolicyFailed.status());
                if self.is_stream {
                    // A partial event may have gone out: an empty line ends it, so that the error stands alone.
                    let mut event = String::from("\n\n");
                    Refusal::PolicyFailed.write_event(self.head.endpoint, &mut event);
                    self.inner_mut().write_response_body(event.into(), false).await?;
                }
                Err(ended())
            }
        }
    }
}

/// What a write after the answer's end comes to: as if the client had left.
fn ended() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the policy ended the answer")
}

#[async_trait]
impl Session for Policed {
    fn req_header(&self) -> &RequestHeader {
        self.inner().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.inner_mut().read_request_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.inner_mut().drain_request_body().await
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.header(*header).await
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, _end: bool) -> Result<()> {
        self.header(header.clone()).await
    }

    async fn write_body(&mut self, bytes: Bytes, end: bool) -> Result<()> {
        self.body(bytes, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, _tasks: Vec<HttpTask>) -> Result<bool> {
        // Pingora's own proxy writes by tasks; this gateway does not, and what is written so would pass by the filters.
        Err(Error::explain(ErrorType::InternalError, "an answer under a policy is not written by tasks"))
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner().response_written()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.inner_mut().shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        self.inner_mut().is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        // The session behind it is given back and finished by whoever wrapped it.
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        self.inner_mut().is_body_empty()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        self.inner_mut().read_body_or_idle(no_body_expected).await
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner().to_h1_raw()
    }

    fn enable_retry_buffering(&mut self) {
        self.inner_mut().enable_retry_buffering();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.inner().retry_buffer_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.inner().get_retry_buffer()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::catalog::OnPolicyError;
    use crate::engine::dialect::Endpoint;
    use crate::engine::id::RequestId;
    use pingora_core::protocols::l4::stream::Stream;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn a_refusal_in_an_answer_s_place_has_the_request_s_ids() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: weir\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let mut session = ServerSession::new_http1(Box::new(Stream::from(listener.accept().await.unwrap().0)));
        assert!(session.read_request().await.unwrap());

        let id = RequestId::new(1, 2).text();
        let client_id = Some(HeaderValue::from_static("mine"));
        let head = Head { id, client_id, started: Instant::now(), started_ms: 1, endpoint: Endpoint::ChatCompletions };
        let text = "return { header_filter = function() error('no') end }".into();
        let policy = Arc::new(LuaPolicy { file: "policy.lua".into(), text, on_error: OnPolicyError::Refuse });
        Policed::wrap(&mut session, Exchange::new(policy, policy::Head::default()), head, &Back::default());
        assert!(!respond::write(&mut session, respond::document(200, "text/plain", 2), "ok".into()).await);
        drop(session);

        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        let (header, body) = answer.split_once("\r\n\r\n").unwrap();
        let header = header.to_ascii_lowercase();
        assert!(header.starts_with("http/1.1 500 ") && body.contains("policy_failed"), "{answer}");
        assert!(header.contains("\r\nx-request-id: mine"), "{answer}");
        assert!(header.contains(&format!("\r\nx-weir-request-id: {}", id.as_str().to_ascii_lowercase())), "{answer}");
    }
}

//! Writing whole answers: refusals, JSON documents, plain pages.

use super::headers::X_REQUEST_ID;
use super::heap::boxed;
use super::relay::CLIENT_WRITE_TIMEOUT;
use bytes::Bytes;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::response::Parts;
use pingora_core::protocols::http::ServerSession;

/// An empty header with room for so many fields. A plain map: Pingora's own setters look each name up by its bytes again.
/// A number that is no status (there is none in weir) becomes 500.
pub fn header(status: u16, fields: usize) -> Parts {
    let (mut header, ()) = http::Response::new(()).into_parts();
    header.status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    header.headers.reserve(fields);
    header
}

/// The header of a document that is weir's own.
pub fn document(status: u16, content_type: &'static str, length: usize) -> Parts {
    let mut header = header(status, 24);
    header.headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    header.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    header
}

/// A client gets [`CLIENT_WRITE_TIMEOUT`] for so much of a whole answer: one that reads, however slowly, gets all of it.
const SLICE_BYTES: usize = 1 << 20;

/// Writes a whole answer. Returns whether the client took it.
pub async fn write(session: &mut ServerSession, header: Parts, mut body: Bytes) -> bool {
    session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
    if session.write_response_header(boxed(|| header.into())).await.is_err() {
        return false;
    }
    while body.len() > SLICE_BYTES {
        if session.write_response_body(body.split_to(SLICE_BYTES), false).await.is_err() {
            return false;
        }
    }
    session.write_response_body(body, true).await.is_ok()
}

/// Writes a JSON document that nobody should cache.
pub async fn json(session: &mut ServerSession, status: u16, document: &impl serde::Serialize, request_id: Option<&str>) -> bool {
    let Ok(body) = serde_json::to_vec(document) else { return false };
    text(session, status, "application/json", body.into(), request_id).await
}

/// Writes a page of any type that nobody should cache.
pub async fn text(session: &mut ServerSession, status: u16, content_type: &'static str, body: Bytes, request_id: Option<&str>) -> bool {
    let mut header = document(status, content_type, body.len());
    header.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(value) = request_id.and_then(|id| HeaderValue::from_str(id).ok()) {
        header.headers.insert(X_REQUEST_ID, value);
    }
    write(session, header, body).await
}

/// Reads a small request body of the self-service and admin endpoints. `None`: too large, or the client went away.
pub async fn small_body(session: &mut ServerSession, bytes_max: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = session.read_request_body().await.ok()? {
        if body.len() + chunk.len() > bytes_max {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// The value of a query parameter, decoded.
pub fn query(session: &ServerSession, name: &str) -> Option<String> {
    parameter(session.req_header().uri.query()?, name)
}

/// A parameter's value in a query, where `+` stands for a space (application/x-www-form-urlencoded).
fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| percent_decode(&value.replace('+', " ")))
    })
}

/// Decodes `%XX` as in a path (RFC 3986, 2.1), where `+` is itself; what is not UTF-8 afterwards is replaced.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[index], hex(index + 1), hex(index + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                index += 3;
            }
            (byte, ..) => {
                out.push(byte);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_gets_all_however_slowly_and_one_that_does_not_is_given_up() {
        let length = 3 * SLICE_BYTES;
        for (reads, taken) in [(true, true), (false, false)] {
            let (near, mut client) = duplex(32 << 10);
            client.write_all(b"GET / HTTP/1.1\r\nhost: weir\r\n\r\n").await.unwrap();
            let mut session = ServerSession::new_http1(Box::new(near));
            assert!(session.read_request().await.unwrap());
            let reading = async {
                let (mut got, mut room) = (0, vec![0; 64 << 10]);
                while reads && got < length {
                    got += client.read(&mut room).await.unwrap();
                    tokio::time::sleep(CLIENT_WRITE_TIMEOUT / 50).await;
                }
                pending::<()>().await
            };
            tokio::select! {
                written = write(&mut session, document(200, "text/plain", length), vec![b'a'; length].into()) => assert_eq!(written, taken),
                () = reading => {}
            }
        }
    }

    #[test]
    fn percent_encoding_is_undone() {
        for (text, expected) in [("a%20b+c%2Bd", "a b+c+d"), ("%", "%"), ("%2", "%2"), ("%e2%82%ac", "€"), ("%zz", "%zz")] {
            assert_eq!(percent_decode(text), expected);
        }
    }

    #[test]
    fn a_plus_is_a_space_in_a_query_alone() {
        for (query, expected) in [("a=1&id=ab+cd%2Bef", Some("ab cd+ef")), ("id", Some("")), ("idx=1", None)] {
            assert_eq!(parameter(query, "id").as_deref(), expected, "{query}");
        }
    }
}

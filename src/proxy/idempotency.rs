//! `Idempotency-Key`: a request that is sent again gets the first answer again.
//!
//! Off unless configured, for it keeps what was said: in memory, of this process, sealed with AES-256-GCM under a key that is
//! made at the start and never leaves it, bounded in number and bytes, for a time. Only an answer that was completed is kept.
//! One that failed, was refused or was broken off by its client leaves nothing behind, so that sending it again runs it anew.
//! An answer that is too large to keep, or had to make room, leaves its request's id: sending it again is a conflict that
//! names the row, rather than a second bill.

use super::respond;
use crate::config::weir_toml::Idempotency;
use crate::engine::dialect::Endpoint;
use crate::engine::id::IdText;
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::response::Parts;
use parking_lot::Mutex;
use pingora_core::protocols::http::ServerSession;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Tells that an answer is an earlier one.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// A longer key is refused; common clients send a UUID.
pub const KEY_BYTES_MAX: usize = 255;
/// A running answer's room is taken in steps, so that a stream does not ask for every event.
const STEP_BYTES: u64 = 16 << 10;

/// SHA-256.
type Hash = [u8; 32];

/// The answers that are kept.
pub struct Answers {
    bounds: Idempotency,
    cipher: Aes256Gcm,
    inner: Mutex<Inner>,
}

/// A request with an idempotency key.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Who asks: keys of different callers do not meet.
    pub account: &'a str,
    /// With which of the account's keys.
    pub key_id: &'a str,
    /// The header's value.
    pub idempotency_key: &'a [u8],
    /// Where.
    pub endpoint: Endpoint,
    /// What.
    pub body: &'a [u8],
}

/// What a key means for a request.
pub enum Begun {
    /// The first of its key: run it and keep the answer.
    First(Keeping),
    /// It was answered.
    Again(Box<Kept>),
    /// It cannot be answered: what is the matter, and the first request's id.
    Conflict(&'static str, IdText),
    /// As many requests with a key run as may be kept.
    Full,
}

/// An answer to be given again.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    /// HTTP status.
    pub status: u16,
    /// Its headers as they were sent.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
}

/// The answer of a running request that is to be kept. Dropped before [`Keeping::complete`] it leaves nothing behind.
pub struct Keeping {
    answers: Arc<Answers>,
    key: Hash,
    request: Hash,
    id: IdText,
    status: u16,
    /// The headers, then the body.
    head: Vec<u8>,
    body: Zeroizing<Vec<u8>>,
    /// Room taken of the total.
    room: u64,
    fits: bool,
    open: bool,
}

#[derive(Default)]
struct Inner {
    entries: FxHashMap<Hash, Entry>,
    /// Finished entries, the oldest first.
    order: VecDeque<Hash>,
    /// Bytes of kept and running answers.
    bytes: u64,
}

struct Entry {
    /// Hash of path and body.
    request: Hash,
    id: IdText,
    state: State,
}

enum State {
    Running,
    Kept {
        sealed: Arc<Sealed>,
        expires_ms: u64,
    },
    /// The answer was too large, or made room for others.
    Gone {
        expires_ms: u64,
    },
}

struct Sealed {
    nonce: [u8; 12],
    bytes: Box<[u8]>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answers")
    }
}

impl Answers {
    /// Keeps within `bounds`.
    pub fn new(bounds: Idempotency) -> Arc<Answers> {
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        Arc::new(Answers { bounds, cipher: Aes256Gcm::new((&*key).into()), inner: Mutex::default() })
    }

    /// What a request comes to that begins as `id`.
    pub fn begin(self: &Arc<Answers>, asked: Asked<'_>, id: IdText, now_ms: u64) -> Begun {
        let key = hash(&[asked.account.as_bytes(), asked.key_id.as_bytes(), asked.idempotency_key]);
        let request = hash(&[asked.endpoint.path().as_bytes(), asked.body]);
        let sealed = {
            let mut inner = self.inner.lock();
            inner.expire(now_ms);
            match inner.entries.get(&key) {
                None => {
                    if !inner.make_room_for_one(self.bounds.max_entries as usize) {
                        return Begun::Full;
                    }
                    inner.entries.insert(key, Entry { request, id, state: State::Running });
                    let keeping = Keeping {
                        answers: self.clone(),
                        key,
                        request,
                        id,
                        status: 0,
                        head: Vec::new(),
                        body: Zeroizing::default(),
                        room: 0,
                        fits: true,
                        open: true,
                    };
                    return Begun::First(keeping);
                }
                Some(first) if first.request != request => {
                    return Begun::Conflict("its body or path was another one; use a new key for another request", first.id);
                }
                Some(Entry { id, state: State::Running, .. }) => {
                    return Begun::Conflict("it is still running; ask again when it has ended", *id);
                }
                Some(Entry { id, state: State::Gone { .. }, .. }) => {
                    return Begun::Conflict(
                        "it was answered, and the answer is no longer kept; its row is at /weir/v1/requests/ with that id",
                        *id,
                    );
                }
                Some(Entry { state: State::Kept { sealed, .. }, .. }) => sealed.clone(),
            }
        };
        // What this process sealed it opens.
        self.open(&sealed, &key, &request).map_or(Begun::Full, |kept| Begun::Again(Box::new(kept)))
    }

    fn seal(&self, plain: &[u8], key: &Hash, request: &Hash) -> Option<Sealed> {
        let nonce = rand::random::<[u8; 12]>();
        let bytes = self.cipher.encrypt(&nonce.into(), Payload { msg: plain, aad: &associated(key, request) }).ok()?;
        Some(Sealed { nonce, bytes: bytes.into() })
    }

    fn open(&self, sealed: &Sealed, key: &Hash, request: &Hash) -> Option<Kept> {
        let payload = Payload { msg: &sealed.bytes, aad: &associated(key, request) };
        read(self.cipher.decrypt(&sealed.nonce.into(), payload).ok()?.into())
    }
}

/// Gives a kept answer again. Returns whether the connection may be used again.
pub async fn replay(session: &mut ServerSession, kept: Kept) -> bool {
    let mut header = respond::header(kept.status, kept.headers.len() + 2);
    // Framing is each answer's own: what was a stream has a length now.
    for (name, value) in kept.headers.into_iter().filter(|(name, _)| *name != TRANSFER_ENCODING && *name != CONTENT_LENGTH) {
        header.headers.append(name, value);
    }
    header.headers.insert(CONTENT_LENGTH, HeaderValue::from(kept.body.len()));
    header.headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    respond::write(session, header, kept.body).await
}

impl Keeping {
    /// Takes the header as the client gets it.
    pub fn head(&mut self, header: &Parts) {
        self.status = header.status.as_u16();
        self.head.clear();
        for (name, value) in &header.headers {
            write_part(&mut self.head, name.as_str().as_bytes());
            write_part(&mut self.head, value.as_bytes());
        }
    }

    /// Takes the next bytes of the body, if they fit.
    pub fn body(&mut self, bytes: &[u8]) {
        if !self.fits {
            return;
        }
        let length = (self.head.len() + self.body.len() + bytes.len()) as u64;
        if length > self.answers.bounds.max_answer_bytes || (length > self.room && !self.grow(length)) {
            self.fits = false;
            self.body = Zeroizing::default();
            self.give_back(self.room);
            return;
        }
        self.body.extend_from_slice(bytes);
    }

    /// The answer is complete: from now on it is given again.
    pub fn complete(mut self, now_ms: u64) {
        self.open = false;
        let expires_ms = now_ms.saturating_add(self.answers.bounds.keep.as_millis() as u64);
        let sealed = if self.fits {
            let mut plain = Zeroizing::new(Vec::with_capacity(6 + self.head.len() + self.body.len()));
            plain.extend_from_slice(&self.status.to_be_bytes());
            write_part(&mut plain, &self.head);
            plain.extend_from_slice(&self.body);
            self.answers.seal(&plain, &self.key, &self.request)
        } else {
            None
        };
        let mut inner = self.answers.inner.lock();
        inner.bytes = inner.bytes.saturating_sub(self.room);
        self.room = 0;
        let sealed = sealed.filter(|sealed| inner.make_room(sealed.bytes.len() as u64, self.answers.bounds.max_bytes));
        let state = match sealed {
            Some(sealed) => {
                inner.bytes += sealed.bytes.len() as u64;
                State::Kept { sealed: Arc::new(sealed), expires_ms }
            }
            None => State::Gone { expires_ms },
        };
        inner.entries.insert(self.key, Entry { request: self.request, id: self.id, state });
        inner.order.push_back(self.key);
    }

    fn grow(&mut self, length: u64) -> bool {
        let more = length.next_multiple_of(STEP_BYTES) - self.room;
        let mut inner = self.answers.inner.lock();
        let has_room = inner.make_room(more, self.answers.bounds.max_bytes);
        if has_room {
            inner.bytes += more;
            self.room += more;
        }
        has_room
    }

    fn give_back(&mut self, room: u64) {
        let mut inner = self.answers.inner.lock();
        inner.bytes = inner.bytes.saturating_sub(room);
        self.room -= room;
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        if self.open {
            let mut inner = self.answers.inner.lock();
            inner.bytes = inner.bytes.saturating_sub(self.room);
            inner.entries.remove(&self.key);
        }
    }
}

impl Inner {
    /// Forgets what is past its time. All are kept equally long, so the oldest expires first.
    fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.order.front() {
            let past = match self.entries.get(oldest).map(|entry| &entry.state) {
                Some(State::Kept { expires_ms, .. } | State::Gone { expires_ms }) => *expires_ms <= now_ms,
                _ => true,
            };
            if !past {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(oldest) = self.order.pop_front() else { return false };
        if let Some(Entry { state: State::Kept { sealed, .. }, .. }) = self.entries.remove(&oldest) {
            self.bytes = self.bytes.saturating_sub(sealed.bytes.len() as u64);
        }
        true
    }

    /// Whether another entry has a place; the oldest finished one makes it.
    fn make_room_for_one(&mut self, max_entries: usize) -> bool {
        while self.entries.len() >= max_entries {
            if !self.forget_oldest() {
                return false;
            }
        }
        true
    }

    /// Whether `bytes` more fit; the oldest answers make room, their ids stay.
    fn make_room(&mut self, bytes: u64, max_bytes: u64) -> bool {
        let mut at = 0;
        while self.bytes.saturating_add(bytes) > max_bytes {
            let Some(key) = self.order.get(at) else { return false };
            at += 1;
            if let Some(entry) = self.entries.get_mut(key)
                && let State::Kept { sealed, expires_ms } = &entry.state
            {
                self.bytes = self.bytes.saturating_sub(sealed.bytes.len() as u64);
                entry.state = State::Gone { expires_ms: *expires_ms };
            }
        }
        true
    }
}

/// Length before content, so that no two lists of parts hash alike.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn associated(key: &Hash, request: &Hash) -> [u8; 64] {
    let mut both = [0; 64];
    both[..32].copy_from_slice(key);
    both[32..].copy_from_slice(request);
    both
}

fn write_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&(part.len() as u32).to_be_bytes());
    out.extend_from_slice(part);
}

fn read_part(plain: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(plain.get(..4)?.try_into().ok()?) as usize;
    let part = (plain.len() >= 4 + length).then(|| plain.slice(4..4 + length))?;
    *plain = plain.slice(4 + length..);
    Some(part)
}

fn read(mut plain: Bytes) -> Option<Kept> {
    let status = u16::from_be_bytes(plain.get(..2)?.try_into().ok()?);
    plain = plain.slice(2..);
    let mut head = read_part(&mut plain)?;
    let mut headers = Vec::new();
    while !head.is_empty() {
        let name = HeaderName::from_bytes(&read_part(&mut head)?).ok()?;
        headers.push((name, HeaderValue::from_maybe_shared(read_part(&mut head)?).ok()?));
    }
    Some(Kept { status, headers, body: plain })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::RequestId;
    use std::time::Duration;

    const CHAT: Endpoint = Endpoint::ChatCompletions;
    const BOUNDS: Idempotency =
        Idempotency { max_entries: 3, max_answer_bytes: 100 << 10, max_bytes: 200 << 10, keep: Duration::from_millis(1000) };

    fn id(number: u64) -> IdText {
        RequestId::new(number, 7).text()
    }

    const ASKED: Asked<'_> = Asked { account: "acme", key_id: "k1", idempotency_key: b"k", endpoint: CHAT, body: b"body" };

    fn begin(answers: &Arc<Answers>, key: &str, body: &str, number: u64, now_ms: u64) -> Begun {
        answers.begin(Asked { idempotency_key: key.as_bytes(), body: body.as_bytes(), ..ASKED }, id(number), now_ms)
    }

    fn first(answers: &Arc<Answers>, key: &str, number: u64, now_ms: u64) -> Keeping {
        match begin(answers, key, "body", number, now_ms) {
            Begun::First(keeping) => keeping,
            other => panic!("{}", told(&other)),
        }
    }

    fn answer(mut keeping: Keeping, body: &[u8], now_ms: u64) {
        let mut header = respond::header(200, 2);
        header.headers.append("x-a", HeaderValue::from_static("1"));
        header.headers.append("x-a", HeaderValue::from_static("2"));
        keeping.head(&header);
        body.chunks(7_000).for_each(|part| keeping.body(part));
        keeping.complete(now_ms);
    }

    fn told(begun: &Begun) -> String {
        match begun {
            Begun::First(_) => "first".into(),
            Begun::Again(kept) => format!("again {} {} {}", kept.status, kept.headers.len(), kept.body.len()),
            Begun::Conflict(what, id) => format!("{} {}", what.split([';', ',']).next().unwrap(), id.as_str()),
            Begun::Full => "full".into(),
        }
    }

    fn check(answers: &Arc<Answers>, key: &str, now_ms: u64, expected: &str) {
        assert_eq!(told(&begin(answers, key, "body", 99, now_ms)), expected);
    }

    #[test]
    fn an_answer_is_given_again_for_a_while() {
        let answers = Answers::new(BOUNDS);
        let keeping = first(&answers, "k", 1, 0);
        check(&answers, "k", 0, &format!("it is still running {}", id(1).as_str()));
        answer(keeping, b"hello", 10);
        let Begun::Again(kept) = begin(&answers, "k", "body", 2, 1009) else { panic!("not again") };
        let values: Vec<&str> = kept.headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
        assert_eq!((kept.status, values, &kept.body[..]), (200, vec!["1", "2"], &b"hello"[..]));
        assert_eq!(told(&begin(&answers, "k", "another", 3, 20)), format!("its body or path was another one {}", id(1).as_str()));
        assert_eq!(told(&answers.begin(Asked { key_id: "k2", ..ASKED }, id(3), 20)), "first");
        assert_eq!(told(&answers.begin(Asked { account: "other", ..ASKED }, id(3), 20)), "first");
        let elsewhere = answers.begin(Asked { endpoint: Endpoint::Messages, ..ASKED }, id(3), 20);
        assert_eq!(told(&elsewhere), format!("its body or path was another one {}", id(1).as_str()));
        check(&answers, "k", 1010, "first");
        assert_eq!(answers.inner.lock().bytes, 0);
    }

    #[test]
    fn what_was_not_completed_runs_anew() {
        let answers = Answers::new(BOUNDS);
        let mut keeping = first(&answers, "k", 1, 0);
        keeping.body(b"half an ans");
        assert!(answers.inner.lock().bytes > 0);
        drop(keeping);
        assert_eq!(answers.inner.lock().bytes, 0);
        check(&answers, "k", 0, "first");
    }

    #[test]
    fn bounds_hold_and_nothing_runs_twice_for_them() {
        let answers = Answers::new(BOUNDS);
        answer(first(&answers, "a", 1, 0), &[b'a'; 90_000], 0);
        answer(first(&answers, "b", 2, 0), &[b'b'; 90_000], 0);
        check(&answers, "a", 0, "again 200 2 90000");
        // The third needs room: the oldest answer goes, its id stays.
        answer(first(&answers, "c", 3, 0), &[b'c'; 90_000], 0);
        check(&answers, "a", 0, &format!("it was answered {}", id(1).as_str()));
        check(&answers, "b", 0, "again 200 2 90000");
        assert!(answers.inner.lock().bytes <= BOUNDS.max_bytes);
        // A fourth entry: the oldest is forgotten. One too large to keep leaves its id.
        answer(first(&answers, "d", 4, 0), &[b'd'; 200_000], 0);
        check(&answers, "d", 0, &format!("it was answered {}", id(4).as_str()));
        assert_eq!(answers.inner.lock().entries.len(), 3);
        let running = ["e", "f", "g"].map(|key| first(&answers, key, 5, 0));
        check(&answers, "h", 0, "full");
        drop(running);
        check(&answers, "h", 0, "first");
        assert_eq!(answers.inner.lock().bytes, 0);
    }

    #[test]
    fn what_is_kept_is_sealed() {
        let answers = Answers::new(BOUNDS);
        answer(first(&answers, "k", 1, 0), b"a secret that was said", 0);
        let (key, sealed) = {
            let inner = answers.inner.lock();
            let (key, entry) = inner.entries.iter().next().unwrap();
            let State::Kept { sealed, .. } = &entry.state else { panic!("not kept") };
            (*key, sealed.clone())
        };
        assert!(memchr::memmem::find(&sealed.bytes, b"secret").is_none());
        let request = hash(&[CHAT.path().as_bytes(), b"body"]);
        assert!(answers.open(&sealed, &key, &request).is_some());
        assert!(answers.open(&sealed, &key, &[0; 32]).is_none());
        assert!(Answers::new(BOUNDS).open(&sealed, &key, &request).is_none());
    }
}

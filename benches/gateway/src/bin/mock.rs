//! A provider that costs far less than any gateway before it: whole answers and event streams, as the request asks.
//!
//! `mock LISTEN [--sound]`. One thread, HTTP/1.1 with keep-alive, OpenAI's chat shape. The first message may begin with
//! `{{events=100 pause_ms=10 fault=none}}`: how many content events a stream has, the pause between them, and what goes wrong
//! (`s500`, `s429`: that status; `shut`: no answer; `half`: half of it). With `--sound` nothing does.
//!
//! Each event is a write of its own, as a provider that generates token by token sends them, and carries in its padding the time
//! at which it was made, so that the load generator can tell how long it was on its way.

use memchr::memmem;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A request head beyond this is not one of the load generator's.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Only this much of a body is searched for what it asks: the load generator puts it first.
const SEARCHED_BYTES: usize = 4 << 10;
/// The pending connections of the largest scenario, opened at once.
const BACKLOG: u32 = 16_384;

/// What a request asks for.
struct Asked {
    stream: bool,
    usage: bool,
    events: u32,
    pause: Duration,
    fault: Fault,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// An error answer in the place of the answer.
    Status(&'static str),
    /// The connection closes in the place of the answer.
    Shut,
    /// The connection closes in the midst of the answer.
    Half,
}

impl Asked {
    fn read(body: &[u8]) -> Asked {
        let body = &body[..body.len().min(SEARCHED_BYTES)];
        let mut asked = Asked {
            stream: is_true(body, b"\"stream\""),
            usage: is_true(body, b"\"include_usage\""),
            events: 100,
            pause: Duration::ZERO,
            fault: Fault::None,
        };
        let Some(at) = memmem::find(body, b"{{") else { return asked };
        let rest = &body[at + 2..];
        let Some(end) = memmem::find(rest, b"}}") else { return asked };
        for word in String::from_utf8_lossy(&rest[..end]).split_whitespace() {
            match word.split_once('=').map(|(name, value)| (name, value, value.parse())) {
                Some(("events", _, Ok(events))) => asked.events = events,
                Some(("pause_ms", _, Ok(pause))) => asked.pause = Duration::from_millis(u64::from(pause)),
                Some(("fault", "s500", _)) => asked.fault = Fault::Status("500 Internal Server Error"),
                Some(("fault", "s429", _)) => asked.fault = Fault::Status("429 Too Many Requests"),
                Some(("fault", "shut", _)) => asked.fault = Fault::Shut,
                Some(("fault", "half", _)) => asked.fault = Fault::Half,
                _ => {}
            }
        }
        asked
    }
}

fn is_true(body: &[u8], name: &[u8]) -> bool {
    memmem::find(body, name).is_some_and(|at| {
        let rest = body[at + name.len()..].trim_ascii_start();
        rest.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

/// Where a request's body ends.
enum Framing {
    Length(usize),
    Chunked,
}

/// A connection's requests, one after the other.
struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn fill(&mut self) -> std::io::Result<()> {
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next request's wishes; the request is taken out of the buffer whole.
    async fn request(&mut self) -> std::io::Result<Asked> {
        let head = loop {
            if let Some(at) = memmem::find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            self.fill().await?;
        };
        match framing(&self.buffer[..head]) {
            Framing::Length(length) => {
                let end = head + length;
                self.buffer.reserve(end.saturating_sub(self.buffer.len()));
                while self.buffer.len() < end {
                    self.fill().await?;
                }
                let asked = Asked::read(&self.buffer[head..end]);
                self.buffer.drain(..end);
                Ok(asked)
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                let mut at = head;
                loop {
                    let line = loop {
                        match memmem::find(&self.buffer[at..], b"\r\n") {
                            Some(end) => break at + end,
                            None => self.fill().await?,
                        }
                    };
                    let text = String::from_utf8_lossy(&self.buffer[at..line]);
                    let size = usize::from_str_radix(text.trim(), 16).map_err(|_| std::io::ErrorKind::InvalidData)?;
                    let end = line + 2 + size + 2;
                    while self.buffer.len() < end {
                        self.fill().await?;
                    }
                    body.extend_from_slice(&self.buffer[line + 2..line + 2 + size]);
                    at = end;
                    if size == 0 {
                        break;
                    }
                }
                self.buffer.drain(..at);
                Ok(Asked::read(&body))
            }
        }
    }

    async fn answer(&mut self, asked: &Asked, whole: &[u8]) -> std::io::Result<()> {
        match asked.fault {
            Fault::Status(status) => {
                let error = r#"{"error":{"message":"as asked","type":"server_error","code":null}}"#;
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nretry-after: 1\r\ncontent-length: {}\r\n\r\n{error}",
                    error.len()
                );
                self.socket.write_all(answer.as_bytes()).await
            }
            Fault::Shut => Err(std::io::ErrorKind::Other.into()),
            Fault::None | Fault::Half if asked.stream => self.stream(asked).await,
            Fault::None => self.socket.write_all(whole).await,
            Fault::Half => {
                self.socket.write_all(&whole[..whole.len() / 2]).await?;
                Err(std::io::ErrorKind::Other.into())
            }
        }
    }

    async fn stream(&mut self, asked: &Asked) -> std::io::Result<()> {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-request-id: req_mock\r\ntransfer-encoding: chunked\r\n\r\n";
        let begun = Instant::now();
        let mut out = String::from(HEAD);
        chunk(
            &mut out,
            asked,
            r#"{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}"#,
        );
        for index in 1..=asked.events {
            self.socket.write_all(out.as_bytes()).await?;
            out.clear();
            if asked.fault == Fault::Half && index > asked.events / 2 {
                return Err(std::io::ErrorKind::Other.into());
            }
            if asked.pause.is_zero() {
                // The others have their turn: a write each, and never one connection alone.
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep_until(begun + asked.pause * (index - 1)).await;
            }
            let word = WORDS[index as usize % WORDS.len()];
            let mut choice = String::with_capacity(96);
            let _ = write!(choice, r#"{{"index":0,"delta":{{"content":"{word}"}},"logprobs":null,"finish_reason":null}}"#);
            chunk(&mut out, asked, &choice);
        }
        self.socket.write_all(out.as_bytes()).await?;
        out.clear();
        chunk(&mut out, asked, r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#);
        if asked.usage {
            let usage = format!(
                r#"data: {FIELDS}"choices":[],"usage":{{"prompt_tokens":120,"completion_tokens":{events},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0}}}}}}{END}"#,
                events = asked.events,
                total = asked.events + 120,
            );
            let _ = write!(out, "{:x}\r\n{usage}\r\n", usage.len());
        }
        out.push_str("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        self.socket.write_all(out.as_bytes()).await
    }
}

/// What a stream says, a token an event.
const WORDS: [&str; 8] = [" water", " finds", " its", " level", " over", " the", " weir", ","];
const FIELDS: &str = r#"{"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_mock","#;
const END: &str = "\n\n";

/// Appends one event as one HTTP chunk.
fn chunk(out: &mut String, asked: &Asked, choice: &str) {
    let usage = if asked.usage { r#","usage":null"# } else { "" };
    // OpenAI pads its events with a field of this name.
    let padding = format!(r#","obfuscation":"@{:019}""#, now_ns());
    let length = "data: ".len()
        + FIELDS.len()
        + r#""choices":["#.len()
        + choice.len()
        + "]".len()
        + usage.len()
        + padding.len()
        + "}".len()
        + END.len();
    let _ = write!(out, "{length:x}\r\ndata: {FIELDS}\"choices\":[{choice}]{usage}{padding}}}{END}\r\n");
}

fn framing(head: &[u8]) -> Framing {
    let text = String::from_utf8_lossy(head);
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            return Framing::Length(value.trim().parse().unwrap_or(0));
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Framing::Chunked;
        }
    }
    Framing::Length(0)
}

/// A whole answer, 1.3 KB with its head, in the shape OpenAI gives.
fn whole_answer() -> Vec<u8> {
    let text = "Water finds its level, and what goes over the weir is counted. ".repeat(9);
    let body = format!(
        r#"{{"id":"chatcmpl-mock","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":120,"completion_tokens":118,"total_tokens":238,"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}},"service_tier":"default","system_fingerprint":"fp_mock"}}"#
    );
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_mock\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Nanoseconds since the Unix epoch: mock and load generator share the machine's clock.
fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

async fn serve(socket: TcpStream, whole: &'static [u8], is_sound: bool) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = Connection { socket, buffer: Vec::with_capacity(4 << 10) };
    loop {
        let mut asked = connection.request().await?;
        if is_sound {
            asked.fault = Fault::None;
        }
        connection.answer(&asked, whole).await?;
        // A large request's buffer is not kept for the connection's life.
        connection.buffer.shrink_to(1 << 20);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let Some(listen) = std::env::args().nth(1) else {
        eprintln!("usage: mock LISTEN [--sound]");
        std::process::exit(2);
    };
    let is_sound = std::env::args().any(|argument| argument == "--sound");
    let address: std::net::SocketAddr = listen.parse().map_err(std::io::Error::other)?;
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener: TcpListener = socket.listen(BACKLOG)?;
    let whole: &'static [u8] = whole_answer().leak();
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(serve(socket, whole, is_sound));
    }
}

//! An HTTP/1.1 answer read from pieces cut anywhere, and what must be true of it. No sockets here: the closed loop reads
//! asynchronously, the open loop blocks.

use memchr::{memchr, memmem};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What must be true of an answer.
#[derive(Clone, Copy)]
pub enum Expected {
    /// A whole answer with text and usage.
    Whole,
    /// An event stream with this many content events, a finish reason, usage if it was asked for, and its end mark.
    Stream { events: u32, usage: bool },
}

/// What is timed inside one answer.
#[derive(Default)]
pub struct Times {
    /// The first content event was here.
    pub first_event: Option<Instant>,
    /// From the provider's writing of each content event to its arrival, µs.
    pub transit_us: Vec<u32>,
}

enum State {
    Head,
    Length { left: usize },
    ChunkSize,
    ChunkData { left: usize },
    ChunkEnd,
    Trailer,
    Done,
}

/// One answer in the making.
pub struct Answer {
    state: State,
    /// What is not understood yet: a head, a chunk's size line.
    pending: Vec<u8>,
    status: u16,
    keeps: bool,
    body: Vec<u8>,
    bytes: u64,
    line: Vec<u8>,
    content: u32,
    finished: bool,
    usage: bool,
    error_event: bool,
    end_mark: bool,
    is_stream: bool,
    /// When things happened.
    pub times: Times,
}

impl Answer {
    /// Nothing read yet.
    pub fn new() -> Answer {
        Answer {
            state: State::Head,
            pending: Vec::new(),
            status: 0,
            keeps: true,
            body: Vec::new(),
            bytes: 0,
            line: Vec::new(),
            content: 0,
            finished: false,
            usage: false,
            error_event: false,
            end_mark: false,
            is_stream: false,
            times: Times::default(),
        }
    }

    /// Whether the answer is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the connection may carry another request.
    pub fn keeps_connection(&self) -> bool {
        self.keeps
    }

    /// Takes the next bytes in.
    pub fn feed(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            match &mut self.state {
                State::Done => return Err("bytes after the answer's end".into()),
                State::Head => {
                    self.pending.extend_from_slice(data);
                    let Some(at) = memmem::find(&self.pending, b"\r\n\r\n") else { return Ok(()) };
                    let pending = std::mem::take(&mut self.pending);
                    self.head(&pending[..at])?;
                    return self.feed(&pending[at + 4..]);
                }
                State::Length { left } => {
                    let (now, rest) = data.split_at(data.len().min(*left));
                    *left -= now.len();
                    if *left == 0 {
                        self.state = State::Done;
                    }
                    self.payload(now);
                    data = rest;
                }
                State::ChunkSize | State::Trailer | State::ChunkEnd => {
                    let Some(end) = memchr(b'\n', data) else {
                        self.pending.extend_from_slice(data);
                        return Ok(());
                    };
                    self.pending.extend_from_slice(&data[..end]);
                    data = &data[end + 1..];
                    let line = self.pending.trim_ascii();
                    let next = match self.state {
                        State::ChunkSize => {
                            let text = std::str::from_utf8(line).map_err(|_| "a chunk without a size")?;
                            match usize::from_str_radix(text, 16).map_err(|_| format!("chunk size {text:?}"))? {
                                0 => State::Trailer,
                                left => State::ChunkData { left },
                            }
                        }
                        State::Trailer if line.is_empty() => State::Done,
                        State::Trailer => State::Trailer,
                        _ => State::ChunkSize,
                    };
                    self.pending.clear();
                    self.state = next;
                }
                State::ChunkData { left } => {
                    let (now, rest) = data.split_at(data.len().min(*left));
                    *left -= now.len();
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                    self.payload(now);
                    data = rest;
                }
            }
        }
        Ok(())
    }

    fn head(&mut self, head: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        self.status = status.ok_or("an answer without a status line")?;
        self.state = State::Length { left: 0 };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => self.state = State::Length { left: value.parse().map_err(|_| "a bad content-length")? },
                "transfer-encoding" => self.state = State::ChunkSize,
                "connection" => self.keeps = !value.eq_ignore_ascii_case("close"),
                "content-type" => self.is_stream = value.starts_with("text/event-stream"),
                _ => {}
            }
        }
        if matches!(self.state, State::Length { left: 0 }) {
            self.state = State::Done;
        }
        Ok(())
    }

    fn payload(&mut self, mut data: &[u8]) {
        self.bytes += data.len() as u64;
        if !self.is_stream {
            self.body.extend_from_slice(data);
            return;
        }
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        while let Some(end) = memchr(b'\n', data) {
            if self.line.is_empty() {
                self.event(&data[..end], now_ns);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&data[..end]);
                self.event(&line, now_ns);
                line.clear();
                self.line = line;
            }
            data = &data[end + 1..];
        }
        self.line.extend_from_slice(data);
    }

    fn event(&mut self, line: &[u8], now_ns: u64) {
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.end_mark = true;
        } else if memmem::find(data, b"\"content\":\"").is_some_and(|at| data.get(at + 11) != Some(&b'"')) {
            let made_ns = memmem::find(data, b"\"@")
                .and_then(|at| data.get(at + 2..at + 21))
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| digits.parse::<u64>().ok());
            self.content += 1;
            if let Some(made_ns) = made_ns {
                self.times.transit_us.push((now_ns.saturating_sub(made_ns) / 1000) as u32);
            }
            self.times.first_event.get_or_insert_with(Instant::now);
        } else if data.starts_with(b"{\"error\"") {
            self.error_event = true;
        } else {
            self.finished |= memmem::find(data, b"\"stop\"").is_some();
            self.usage |= memmem::find(data, b"\"completion_tokens\"").is_some();
        }
    }

    /// Whether the finished answer tells its reader that something failed: an error status, or a stream that ends in an error
    /// event and without its end mark.
    pub fn shows_fault(&self) -> bool {
        if self.is_stream { self.error_event && !self.end_mark } else { self.status >= 400 }
    }

    /// Says what is wrong with the finished answer.
    pub fn check(&self, expected: Expected) -> Result<(), String> {
        if self.status != 200 {
            return Err(format!("status {}: {}", self.status, String::from_utf8_lossy(&self.body[..self.body.len().min(200)])));
        }
        let wrong = match expected {
            Expected::Whole if self.is_stream => "a stream, not a whole answer",
            Expected::Whole if memmem::find(&self.body, b"over the weir").is_none() => "an answer without its text",
            Expected::Whole if memmem::find(&self.body, b"\"completion_tokens\"").is_none() => "an answer without usage",
            Expected::Whole => return Ok(()),
            Expected::Stream { events, .. } if self.content != events => {
                return Err(format!("{} content events, not {events}", self.content));
            }
            Expected::Stream { .. } if !self.finished => "no finish_reason",
            Expected::Stream { .. } if !self.end_mark => "no [DONE]",
            Expected::Stream { usage, .. } if usage != self.usage => "a usage event too many or too few",
            Expected::Stream { .. } => return Ok(()),
        };
        Err(wrong.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 38\r\n\r\nover the weir {\"completion_tokens\": 1}";
    const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
        35\r\ndata: {\"content\":\" weir\",\"p\":\"@1760000000000000000\"}\n\r\n1\r\n\n\r\n\
        2a\r\ndata: {\"finish_reason\":\"stop\"}\n\ndata: [DON\r\n4\r\nE]\n\n\r\n0\r\n\r\n";

    fn check(bytes: &[u8], expected: Expected) {
        for cut in 0..bytes.len() {
            let mut answer = Answer::new();
            answer.feed(&bytes[..cut]).unwrap();
            assert!(!answer.is_done(), "done at {cut}");
            answer.feed(&bytes[cut..]).unwrap();
            assert!(answer.is_done(), "not done, cut at {cut}");
            answer.check(expected).unwrap();
        }
    }

    #[test]
    fn answers_cut_anywhere() {
        check(WHOLE, Expected::Whole);
        check(STREAM, Expected::Stream { events: 1, usage: false });
    }

    #[test]
    fn a_fault_shows_by_status_or_by_error_event() {
        let finished = |bytes: &[u8]| {
            let mut answer = Answer::new();
            answer.feed(bytes).unwrap();
            assert!(answer.is_done());
            answer.shows_fault()
        };
        assert!(!finished(WHOLE) && !finished(STREAM));
        assert!(finished(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\n{}"));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(finished(format!("{head}13\r\ndata: {{\"error\":1}}\n\n\r\n0\r\n\r\n").as_bytes()));
        assert!(!finished(format!("{head}21\r\ndata: {{\"error\":1}}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n").as_bytes()));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut answer = Answer::new();
        answer.feed(STREAM).unwrap();
        assert!(answer.check(Expected::Stream { events: 2, usage: false }).is_err());
        assert!(answer.check(Expected::Stream { events: 1, usage: true }).is_err());
        assert!(answer.check(Expected::Whole).is_err());
        assert!(answer.feed(b"more").is_err());
    }
}

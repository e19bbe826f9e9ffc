//! Server-sent events out of a byte stream that may be cut anywhere.
//!
//! The decoder partitions the stream: every byte belongs to exactly one block (an event, or comments and blank lines), so
//! that a caller can cut a block out and leave the rest as it came. An event that lies inside one chunk is borrowed from it;
//! one that does not is put together in a buffer that is used again. Line ends are CRLF, LF or CR; nothing else ends a line
//! (U+2028 and U+0085 do not). Deliberately absent: `id:` and `retry:`, which no provider's API uses.

use memchr::memchr2;

/// Events longer than this are not put together: their start and end are kept ([`Event::truncated`]), which is enough to find
/// a usage object at the end of an image or a long response. Text deltas are some hundred bytes.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// How much of a too long event's start is kept: the event's name and type.
const KEPT_HEAD_BYTES: usize = 4 << 10;
/// How much of a too long event's end is kept at least: the fields behind a large value, usage among them.
const KEPT_TAIL_BYTES: usize = 64 << 10;
/// A buffer that grew beyond this is given back after the event, so that an idle stream holds little.
const KEPT_CAPACITY_BYTES: usize = 8 << 10;
/// The byte order mark that may stand at the start of a stream.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// One event's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The `event:` field; empty when there is none.
    pub name: &'a [u8],
    /// The `data:` lines, joined by a line feed. Of a truncated event: its start and its end.
    pub data: &'a [u8],
    /// The event was longer than [`MAX_EVENT_BYTES`]; `data` lacks its middle.
    pub truncated: bool,
}

/// A push decoder. It looks at each byte once, whatever the cuts.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The bytes so far of a block that began in an earlier chunk.
    carry: Vec<u8>,
    /// The joined data of an event with several `data:` lines.
    joined: Vec<u8>,
    /// The length of the current block's bytes before the current chunk (may exceed what `carry` holds).
    carried_bytes: usize,
    /// The current line has bytes before the current chunk.
    in_line: bool,
    /// The last byte was a CR: a LF that follows belongs to the same line end.
    after_cr: bool,
    /// The last call closed a block; `carry` is cleared by the next one.
    closed: bool,
    /// A block was closed before, so no byte order mark can come any more.
    begun: bool,
}

impl Decoder {
    /// Whether `chunk` starts with the line feed that completes the CRLF which closed the last block. That byte belongs to the
    /// last block; start reading at 1. Call once, before [`Decoder::next`], on each chunk.
    pub fn takes_line_feed(&mut self, chunk: &[u8]) -> bool {
        if !(self.after_cr && self.closed) || chunk.is_empty() {
            return false;
        }
        self.after_cr = false;
        chunk[0] == b'\n'
    }

    /// Reads `chunk` from `at` to the end of the next block and moves `at` there. `None`: the chunk ends inside a block (`at` is
    /// its end). `Some(None)`: a block without data, such as a comment.
    pub fn next<'a>(&'a mut self, chunk: &'a [u8], at: &mut usize) -> Option<Option<Event<'a>>> {
        let start = *at;
        if start >= chunk.len() {
            return None;
        }
        self.open();
        let mut position = start;
        loop {
            if self.after_cr && position < chunk.len() {
                self.after_cr = false;
                if chunk[position] == b'\n' {
                    position += 1;
                }
            }
            let Some(offset) = memchr2(b'\n', b'\r', &chunk[position..]) else {
                self.in_line |= position < chunk.len();
                self.keep(&chunk[start..]);
                *at = chunk.len();
                return None;
            };
            let blank = offset == 0 && !self.in_line;
            self.in_line = false;
            position += offset + 1;
            self.after_cr = chunk[position - 1] == b'\r';
            if blank {
                if self.after_cr && chunk.get(position) == Some(&b'\n') {
                    self.after_cr = false;
                    position += 1;
                }
                *at = position;
                return Some(self.close(&chunk[start..position]));
            }
        }
    }

    /// The last block of a stream that ended without a blank line, if it has data. Empty afterwards.
    pub fn end(&mut self) -> Option<Event<'_>> {
        self.open();
        self.in_line = false;
        self.close(b"")
    }

    /// Keeps `chunk` without looking for events: a body that is no event stream, bounded like an event.
    pub fn absorb(&mut self, chunk: &[u8]) {
        self.keep(chunk);
    }

    /// What was absorbed, and whether its middle is missing.
    pub fn absorbed(&self) -> (&[u8], bool) {
        (&self.carry, self.carried_bytes > MAX_EVENT_BYTES)
    }

    /// Forgets the block the last call closed.
    fn open(&mut self) {
        if !self.closed {
            return;
        }
        self.closed = false;
        self.carried_bytes = 0;
        for buffer in [&mut self.carry, &mut self.joined] {
            if buffer.capacity() > KEPT_CAPACITY_BYTES {
                *buffer = Vec::new();
            }
            buffer.clear();
        }
    }

    /// Appends to the carried block; of a too long one only head and tail stay.
    fn keep(&mut self, bytes: &[u8]) {
        self.carried_bytes += bytes.len();
        self.carry.extend_from_slice(bytes);
        if self.carried_bytes > MAX_EVENT_BYTES && self.carry.len() > KEPT_HEAD_BYTES + 2 * KEPT_TAIL_BYTES {
            self.carry.drain(KEPT_HEAD_BYTES..self.carry.len() - KEPT_TAIL_BYTES);
        }
    }

    /// Ends the block with `rest` and reads its fields.
    fn close<'a>(&'a mut self, rest: &'a [u8]) -> Option<Event<'a>> {
        self.closed = true;
        let first = !std::mem::replace(&mut self.begun, true);
        let truncated = self.carried_bytes + rest.len() > MAX_EVENT_BYTES;
        let block = if self.carried_bytes == 0 && !truncated {
            rest
        } else {
            self.keep(rest);
            &self.carry
        };
        let block = if first { block.strip_prefix(BOM).unwrap_or(block) } else { block };
        fields(block, truncated, &mut self.joined)
    }
}

/// Reads the lines of a block. `None`: no data.
fn fields<'a>(block: &'a [u8], truncated: bool, joined: &'a mut Vec<u8>) -> Option<Event<'a>> {
    let mut name: &[u8] = b"";
    let mut data: Option<&[u8]> = None;
    let mut rest = block;
    while !rest.is_empty() {
        let (line, after) = match memchr2(b'\n', b'\r', rest) {
            // The empty line between CR and LF of a CRLF is skipped like any other.
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        if let Some(value) = field(line, b"data") {
            match data {
                None => data = Some(value),
                Some(first) => {
                    if joined.is_empty() {
                        joined.extend_from_slice(first);
                        data = Some(b"");
                    }
                    joined.push(b'\n');
                    joined.extend_from_slice(value);
                }
            }
        } else if let Some(value) = field(line, b"event") {
            name = value;
        }
    }
    let data = data?;
    Some(Event { name, data: if joined.is_empty() { data } else { joined }, truncated })
}

/// The value of `line` if its field is `name`: behind the colon and one optional space.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(b""),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream decodes to: `name|data` of each event and, in total, how many bytes its blocks had.
    fn decode(chunks: &[&[u8]]) -> (Vec<String>, usize) {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        let mut bytes = 0;
        let show = |event: Event<'_>| format!("{}|{}", String::from_utf8_lossy(event.name), String::from_utf8_lossy(event.data));
        for chunk in chunks {
            let mut at = usize::from(decoder.takes_line_feed(chunk));
            while let Some(block) = decoder.next(chunk, &mut at) {
                events.extend(block.map(show));
            }
            bytes += at;
        }
        events.extend(decoder.end().map(show));
        (events, bytes)
    }

    /// The stream gives `expected` whole, cut once anywhere, byte by byte, and with each kind of line end.
    fn check(stream: &str, expected: &[&str]) {
        for line_end in ["\n", "\r\n", "\r"] {
            let stream = stream.replace('\n', line_end).into_bytes();
            let want = (expected.iter().map(|event| event.to_string()).collect::<Vec<_>>(), stream.len());
            for cut in 0..=stream.len() {
                assert_eq!(decode(&[&stream[..cut], &stream[cut..]]), want, "{line_end:?} cut at {cut}");
            }
            assert_eq!(decode(&stream.chunks(1).collect::<Vec<_>>()), want, "{line_end:?} byte by byte");
            assert_eq!(decode(&stream.chunks(3).collect::<Vec<_>>()), want, "{line_end:?} by threes");
        }
    }

    #[test]
    fn events_come_out_whole_whatever_the_cut() {
        check("data: a\n\ndata: b\n\n", &["|a", "|b"]);
        check("event: ping\ndata: {}\n\n", &["ping|{}"]);
        check("data: {}\nevent: late\n\n", &["late|{}"]);
        check("data:no space\n\ndata:  two\n\n", &["|no space", "| two"]);
        check(": comment\n\n:\n\ndata: a\n\n", &["|a"]);
        check(": with an event\ndata: a\n\n", &["|a"]);
        check("data: one\ndata: two\ndata\ndata: four\n\n", &["|one\ntwo\n\nfour"]);
        check("data: one\ndata: two\n\ndata: single\n\n", &["|one\ntwo", "|single"]);
        check("\n\n\ndata: a\n\n\n\n\ndata: b\n\n", &["|a", "|b"]);
        check("\u{feff}data: a\n\ndata: \u{feff}\n\n", &["|a", "|\u{feff}"]);
        check("data: first\n\ndata: no blank line\n", &["|first", "|no blank line"]);
        check("data: no line end", &["|no line end"]);
        check("data: caf\u{e9} \u{1f600} \u{2028} \u{85}\n\n", &["|caf\u{e9} \u{1f600} \u{2028} \u{85}"]);
        check("id: 7\nretry: 5\ndatabase: no\nevent: only\n\n", &[]);
        check("data:\n\n", &["|"]);
        check("", &[]);
    }

    #[test]
    fn line_ends_may_be_mixed() {
        for (stream, expected) in [
            (&b"data: a\r\n\ndata: b\n\r\n"[..], vec!["|a", "|b"]),
            (b"data: a\r\rdata: b\r\n\r\n", vec!["|a", "|b"]),
            (b"data: a\n\r\ndata: b\r\n\rdata: c\r\r\n", vec!["|a", "|b", "|c"]),
        ] {
            for cut in 0..=stream.len() {
                let (events, bytes) = decode(&[&stream[..cut], &stream[cut..]]);
                assert_eq!((events, bytes), (expected.iter().map(|event| event.to_string()).collect(), stream.len()), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_too_long_event_keeps_its_start_and_end_in_bounded_memory() {
        let mut stream = b"event: big\ndata: {\"type\":\"big\",\"image\":\"".to_vec();
        stream.resize(stream.len() + 2 * MAX_EVENT_BYTES, b'A');
        stream.extend_from_slice(b"\",\"usage\":{}}\n\ndata: next\n\n");
        for size in [7, 4096, stream.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                let mut at = 0;
                while let Some(block) = decoder.next(chunk, &mut at) {
                    let event = block.expect("both blocks have data");
                    seen.push((
                        event.truncated,
                        event.name.to_vec(),
                        event.data.starts_with(b"{\"type\":\"big\""),
                        event.data.ends_with(b"\"usage\":{}}"),
                    ));
                    assert!(event.data.len() <= MAX_EVENT_BYTES + size.min(4096), "held {}", event.data.len());
                }
            }
            assert_eq!(seen, [(true, b"big".to_vec(), true, true), (false, b"".to_vec(), false, false)], "in chunks of {size}");
            assert!(decoder.end().is_none());
            assert!(decoder.carry.capacity() <= KEPT_CAPACITY_BYTES, "the large buffer is given back");
        }
    }
}

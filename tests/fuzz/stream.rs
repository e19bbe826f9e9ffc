//! The event decoder and the stream meter: what they see does not depend on where the stream was cut, and a stream nothing is to
//! be taken out of goes out as it came.

use bytes::Bytes;
use weir::engine::dialect::Endpoint;
use weir::engine::meter::{StreamMeter, Watch};
use weir::engine::provider::Kind;
use weir::engine::sse::Decoder;
use weir::engine::tokens::{Encoding, Family};

pub const WORDS: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\r\n\r\n",
    "\r\r",
    ":",
    ": ping\n\n",
    "data:",
    "data: ",
    "\ndata: ",
    "event: ",
    "id: 1\n",
    "\u{feff}",
    "\u{2028}",
    "data: [DONE]\n\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u00e9",
    "\\ud83d",
    "é",
    "😀",
    "null",
    "0",
    "-1",
    "18446744073709551615",
    "1e5",
    "\"usage\":{",
    "\"prompt_tokens\":9,",
    "\"completion_tokens\":9",
    "\"choices\":[]",
    "\"finish_reason\":\"stop\"",
    "\"delta\":{\"content\":\"x\"}",
    "\"error\":{",
    "\"type\":\"message_stop\"",
    "data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":3}}\n\n",
    "\"cost\":0.00012",
    "\"service_tier\":\"flex\"",
    "<|endoftext|>",
];

/// A stream behind a byte that says whose it is.
pub fn stream(input: &[u8]) -> String {
    let (who, stream) = input.split_first().unwrap_or((&b'a', b""));
    let (endpoint, kind) = match who % 4 {
        1 => (Endpoint::ChatCompletions, Kind::OpenAi),
        2 => (Endpoint::Messages, Kind::Anthropic),
        3 => (Endpoint::Responses, Kind::OpenAi),
        _ => (Endpoint::ChatCompletions, Kind::OpenRouter),
    };
    let whole = decoded(&[stream]);
    // Cuts that depend on the input alone: at every byte, and in pieces of changing size.
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    let pieces = pieces(stream);
    assert_eq!(decoded(&bytes), whole, "cut at every byte");
    assert_eq!(decoded(&pieces), whole, "cut in pieces");
    let family = Family { encoding: Encoding::O200k, per_mille: 1000 };
    let mut said = String::new();
    for strip_usage in [false, true] {
        let watch = Watch { endpoint, kind, family, strip_usage };
        let (out, seen) = metered(watch, &[stream]);
        for chunks in [&bytes, &pieces] {
            let (cut_out, cut_seen) = metered(watch, chunks);
            assert_eq!(cut_seen, seen, "the cuts change what is seen");
            // Of a usage event whose start went out already the rest has to follow, so cuts may leave more in.
            assert!(cut_out.len() >= out.len() && cut_out.len() <= stream.len());
            assert!(strip_usage || cut_out == stream, "the cuts change what goes out");
        }
        assert!(strip_usage || out == stream, "not what came in");
        said = format!("{} {}", out.len() == stream.len(), seen.kind);
    }
    said
}

/// What a meter saw: all of it, and the kind of it for telling inputs apart.
#[derive(Debug, PartialEq)]
struct Seen {
    all: String,
    kind: String,
}

fn metered(watch: Watch, chunks: &[&[u8]]) -> (Vec<u8>, Seen) {
    let mut meter = StreamMeter::new(watch);
    let mut out = Vec::new();
    for chunk in chunks {
        meter.feed(Bytes::copy_from_slice(chunk), &mut out);
    }
    meter.flush(&mut out);
    let (events, ended, at_most) = (meter.events(), meter.ended(), meter.output_at_most());
    let (mut tally, mut text) = meter.finish();
    tally.count(9, &mut text);
    let kind = format!("{:?} {ended} {} {:?} {}", tally.source, tally.reported, tally.error.is_some(), tally.inconsistent);
    (out.concat(), Seen { all: format!("{events} {at_most} {tally:?} {}", text.finish()), kind })
}

/// The events of a stream: name, data, truncated.
fn decoded(chunks: &[&[u8]]) -> Vec<(Vec<u8>, Vec<u8>, bool)> {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    for chunk in chunks {
        let mut at = usize::from(decoder.takes_line_feed(chunk));
        while let Some(block) = decoder.next(chunk, &mut at) {
            events.extend(block.map(|event| (event.name.to_vec(), event.data.to_vec(), event.truncated)));
        }
        assert_eq!(at, chunk.len(), "all of a chunk is taken");
    }
    events.extend(decoder.end().map(|event| (event.name.to_vec(), event.data.to_vec(), event.truncated)));
    events
}

fn pieces(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut size = stream.len() % 7;
    while !stream.is_empty() {
        let (piece, rest) = stream.split_at(size.min(stream.len()));
        pieces.push(piece);
        stream = rest;
        size = (size * 5 + 3) % 61;
    }
    pieces
}

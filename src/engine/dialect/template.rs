//! Most events of a stream are their predecessor with another text. Such an event is recognized instead of read: the bytes around
//! its texts are compared, which takes a fifth of the instructions.
//!
//! That is the same as reading it: up to a text, and from its closing quote on, equal bytes are read in the same way, and what an
//! event tells besides its texts (a model, a finish reason, an error) is told by the second one only what it already was by the first.
//! An event of which that is not so (one with usage) is no template.

use super::scan::string_end;
use std::ops::Range;

/// Places in which an event may differ from its predecessor. OpenAI's Responses have three: the sequence number, the text and the
/// padding that hides its length.
const HOLES_MAX: usize = 3;
/// An event longer than this is no template. A delta has some hundred bytes.
const DATA_BYTES_MAX: usize = 2 << 10;

/// What stands in a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// A string: generated text.
    Text,
    /// A string that nobody reads.
    Padding,
    /// Digits that nobody reads.
    Count,
}

/// The holes of one event.
#[derive(Debug, Clone, Default)]
pub struct Holes {
    /// What stands there, and the address of its bytes and their number: the one thing that tells where a slice was cut out.
    found: [Option<(Hole, usize, usize)>; HOLES_MAX],
    /// There are more.
    is_over: bool,
}

impl Holes {
    /// Notes a hole. `raw` is a slice of the event's data.
    #[inline]
    pub fn note(&mut self, hole: Hole, raw: &[u8]) {
        match self.found.iter_mut().find(|place| place.is_none()) {
            Some(free) => *free = Some((hole, raw.as_ptr().addr(), raw.len())),
            None => self.is_over = true,
        }
    }
}

/// An event that was read, to recognize the next ones.
#[derive(Debug, Default)]
pub struct Template {
    name: Vec<u8>,
    data: Vec<u8>,
    /// In the order of their places in `data`; none: this is no template.
    holes: [Option<(Hole, Range<usize>)>; HOLES_MAX],
}

/// The generated texts of an event, as written in its JSON strings.
pub type Texts<'a> = [Option<&'a [u8]>; HOLES_MAX];

impl Template {
    /// No event is like this any more.
    #[inline]
    pub fn clear(&mut self) {
        self.holes = Default::default();
    }

    /// Takes an event that was read. It has to have a text, else this is no template.
    pub fn set(&mut self, name: &[u8], data: &[u8], holes: &Holes) {
        self.clear();
        if holes.is_over || data.len() > DATA_BYTES_MAX || name.len() > DATA_BYTES_MAX {
            return;
        }
        let mut has_text = false;
        let mut placed = self.holes.clone();
        for (place, found) in placed.iter_mut().zip(&holes.found) {
            let Some((hole, address, length)) = *found else { break };
            // A slice of anything else is in no place here.
            let Some(start) = address.checked_sub(data.as_ptr().addr()).filter(|start| start + length <= data.len()) else { return };
            has_text |= hole == Hole::Text;
            *place = Some((hole, start..start + length));
        }
        placed.sort_unstable_by_key(|place| place.as_ref().map_or(usize::MAX, |(_, at)| at.start));
        let is_apart = placed.windows(2).all(|two| match two {
            [Some((_, one)), Some((_, next))] => one.end < next.start,
            _ => true,
        });
        if !(has_text && is_apart) {
            return;
        }
        self.holes = placed;
        for (kept, new) in [(&mut self.name, name), (&mut self.data, data)] {
            kept.clear();
            kept.extend_from_slice(new);
        }
    }

    /// The texts of an event that differs from this one in its holes alone.
    #[inline]
    pub fn texts<'a>(&self, name: &[u8], data: &'a [u8]) -> Option<Texts<'a>> {
        if self.holes[0].is_none() || name != self.name {
            return None;
        }
        let mut texts = Texts::default();
        let (mut at, mut after) = (0, 0);
        for (text, place) in texts.iter_mut().zip(&self.holes) {
            let Some((hole, place)) = place else { break };
            let before = &self.data[after..place.start];
            if !data[at..].starts_with(before) {
                return None;
            }
            let start = at + before.len();
            (at, after) = (hole.end(data, start)?, place.end);
            *text = (*hole == Hole::Text).then(|| &data[start..at]);
        }
        (data[at..] == self.data[after..]).then_some(texts)
    }
}

impl Hole {
    /// Where a hole that begins at `start` ends; `None`: what is there does not end, or does not belong there.
    #[inline]
    fn end(self, data: &[u8], start: usize) -> Option<usize> {
        match self {
            Hole::Text | Hole::Padding => string_end(data, start),
            Hole::Count => {
                let digits = data[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                (digits > 0).then_some(start + digits)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::dialect::reading::Reading;
    use crate::engine::dialect::{Endpoint, Seen, event};
    use crate::engine::sse::Event;
    use crate::engine::tokens;
    use proptest::prelude::*;

    const CHAT: &str =
        r#"{"id":"c-1","model":"M","choices":[{"index":0,"delta":{"content":"T"},"finish_reason":F}],"usage":U,"obfuscation":"P"}"#;
    const REASONING: &str =
        r#"{"model":"M","choices":[{"delta":{"reasoning":"T","reasoning_content":"T"}},{"delta":{"content":"T"}}],"error":E}"#;
    const CALL: &str =
        r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"T","arguments":"T"}}],"refusal":"T","content":"T"}}],"model":"M"}"#;
    const COMPLETION: &str = r#"{"model":"M","choices":[{"text":"T","finish_reason":F}],"usage":U}"#;
    const RESPONSE: &str = r#"{"type":"response.K.delta","sequence_number":N,"delta":"T","logprobs":[],"obfuscation":"P"}"#;
    const MESSAGE: &str = r#"{"type":"content_block_delta","index":N,"delta":{"type":"text_delta","text":"T","stop_reason":F},"usage":U}"#;
    const USAGE: &str = r#"{"prompt_tokens":19,"completion_tokens":7,"input_tokens":19,"output_tokens":7}"#;

    /// Everything that an answer's events told.
    fn told(reading: &mut Reading) -> impl PartialEq + std::fmt::Debug + use<> {
        let text = reading.take_text().map(|mut text| text.finish());
        let of_text = (reading.text_bytes, text, reading.is_output_reported());
        let names = (reading.model.clone(), reading.service_tier.clone(), reading.error.clone());
        (of_text, names, format!("{:?}", reading.reported), reading.finished, reading.ended)
    }

    /// Reads events, each for itself if not `together`; also how many were not read but recognized.
    fn read(endpoint: Endpoint, events: &[(&str, String)], together: bool) -> (impl PartialEq + std::fmt::Debug + use<>, Vec<Seen>, usize) {
        let mut reading = Reading::of_stream(endpoint, tokens::family("gpt-4o"));
        let mut recognized = 0;
        let seen = events.iter().map(|(name, data)| {
            if !together {
                reading.begin_event();
            }
            recognized += usize::from(reading.template.texts(name.as_bytes(), data.as_bytes()).is_some());
            event(&Event { name: name.as_bytes(), data: data.as_bytes(), truncated: false }, &mut reading)
        });
        let seen = seen.collect();
        (told(&mut reading), seen, recognized)
    }

    fn check(endpoint: Endpoint, events: &[(&str, String)]) -> usize {
        let (one, one_seen, recognized) = read(endpoint, events, true);
        let (other, other_seen, _) = read(endpoint, events, false);
        assert_eq!(one, other, "{events:?}");
        assert_eq!(one_seen, other_seen, "{events:?}");
        recognized
    }

    /// A shape that tells nothing but text.
    fn plain(shape: &str) -> String {
        let shape = shape.replace(":F", ":null").replace(":U", ":null").replace(":E", ":null");
        shape.replace('M', "m").replace('K', "output_text")
    }

    fn one_of(words: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
        prop::sample::select(words)
    }

    fn an_event() -> impl Strategy<Value = (&'static str, String)> {
        let shape = one_of(&[CHAT, CHAT, CHAT, REASONING, CALL, COMPLETION, RESPONSE, MESSAGE, "[DONE]"]);
        let text = one_of(&[
            "a",
            "a\\\"b",
            "\\\\",
            "",
            "\\u00e9\\n",
            "over the weir, and a longer text than a vector has bytes: 0123456789",
            "\\",
        ]);
        let rest = (
            one_of(&["m", "m", "m", "n"]),
            one_of(&["null", "null", "null", "\"stop\""]),
            one_of(&["null", "null", "null", USAGE, "{}"]),
            one_of(&["null", "null", "\"no\"", "{\"message\":\"no\"}"]),
            one_of(&["0", "17", "-1", "x"]),
            one_of(&["output_text", "output_text", "audio"]),
            one_of(&["", "padding", "\\\""]),
        );
        let name = one_of(&["", "", "response.output_text.delta", "ping"]);
        (shape, name, text, rest, 0usize..400).prop_map(|(shape, name, text, rest, cut)| {
            let (model, finish, usage, error, number, kind, padding) = rest;
            let mut data = shape
                .replace('T', text)
                .replace('M', model)
                .replace('F', finish)
                .replace('U', usage)
                .replace(":E", &format!(":{error}"))
                .replace(":N", &format!(":{number}"))
                .replace('K', kind)
                .replace('P', padding);
            // Now and then one is cut off.
            if cut < 20 {
                data.truncate(data.floor_char_boundary(cut * 8));
            }
            (name, data)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn recognizing_an_event_is_reading_it(
            endpoint in prop::sample::select(vec![Endpoint::ChatCompletions, Endpoint::Completions, Endpoint::Responses, Endpoint::Messages]),
            events in prop::collection::vec((an_event(), 1usize..4), 1..12),
        ) {
            let events: Vec<_> = events.into_iter().flat_map(|(event, times)| std::iter::repeat_n(event, times)).collect();
            check(endpoint, &events);
        }
    }

    #[test]
    fn what_differs_in_its_texts_alone_is_recognized() {
        for (endpoint, shape) in [
            (Endpoint::ChatCompletions, CHAT),
            (Endpoint::ChatCompletions, REASONING),
            (Endpoint::Completions, COMPLETION),
            (Endpoint::Responses, RESPONSE),
            (Endpoint::Messages, MESSAGE),
        ] {
            let texts = ["one", "two \\\"three\\\"", "", "a text that is longer than a vector has bytes, by far"];
            // Half of REASONING's texts are nobody's: they stay as they are.
            let events: Vec<_> = texts
                .iter()
                .enumerate()
                .map(|(number, text)| {
                    let text = if shape == REASONING { "same" } else { text };
                    // Anthropic's number is the index of a block, and another block is another event.
                    let number = if shape == MESSAGE { 0 } else { number * 7 };
                    ("", plain(shape).replace('T', text).replace(":N", &format!(":{number}")).replace('P', text))
                })
                .collect();
            assert_eq!(check(endpoint, &events), texts.len() - 1, "{shape}");
            // An event in between is another template, whatever it tells.
            for between in [r#"{"model":"other"}"#, r#"{"choices":[],"usage":{"completion_tokens":1}}"#, "{", "[DONE]"] {
                let mut events = events.clone();
                events.insert(2, ("", between.to_string()));
                assert_eq!(check(endpoint, &events), texts.len() - 2, "{shape} {between}");
            }
            // So is one with another name.
            let mut events = events.clone();
            events[1].0 = "other";
            assert_eq!(check(endpoint, &events), texts.len() - 3, "{shape}");
        }
    }

    #[test]
    fn events_that_tell_more_than_text_are_read() {
        let usage = plain(&CHAT.replace(":U", &format!(":{USAGE}")));
        // Four texts are too many.
        for (endpoint, data) in
            [(Endpoint::ChatCompletions, usage), (Endpoint::ChatCompletions, plain(CALL)), (Endpoint::Images, plain(CHAT))]
        {
            assert_eq!(check(endpoint, &[("", data.clone()), ("", data.clone()), ("", data)]), 0);
        }
        let long = |text: &str| plain(CHAT).replace('T', &text.repeat(super::DATA_BYTES_MAX));
        assert_eq!(check(Endpoint::ChatCompletions, &[("", long("a")), ("", long("b"))]), 0, "a long event is no template");
    }
}

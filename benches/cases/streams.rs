//! Streams and answers through the decoder and the meter, from the first byte to the tally.

use super::PROSE;
use bytes::Bytes;
use std::hint::black_box;
use weir::engine::dialect::Endpoint;
use weir::engine::meter::{self, StreamMeter, Watch};
use weir::engine::provider::Kind;
use weir::engine::sse::Decoder;
use weir::engine::tokens;

/// The decoder alone.
pub fn decode(deltas: usize) -> Box<dyn FnMut()> {
    let events = chat_events(deltas);
    Box::new(move || {
        let mut decoder = Decoder::default();
        for event in &events {
            let mut at = 0;
            while let Some(block) = decoder.next(black_box(event.as_bytes()), &mut at) {
                black_box(block);
            }
        }
    })
}

/// A chat stream, in chunks of one event or of `chunk_bytes`.
pub fn chat(deltas: usize, chunk_bytes: usize) -> Box<dyn FnMut()> {
    meter(Endpoint::ChatCompletions, Kind::OpenAi, chat_events(deltas), chunk_bytes, false)
}

/// A chat stream whose tokens are counted after each event, as near the end of what a reservation covers.
pub fn counted(deltas: usize) -> Box<dyn FnMut()> {
    meter(Endpoint::ChatCompletions, Kind::OpenAi, chat_events(deltas), usize::MAX, true)
}

/// A messages stream, in chunks of one event.
pub fn messages(deltas: usize) -> Box<dyn FnMut()> {
    meter(Endpoint::Messages, Kind::Anthropic, messages_events(deltas), usize::MAX, false)
}

/// A whole chat answer of about `size` bytes, its usage reported.
pub fn whole(size: usize) -> Box<dyn FnMut()> {
    let content = PROSE.repeat(size / PROSE.len());
    let body = format!(
        "{{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":20,\"completion_tokens\":4000,\"total_tokens\":4020}}}}"
    );
    let watch = Watch { endpoint: Endpoint::ChatCompletions, kind: Kind::OpenAi, family: tokens::family("gpt-4o"), strip_usage: false };
    Box::new(move || {
        black_box(meter::whole(&watch, black_box(body.as_bytes())).expect("a good answer"));
    })
}

/// A stream from its first byte to its tally, in chunks of one event or of `chunk_bytes`.
fn meter(endpoint: Endpoint, kind: Kind, events: Vec<String>, chunk_bytes: usize, is_counted: bool) -> Box<dyn FnMut()> {
    let chunks: Vec<Bytes> = if chunk_bytes == usize::MAX {
        events.into_iter().map(Bytes::from).collect()
    } else {
        events.concat().into_bytes().chunks(chunk_bytes).map(Bytes::copy_from_slice).collect()
    };
    let watch = Watch { endpoint, kind, family: tokens::family("gpt-4o"), strip_usage: true };
    let mut out = Vec::with_capacity(8);
    Box::new(move || {
        let mut meter = StreamMeter::new(watch);
        for chunk in &chunks {
            meter.feed(black_box(chunk.clone()), &mut out);
            out.clear();
            if is_counted {
                black_box(meter.output_counted());
            }
        }
        let (tally, _) = meter.finish();
        assert!(tally.reported && tally.ended);
        black_box(tally);
    })
}

/// A chat stream of `deltas` words as OpenAI sends it, its usage event and its end mark.
fn chat_events(deltas: usize) -> Vec<String> {
    let head = "data: {\"id\":\"chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG\",\"object\":\"chat.completion.chunk\",\"created\":1741570283,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_44709d6fcb\",";
    let mut events: Vec<String> = words(deltas)
        .map(|word| format!("{head}\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word} \"}},\"logprobs\":null,\"finish_reason\":null}}],\"usage\":null,\"obfuscation\":\"dQw4w9\"}}\n\n"))
        .collect();
    events.push(format!(
        "{head}\"choices\":[{{\"index\":0,\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\"usage\":null}}\n\n"
    ));
    events.push(format!(
        "{head}\"choices\":[],\"usage\":{{\"prompt_tokens\":19,\"completion_tokens\":{deltas},\"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":0,\"audio_tokens\":0}}}}}}\n\n",
        deltas + 19
    ));
    events.push("data: [DONE]\n\n".to_string());
    events
}

/// The same as Anthropic sends it.
fn messages_events(deltas: usize) -> Vec<String> {
    let mut events = vec!["event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"model\":\"claude-sonnet-4\",\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n".to_string()];
    events.extend(words(deltas).map(|word| format!("event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{word} \"}}}}\n\n")));
    events.push(format!("event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\"}},\"usage\":{{\"output_tokens\":{deltas}}}}}\n\n"));
    events.push("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_string());
    events
}

fn words(count: usize) -> impl Iterator<Item = &'static str> {
    PROSE.split(' ').filter(|word| !word.is_empty()).cycle().take(count)
}

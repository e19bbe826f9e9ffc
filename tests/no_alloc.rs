//! The chunk path allocates nothing per event: whole events, events cut anywhere, every format, with the usage event taken out.
//!
//! The allocator here counts the calls of this thread, which needs `unsafe`; nothing else in the crate does.
// What a test cannot go on without fails it.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(unsafe_code)]

use bytes::Bytes;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use weir::engine::dialect::Endpoint;
use weir::engine::meter::{StreamMeter, Watch};
use weir::engine::provider::Kind;
use weir::engine::tokens;

struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it came; the counter is thread-local, constant-initialised and
// without a destructor, so that touching it does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CHAT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"openai\\/gpt-4o\",\"service_tier\":\"default\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" w\\u00f6rd \\\"x\\\"\"},\"finish_reason\":null}],\"usage\":null}\n\n";
const CHAT_WITH_USAGE: &str = "data: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":9,\"total_tokens\":14,\"cost\":0.0001}}\n\n";
const CHAT_TOOL: &str = "data: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\":\"}}]}}]}\n\n";
const MULTI_LINE: &str = ": comment\r\nid: 1\r\ndata: {\"model\":\"m\",\"choices\":[{\"delta\":\r\ndata: {\"content\":\" two\"}}]}\r\n\r\n";
const COMMENT: &str = ": OPENROUTER PROCESSING\n\n";
const RESPONSES: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":3,\"item_id\":\"msg_1\",\"delta\":\" word\",\"logprobs\":[]}\n\n";
const ANTHROPIC: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" word\"}}\n\n";
const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// Allocations of a thousand events after the first few (which bring the model's name and the buffers' first growth), the
/// stream cut into chunks of `chunk_bytes`.
fn allocations(endpoint: Endpoint, event: &str, chunk_bytes: usize) -> u64 {
    const EVENTS: usize = 1000;
    let family = tokens::family("gpt-4o");
    let mut meter = StreamMeter::new(Watch { endpoint, kind: Kind::OpenAi, family, strip_usage: true });
    let mut out = Vec::with_capacity(8);
    // As the proxy has it: slices of read buffers.
    let stream = Bytes::from(event.repeat(EVENTS).into_bytes());
    let mut chunks = Vec::with_capacity(stream.len() / chunk_bytes + 1);
    let mut at = 0;
    while at < stream.len() {
        let end = stream.len().min(at + chunk_bytes);
        chunks.push(stream.slice(at..end));
        at = end;
    }
    // Twice as much as is measured: the text's buffer has then reached the size it works at, and the vocabulary is loaded.
    for chunk in chunks.iter().chain(&chunks) {
        meter.feed(chunk.clone(), &mut out);
        out.clear();
    }
    let before = CALLS.get();
    for chunk in &chunks {
        meter.feed(chunk.clone(), &mut out);
        out.clear();
    }
    let calls = CALLS.get() - before;
    assert!(meter.events() >= 3 * EVENTS as u64 || event == COMMENT || event == PING, "the events were seen");
    calls
}

#[test]
fn events_allocate_nothing() {
    // No two in a row are alike, so that each is read.
    let chat = format!("{CHAT}{CHAT_TOOL}{MULTI_LINE}").replace("openai\\/gpt-4o", "m");
    let responses = format!("{RESPONSES}{}", RESPONSES.replace("msg_1", "msg_2"));
    let messages = format!("{ANTHROPIC}{}", ANTHROPIC.replace("\"index\":0", "\"index\":1"));
    for (endpoint, event) in [
        (Endpoint::ChatCompletions, chat.as_str()),
        (Endpoint::Responses, &responses),
        (Endpoint::Messages, &messages),
        (Endpoint::ChatCompletions, CHAT),
        (Endpoint::ChatCompletions, CHAT_WITH_USAGE),
        (Endpoint::ChatCompletions, CHAT_TOOL),
        (Endpoint::ChatCompletions, MULTI_LINE),
        (Endpoint::ChatCompletions, COMMENT),
        (Endpoint::Responses, RESPONSES),
        (Endpoint::Messages, ANTHROPIC),
        (Endpoint::Messages, PING),
    ] {
        for chunk_bytes in [event.len(), 3 * event.len(), 16 << 10, 61, 7] {
            let calls = allocations(endpoint, event, chunk_bytes);
            assert_eq!(calls, 0, "{event} in chunks of {chunk_bytes}");
        }
    }
}

#[test]
fn the_counter_counts() {
    let before = CALLS.get();
    drop(std::hint::black_box(Vec::<u8>::with_capacity(100)));
    assert_eq!(CALLS.get() - before, 1);
}

//! The provider that `weir demo` brings along: it speaks OpenAI's and Anthropic's dialects on a loopback port, at the pace of
//! a mid-sized model, and says something that fits the question a little. It stands where a real provider would, behind the
//! whole gateway; nothing in weir knows that it is not one.

use crate::engine::dialect::Endpoint;
use async_trait::async_trait;
use bytes::Bytes;
use pingora_core::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use pingora_error::Result;
use pingora_http::ResponseHeader;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The key it accepts. Anything else is answered 401, as a real provider would.
pub const KEY: &str = "sk-demo-provider-key-0123456789abcdef";
/// The models it serves.
pub const MODELS: &[&str] = &["demo-small", "demo-large"];
/// Wait before the first token.
const FIRST_TOKEN: Duration = Duration::from_millis(280);
/// Wait between tokens: about 45 a second.
const BETWEEN_TOKENS: Duration = Duration::from_millis(22);
/// Request bodies are read up to here.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Numbers in a demo embedding.
const DIMENSIONS: usize = 256;

/// The provider as a Pingora application.
#[derive(Debug, Default)]
pub struct DemoProvider;

#[async_trait]
impl HttpServerApp for DemoProvider {
    async fn process_new_http(self: &Arc<Self>, mut session: ServerSession, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            _ => return None,
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        answer(&mut session).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

async fn answer(session: &mut ServerSession) -> Result<()> {
    let path = session.req_header().uri.path().to_string();
    let bearer = format!("Bearer {KEY}");
    let authorised =
        session.get_header_bytes("authorization") == bearer.as_bytes() || session.get_header_bytes("x-api-key") == KEY.as_bytes();
    if !authorised {
        return whole(session, 401, &json!({"error": {"message": "Incorrect API key provided.", "type": "invalid_request_error", "param": null, "code": "invalid_api_key"}})).await;
    }
    if path == "/v1/models" {
        let data: Vec<Value> =
            MODELS.iter().map(|id| json!({"id": id, "object": "model", "created": 1_760_000_000, "owned_by": "demo"})).collect();
        return whole(session, 200, &json!({"object": "list", "data": data})).await;
    }
    let mut body = Vec::new();
    while let Some(chunk) = session.read_request_body().await? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return whole(
                session,
                413,
                &json!({"error": {"message": "Too large.", "type": "invalid_request_error", "param": null, "code": null}}),
            )
            .await;
        }
        body.extend_from_slice(&chunk);
    }
    let Some(endpoint) = Endpoint::of_path(&path) else {
        return whole(
            session,
            404,
            &json!({"error": {"message": "Unknown path.", "type": "invalid_request_error", "param": null, "code": null}}),
        )
        .await;
    };
    let request: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let model = request["model"].as_str().unwrap_or(MODELS[0]).to_string();
    let question = last_text(&request);
    let words = speak(&question, output_cap(&request));
    let prompt_tokens = (question.len() as u64).div_ceil(4).max(1) + 7;
    let ask = Ask { model, words, prompt_tokens, include_usage: request["stream_options"]["include_usage"] == Value::Bool(true) };
    let stream = request["stream"] == Value::Bool(true);
    match endpoint {
        Endpoint::ChatCompletions if stream => chat_stream(session, &ask).await,
        Endpoint::ChatCompletions => {
            pause(FIRST_TOKEN).await;
            let choice = json!({"index": 0, "message": {"role": "assistant", "content": ask.text(), "refusal": null}, "logprobs": null, "finish_reason": "stop"});
            whole(session, 200, &json!({"id": "chatcmpl-demo", "object": "chat.completion", "created": 1_760_000_000, "model": ask.model, "choices": [choice], "usage": ask.usage()})).await
        }
        Endpoint::Completions if stream => completion_stream(session, &ask).await,
        Endpoint::Completions => {
            pause(FIRST_TOKEN).await;
            let choice = json!({"index": 0, "text": ask.text(), "logprobs": null, "finish_reason": "stop"});
            whole(session, 200, &json!({"id": "cmpl-demo", "object": "text_completion", "created": 1_760_000_000, "model": ask.model, "choices": [choice], "usage": ask.usage()})).await
        }
        Endpoint::Responses if stream => responses_stream(session, &ask).await,
        Endpoint::Responses => {
            pause(FIRST_TOKEN).await;
            whole(session, 200, &ask.response("completed")).await
        }
        Endpoint::Messages if stream => messages_stream(session, &ask).await,
        Endpoint::Messages => {
            pause(FIRST_TOKEN).await;
            let usage = json!({"input_tokens": ask.prompt_tokens, "output_tokens": ask.words.len()});
            whole(session, 200, &json!({"id": "msg_demo", "type": "message", "role": "assistant", "model": ask.model, "content": [{"type": "text", "text": ask.text()}], "stop_reason": "end_turn", "stop_sequence": null, "usage": usage})).await
        }
        Endpoint::CountTokens => whole(session, 200, &json!({"input_tokens": ask.prompt_tokens})).await,
        Endpoint::Embeddings => {
            let numbers: Vec<f64> = (0..DIMENSIONS).map(|index| ((index * 37 + question.len()) % 101) as f64 / 101.0 - 0.5).collect();
            whole(session, 200, &json!({"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": numbers}], "model": ask.model, "usage": {"prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens}})).await
        }
        Endpoint::Moderations => whole(session, 200, &json!({"id": "modr-demo", "model": ask.model, "results": [{"flagged": false, "categories": {}, "category_scores": {}}]})).await,
        Endpoint::Images => whole(session, 200, &json!({"created": 1_760_000_000, "data": [{"b64_json": PIXEL}], "usage": {"input_tokens": ask.prompt_tokens, "output_tokens": 272, "total_tokens": ask.prompt_tokens + 272}})).await,
        Endpoint::Speech => {
            let mut header = ResponseHeader::build_no_case(200, None)?;
            header.insert_header("content-type", "audio/wav")?;
            header.insert_header("content-length", SILENCE.len())?;
            session.write_response_header(Box::new(header)).await?;
            session.write_response_body(Bytes::from_static(&SILENCE), true).await
        }
        Endpoint::Transcriptions | Endpoint::Translations => {
            whole(session, 200, &json!({"text": "A demo hears nothing and says so.", "usage": {"type": "duration", "seconds": 1.5}})).await
        }
    }
}

struct Ask {
    model: String,
    words: Vec<String>,
    prompt_tokens: u64,
    include_usage: bool,
}

impl Ask {
    fn text(&self) -> String {
        self.words.concat()
    }

    fn usage(&self) -> Value {
        let output = self.words.len() as u64;
        json!({"prompt_tokens": self.prompt_tokens, "completion_tokens": output, "total_tokens": self.prompt_tokens + output, "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}})
    }

    fn response(&self, status: &str) -> Value {
        let output = self.words.len() as u64;
        let done = status == "completed";
        json!({"id": "resp_demo", "object": "response", "created_at": 1_760_000_000, "status": status, "model": self.model,
            "output": if done { json!([{"type": "message", "id": "msg_demo", "status": "completed", "role": "assistant", "content": [{"type": "output_text", "text": self.text(), "annotations": []}]}]) } else { json!([]) },
            "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "error": null, "incomplete_details": null, "instructions": null, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
            "usage": if done { json!({"input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": self.prompt_tokens + output}) } else { Value::Null }})
    }
}

async fn chat_stream(session: &mut ServerSession, ask: &Ask) -> Result<()> {
    let usage = if ask.include_usage { json!({"usage": null}) } else { json!({}) };
    let chunk = |delta: Value, finish: Value| {
        let mut event = json!({"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": ask.model, "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]});
        if let (Some(event), Some(usage)) = (event.as_object_mut(), usage.as_object()) {
            event.extend(usage.clone());
        }
        event
    };
    begin_events(session).await?;
    pause(FIRST_TOKEN).await;
    event(session, None, &chunk(json!({"role": "assistant", "content": ""}), Value::Null)).await?;
    for word in &ask.words {
        event(session, None, &chunk(json!({"content": word}), Value::Null)).await?;
        pause(BETWEEN_TOKENS).await;
    }
    event(session, None, &chunk(json!({}), json!("stop"))).await?;
    if ask.include_usage {
        event(session, None, &json!({"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": ask.model, "choices": [], "usage": ask.usage()})).await?;
    }
    session.write_response_body(Bytes::from_static(b"data: [DONE]\n\n"), true).await
}

async fn completion_stream(session: &mut ServerSession, ask: &Ask) -> Result<()> {
    begin_events(session).await?;
    pause(FIRST_TOKEN).await;
    for (index, word) in ask.words.iter().enumerate() {
        let finish = if index + 1 == ask.words.len() { json!("stop") } else { Value::Null };
        event(session, None, &json!({"id": "cmpl-demo", "object": "text_completion", "created": 1_760_000_000, "model": ask.model, "choices": [{"index": 0, "text": word, "logprobs": null, "finish_reason": finish}]})).await?;
        pause(BETWEEN_TOKENS).await;
    }
    if ask.include_usage {
        event(session, None, &json!({"id": "cmpl-demo", "object": "text_completion", "created": 1_760_000_000, "model": ask.model, "choices": [], "usage": ask.usage()})).await?;
    }
    session.write_response_body(Bytes::from_static(b"data: [DONE]\n\n"), true).await
}

async fn responses_stream(session: &mut ServerSession, ask: &Ask) -> Result<()> {
    begin_events(session).await?;
    let mut number = 0;
    let mut send = Vec::new();
    let mut push = |kind: &str, mut fields: Value| {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(number);
        number += 1;
        send.push((kind.to_string(), fields));
    };
    push("response.created", json!({"response": ask.response("in_progress")}));
    push(
        "response.output_item.added",
        json!({"output_index": 0, "item": {"type": "message", "id": "msg_demo", "status": "in_progress", "role": "assistant", "content": []}}),
    );
    push(
        "response.content_part.added",
        json!({"item_id": "msg_demo", "output_index": 0, "content_index": 0, "part": {"type": "output_text", "text": "", "annotations": []}}),
    );
    for word in &ask.words {
        push("response.output_text.delta", json!({"item_id": "msg_demo", "output_index": 0, "content_index": 0, "delta": word}));
    }
    push("response.output_text.done", json!({"item_id": "msg_demo", "output_index": 0, "content_index": 0, "text": ask.text()}));
    push("response.completed", json!({"response": ask.response("completed")}));
    pause(FIRST_TOKEN).await;
    for (kind, fields) in &send {
        event(session, Some(kind), fields).await?;
        if kind.ends_with(".delta") {
            pause(BETWEEN_TOKENS).await;
        }
    }
    session.write_response_body(Bytes::new(), true).await
}

async fn messages_stream(session: &mut ServerSession, ask: &Ask) -> Result<()> {
    begin_events(session).await?;
    pause(FIRST_TOKEN).await;
    event(session, Some("message_start"), &json!({"type": "message_start", "message": {"id": "msg_demo", "type": "message", "role": "assistant", "model": ask.model, "content": [], "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": ask.prompt_tokens, "output_tokens": 1}}})).await?;
    event(
        session,
        Some("content_block_start"),
        &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    )
    .await?;
    for word in &ask.words {
        event(
            session,
            Some("content_block_delta"),
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}),
        )
        .await?;
        pause(BETWEEN_TOKENS).await;
    }
    event(session, Some("content_block_stop"), &json!({"type": "content_block_stop", "index": 0})).await?;
    event(session, Some("message_delta"), &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": ask.words.len()}})).await?;
    event(session, Some("message_stop"), &json!({"type": "message_stop"})).await?;
    session.write_response_body(Bytes::new(), true).await
}

async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn whole(session: &mut ServerSession, status: u16, body: &Value) -> Result<()> {
    let text = body.to_string();
    let mut header = ResponseHeader::build_no_case(status, None)?;
    header.insert_header("content-type", "application/json")?;
    header.insert_header("content-length", text.len())?;
    session.write_response_header(Box::new(header)).await?;
    session.write_response_body(text.into(), true).await
}

async fn begin_events(session: &mut ServerSession) -> Result<()> {
    let mut header = ResponseHeader::build_no_case(200, None)?;
    header.insert_header("content-type", "text/event-stream; charset=utf-8")?;
    header.insert_header("cache-control", "no-cache")?;
    session.write_response_header(Box::new(header)).await
}

async fn event(session: &mut ServerSession, name: Option<&str>, data: &Value) -> Result<()> {
    let text = match name {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    };
    session.write_response_body(text.into(), false).await
}

/// The last text a user said, in any dialect.
fn last_text(request: &Value) -> String {
    fn text(value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Array(parts) => parts
                .iter()
                .rev()
                .find_map(|part| text(part).or_else(|| part["text"].as_str().map(str::to_string)).or_else(|| text(&part["content"]))),
            _ => None,
        }
    }
    ["messages", "input", "prompt"].iter().find_map(|field| text(&request[*field])).unwrap_or_default()
}

fn output_cap(request: &Value) -> usize {
    ["max_completion_tokens", "max_tokens", "max_output_tokens"]
        .iter()
        .filter_map(|field| request[*field].as_u64())
        .min()
        .map_or(usize::MAX, |cap| usize::try_from(cap).unwrap_or(usize::MAX))
}

/// An answer of about a hundred tokens, one string each.
fn speak(question: &str, cap: usize) -> Vec<String> {
    let subject: String = question.split_whitespace().take(12).collect::<Vec<_>>().join(" ");
    let opening = if subject.is_empty() {
        "You asked nothing, which is quick to answer.".to_string()
    } else {
        format!("You asked: \u{201c}{subject}\u{201d}. A real provider would think about that now.")
    };
    let text = format!(
        "{opening} This one only shows the way: your request came in with a key of weir's, was matched to a model, left with the \
         provider's key instead, and these words are coming back as the provider sends them \u{2014} one event at a time, none held \
         back. When the last one has passed, the tokens are counted, the price is looked up, and one row in the ledger says what \
         it came to. Ask for the row with the request id from the response headers, or look at the metrics on the admin port. \u{1f30a}"
    );
    let mut words = Vec::new();
    for word in text.split_inclusive(' ').take(cap) {
        words.push(word.to_string());
    }
    words
}

/// One grey pixel as PNG.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";

/// A second of silence: a WAV header (RIFF, 8 kHz, 8 bit, mono) and its samples.
static SILENCE: [u8; 8044] = {
    let mut wav = [0x80u8; 8044];
    let header: [u8; 44] = *b"RIFF\x64\x1f\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x40\x1f\x00\x00\x01\x00\x08\x00data\x40\x1f\x00\x00";
    let mut index = 0;
    while index < header.len() {
        wav[index] = header[index];
        index += 1;
    }
    wav
};

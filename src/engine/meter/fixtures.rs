//! Streams as each provider sends them, written after the field tables of their client libraries and servers; the text in them is made up.
//! `cut` marks the one event that is left out for a client that did not ask for usage.

use super::{Endpoint, Kind, Source};
use crate::engine::usage::Bucket::{self, *};

/// One provider's stream and what it comes to.
pub struct Fixture {
    pub name: &'static str,
    pub endpoint: Endpoint,
    pub kind: Kind,
    /// The stream before the usage event, the usage event, and the rest. Line ends are LF.
    pub before: &'static str,
    pub cut: &'static str,
    pub after: &'static str,
    /// After [`Tally::count`](super::Tally::count) with 99 prompt tokens.
    pub usage: &'static [(Bucket, u64)],
    pub source: Source,
    pub events: u64,
    pub ended: bool,
    pub model: &'static str,
    pub service_tier: &'static str,
    pub cost: Option<i128>,
    pub error: Option<(&'static str, &'static str)>,
    pub inconsistent: bool,
    pub text: &'static str,
}

const CHAT: Fixture = Fixture {
    name: "",
    endpoint: Endpoint::ChatCompletions,
    kind: Kind::OpenAi,
    before: "",
    cut: "",
    after: "",
    usage: &[],
    source: Source::Upstream,
    events: 0,
    ended: true,
    model: "",
    service_tier: "",
    cost: None,
    error: None,
    inconsistent: false,
    text: "",
};

pub const FIXTURES: &[Fixture] = &[
    Fixture {
        name: "openai chat with reasoning, cache, tier and padding",
        before: r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini-2025-08-07","service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"Qx"}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini-2025-08-07","service_tier":"default","choices":[{"index":0,"delta":{"content":"Hi \"you\" \u00e9\ud83d\ude00\n"},"finish_reason":null}],"usage":null,"obfuscation":"\"usage\":{"}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini-2025-08-07","service_tier":"default","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null,"obfuscation":"Z"}

"#,
        cut: r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5-mini-2025-08-07","service_tier":"flex","choices":[],"usage":{"prompt_tokens":2006,"completion_tokens":300,"total_tokens":2306,"prompt_tokens_details":{"cached_tokens":1920,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":192,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"obfuscation":"abc"}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 86), (CachedInput, 1920), (Output, 108), (Reasoning, 192), (Requests, 1)],
        events: 5,
        model: "gpt-5-mini-2025-08-07",
        service_tier: "flex",
        text: "Hi \"you\" \u{e9}\u{1f600}\n",
        ..CHAT
    },
    Fixture {
        name: "openai chat, tool calls and no usage",
        before: r#"data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":""}}]},"finish_reason":null}]}

data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]},"finish_reason":null}]}

data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Oslo\"}"}}]},"finish_reason":null}]}

data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"refusal":" no"},"finish_reason":"tool_calls"}]}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 99), (Output, 8), (Requests, 1)],
        source: Source::Counted,
        events: 5,
        model: "gpt-4o",
        text: "weather{\"city\":\"Oslo\"} no",
        ..CHAT
    },
    Fixture {
        name: "azure: the first event has no choices and stays",
        kind: Kind::Azure,
        before: r#"data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}

data: {"choices":[{"content_filter_results":{},"delta":{"content":"Yes"},"finish_reason":null,"index":0}],"model":"gpt-4o-2024-11-20","usage":null}

data: {"choices":[{"delta":{},"finish_reason":"stop","index":0}],"model":"gpt-4o-2024-11-20","usage":null}

"#,
        cut: "data: {\"choices\":[],\"model\":\"gpt-4o-2024-11-20\",\"usage\":{\"completion_tokens\":1,\"prompt_tokens\":12,\"total_tokens\":13}}\n\n",
        after: "data: [DONE]\n\n",
        usage: &[(Input, 12), (Output, 1), (Requests, 1)],
        events: 5,
        model: "gpt-4o-2024-11-20",
        text: "Yes",
        ..CHAT
    },
    Fixture {
        name: "openrouter: comments, reasoning and its own cost",
        kind: Kind::OpenRouter,
        before: r#": OPENROUTER PROCESSING

: OPENROUTER PROCESSING

data: {"id":"gen-1","provider":"DeepInfra","model":"openai/gpt-4o-mini","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Hm","reasoning_details":[{"type":"reasoning.text","text":"Hm"}]},"finish_reason":null}]}

data: {"id":"gen-1","provider":"DeepInfra","model":"openai/gpt-4o-mini","choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":"stop","native_finish_reason":"stop"}]}

"#,
        cut: r#"data: {"id":"gen-1","provider":"DeepInfra","model":"openai/gpt-4o-mini","choices":[],"usage":{"prompt_tokens":194,"completion_tokens":2,"total_tokens":196,"cost":0.00001425,"is_byok":false,"prompt_tokens_details":{"cached_tokens":100,"cache_write_tokens":20},"cost_details":{"upstream_inference_cost":null},"completion_tokens_details":{"reasoning_tokens":1}}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 74), (CachedInput, 100), (CacheWrite5m, 20), (Output, 1), (Reasoning, 1), (Requests, 1)],
        events: 4,
        model: "openai/gpt-4o-mini",
        cost: Some(14_250_000),
        text: "Hmok",
        ..CHAT
    },
    Fixture {
        name: "openrouter: an error in the stream",
        kind: Kind::OpenRouter,
        before: r#"data: {"id":"gen-1","model":"m","choices":[{"index":0,"delta":{"content":"Part"},"finish_reason":null}]}

data: {"id":"gen-1","model":"m","error":{"code":502,"message":"Provider disconnected"},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}

"#,
        usage: &[(Input, 99), (Output, 1), (Requests, 1)],
        source: Source::Counted,
        events: 2,
        ended: false,
        model: "m",
        error: Some(("502", "Provider disconnected")),
        text: "Part",
        ..CHAT
    },
    Fixture {
        name: "gemini: thoughts hide in the total",
        kind: Kind::Gemini,
        before: r#"data: {"choices":[{"delta":{"content":"Blue","role":"assistant"},"index":0}],"created":1,"id":"x","model":"gemini-2.5-flash","object":"chat.completion.chunk"}

data: {"choices":[{"delta":{"content":"."},"finish_reason":"stop","index":0}],"created":1,"id":"x","model":"gemini-2.5-flash","object":"chat.completion.chunk","usage":{"completion_tokens":2,"prompt_tokens":5,"total_tokens":107}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 5), (Output, 2), (Reasoning, 100), (Requests, 1)],
        events: 3,
        model: "gemini-2.5-flash",
        text: "Blue.",
        ..CHAT
    },
    Fixture {
        name: "groq: usage comes unasked, and again when asked",
        kind: Kind::Groq,
        before: r#"data: {"id":"c","object":"chat.completion.chunk","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"x_groq":{"id":"req_1"}}

data: {"id":"c","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"reasoning":"think"},"finish_reason":null}]}

data: {"id":"c","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"content":"Done"},"finish_reason":null}]}

data: {"id":"c","model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":0.05,"prompt_tokens":40,"prompt_time":0.01,"completion_tokens":12,"completion_time":0.02,"total_tokens":52,"total_time":0.03,"prompt_tokens_details":{"cached_tokens":32},"completion_tokens_details":{"reasoning_tokens":5}}}}

"#,
        cut: r#"data: {"id":"c","model":"openai/gpt-oss-20b","choices":[],"usage":{"queue_time":0.05,"prompt_tokens":40,"completion_tokens":12,"total_tokens":52}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 8), (CachedInput, 32), (Output, 7), (Reasoning, 5), (Requests, 1)],
        events: 6,
        model: "openai/gpt-oss-20b",
        text: "thinkDone",
        ..CHAT
    },
    Fixture {
        name: "mistral: thinking in parts, usage in the last chunk",
        kind: Kind::Mistral,
        before: r#"data: {"id":"m","object":"chat.completion.chunk","model":"magistral-small-2509","choices":[{"index":0,"delta":{"role":"assistant","content":[{"type":"thinking","thinking":[{"type":"text","text":"Let me"}]}]},"finish_reason":null}]}

data: {"id":"m","object":"chat.completion.chunk","model":"magistral-small-2509","choices":[{"index":0,"delta":{"content":[{"type":"text","text":" see"}]},"finish_reason":null}]}

data: {"id":"m","object":"chat.completion.chunk","model":"magistral-small-2509","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"total_tokens":31,"completion_tokens":20}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 11), (Output, 20), (Requests, 1)],
        events: 4,
        model: "magistral-small-2509",
        text: "Let me see",
        ..CHAT
    },
    Fixture {
        name: "deepseek: hits and misses, keep-alive comments",
        kind: Kind::DeepSeek,
        before: r#": keep-alive

data: {"id":"d","model":"deepseek-chat","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"First"},"finish_reason":null}],"usage":null}

: keep-alive

data: {"id":"d","model":"deepseek-chat","choices":[{"index":0,"delta":{"content":"Go","reasoning_content":null},"finish_reason":null}],"usage":null}

data: {"id":"d","model":"deepseek-chat","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":9,"total_tokens":109,"prompt_tokens_details":{"cached_tokens":64},"completion_tokens_details":{"reasoning_tokens":4},"prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":36}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 36), (CachedInput, 64), (Output, 5), (Reasoning, 4), (Requests, 1)],
        events: 4,
        model: "deepseek-chat",
        text: "FirstGo",
        ..CHAT
    },
    Fixture {
        name: "vllm: cumulative usage in every chunk",
        kind: Kind::Vllm,
        before: r#"data: {"id":"v","model":"qwen","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}

data: {"id":"v","model":"qwen","choices":[{"index":0,"delta":{"content":"One"},"finish_reason":null}],"usage":{"prompt_tokens":7,"total_tokens":8,"completion_tokens":1}}

data: {"id":"v","model":"qwen","choices":[{"index":0,"delta":{"content":" two"},"finish_reason":"length"}],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2}}

"#,
        cut: "data: {\"id\":\"v\",\"model\":\"qwen\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"total_tokens\":9,\"completion_tokens\":2}}\n\n",
        after: "data: [DONE]\n\n",
        usage: &[(Input, 7), (Output, 2), (Requests, 1)],
        events: 5,
        model: "qwen",
        text: "One two",
        ..CHAT
    },
    Fixture {
        name: "vllm: cut off, and the chunk before said how much",
        kind: Kind::Vllm,
        before: r#"data: {"id":"v","model":"qwen","choices":[{"index":0,"delta":{"content":"One two three"},"finish_reason":null}],"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}}

data: {"id":"v","model":"qw"#,
        usage: &[(Input, 7), (Output, 5), (Requests, 1)],
        events: 1,
        ended: false,
        model: "qwen",
        text: "One two three",
        ..CHAT
    },
    Fixture {
        name: "vllm: an error with its fields at the top",
        kind: Kind::Vllm,
        before: "data: {\"object\":\"error\",\"message\":\"The model died.\",\"type\":\"InternalServerError\",\"param\":null,\"code\":500}\n\n",
        after: "data: [DONE]\n\n",
        usage: &[(Requests, 1)],
        source: Source::Counted,
        events: 2,
        error: Some(("internalservererror", "The model died.")),
        ..CHAT
    },
    Fixture {
        name: "ollama completions: zeros in every event, the real usage last",
        endpoint: Endpoint::Completions,
        kind: Kind::Ollama,
        before: r#"data: {"id":"cmpl-1","object":"text_completion","model":"llama3.2","choices":[{"text":"A","index":0,"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}

data: {"id":"cmpl-1","object":"text_completion","model":"llama3.2","choices":[{"text":" B","index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}

"#,
        cut: "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\",\"model\":\"llama3.2\",\"choices\":[],\"usage\":{\"prompt_tokens\":26,\"completion_tokens\":3,\"total_tokens\":29}}\n\n",
        after: "data: [DONE]\n\n",
        usage: &[(Input, 26), (Output, 3), (Requests, 1)],
        events: 4,
        model: "llama3.2",
        text: "A B",
        ..CHAT
    },
    Fixture {
        name: "ollama completions: cut off after zeros, so the text is counted",
        endpoint: Endpoint::Completions,
        kind: Kind::Ollama,
        before: r#"data: {"model":"llama3.2","choices":[{"text":"Hello world","index":0,"finish_reason":null}],"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}

"#,
        usage: &[(Input, 99), (Output, 2), (Requests, 1)],
        source: Source::Counted,
        events: 1,
        ended: false,
        model: "llama3.2",
        text: "Hello world",
        ..CHAT
    },
    Fixture {
        name: "ollama: an error as text",
        kind: Kind::Ollama,
        before: "data: {\"error\":\"llama runner process has terminated\"}\n\n",
        usage: &[(Requests, 1)],
        source: Source::Counted,
        events: 1,
        ended: false,
        error: Some(("", "llama runner process has terminated")),
        ..CHAT
    },
    Fixture {
        name: "workers ai: its own format, usage with the last text",
        kind: Kind::Cloudflare,
        before: r#"data: {"response":"Sun","p":"abcdef"}

data: {"response":"","usage":{"prompt_tokens":21,"completion_tokens":1,"total_tokens":22}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 21), (Output, 1), (Requests, 1)],
        events: 3,
        text: "Sun",
        ..CHAT
    },
    Fixture {
        name: "xai: reasoning beside the output",
        kind: Kind::OpenAiCompatible,
        before: r#"data: {"id":"x","model":"grok-4","choices":[{"index":0,"delta":{"content":"9","role":"assistant"},"finish_reason":"stop"}]}

"#,
        cut: r#"data: {"id":"x","model":"grok-4","choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,"audio_tokens":0,"image_tokens":0,"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":94,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0},"num_sources_used":0}}

"#,
        after: "data: [DONE]\n\n",
        usage: &[(Input, 24), (CachedInput, 8), (Output, 9), (Reasoning, 94), (Requests, 1)],
        events: 3,
        model: "grok-4",
        text: "9",
        ..CHAT
    },
    Fixture {
        name: "together: details larger than the total, no end mark, no last blank line",
        kind: Kind::Together,
        before: r#"data: {"id":"t","model":"meta-llama/Llama-3.3-70B","choices":[{"index":0,"text":"Y","delta":{"content":"Y"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,"cached_tokens":8}}"#,
        usage: &[(CachedInput, 5), (Output, 1), (Requests, 1)],
        events: 1,
        ended: false,
        model: "meta-llama/Llama-3.3-70B",
        inconsistent: true,
        text: "Y",
        ..CHAT
    },
    Fixture {
        name: "multi-line data, an event name, an id",
        before: "id: 1\nevent: message\ndata: {\"model\":\"m\",\"choices\":[{\"delta\":\ndata: {\"content\":\"two lines\"},\"finish_reason\":\"stop\"}]}\n\n",
        cut: "id: 2\ndata: {\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\n",
        after: ": bye\n\ndata: [DONE]\n\n",
        usage: &[(Input, 4), (Output, 2), (Requests, 1)],
        events: 3,
        model: "m",
        text: "two lines",
        ..CHAT
    },
    Fixture {
        name: "responses: deltas, a web search, usage in the completed response",
        endpoint: Endpoint::Responses,
        before: r#"event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1","object":"response","status":"in_progress","error":null,"model":"gpt-5-2025-08-07","output":[],"service_tier":"auto","usage":null}}

event: response.output_item.added
data: {"type":"response.output_item.added","sequence_number":1,"output_index":0,"item":{"id":"msg_1","type":"message","status":"in_progress","content":[],"role":"assistant"}}

event: response.reasoning_summary_text.delta
data: {"type":"response.reasoning_summary_text.delta","sequence_number":2,"delta":"Why"}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":3,"item_id":"msg_1","output_index":0,"content_index":0,"delta":" not","logprobs":[],"obfuscation":"x"}

event: response.audio.delta
data: {"type":"response.audio.delta","sequence_number":4,"delta":"AAAAAAAA"}

event: response.completed
data: {"type":"response.completed","sequence_number":5,"response":{"id":"resp_1","object":"response","status":"completed","error":null,"model":"gpt-5-2025-08-07","output":[{"type":"web_search_call","status":"completed","action":{"type":"search","query":"q"}},{"type":"web_search_call","status":"completed","action":{"type":"open_page"}},{"type":"message","content":[{"type":"output_text","text":"Why not"}]}],"service_tier":"default","usage":{"input_tokens":328,"input_tokens_details":{"cached_tokens":300},"output_tokens":52,"output_tokens_details":{"reasoning_tokens":40},"total_tokens":380},"user":null,"metadata":{}}}

"#,
        usage: &[(Input, 28), (CachedInput, 300), (Output, 12), (Reasoning, 40), (Requests, 1), (WebSearches, 1)],
        events: 6,
        model: "gpt-5-2025-08-07",
        service_tier: "default",
        text: "Why not",
        ..CHAT
    },
    Fixture {
        name: "responses: it failed",
        endpoint: Endpoint::Responses,
        before: r#"event: response.failed
data: {"type":"response.failed","sequence_number":1,"response":{"id":"resp_1","status":"failed","error":{"code":"server_error","message":"The model failed."},"model":"gpt-5","output":[],"usage":null}}

"#,
        usage: &[(Requests, 1)],
        source: Source::Counted,
        events: 1,
        ended: false,
        model: "gpt-5",
        error: Some(("server_error", "The model failed.")),
        ..CHAT
    },
    Fixture {
        name: "responses: an error event",
        endpoint: Endpoint::Responses,
        before: "event: error\ndata: {\"type\":\"error\",\"code\":\"rate_limit_exceeded\",\"message\":\"Slow down\",\"param\":null,\"sequence_number\":3}\n\n",
        usage: &[(Requests, 1)],
        source: Source::Counted,
        events: 1,
        ended: false,
        error: Some(("rate_limit_exceeded", "Slow down")),
        ..CHAT
    },
    Fixture {
        name: "anthropic: cache, thinking, a tool and a search",
        endpoint: Endpoint::Messages,
        kind: Kind::Anthropic,
        before: r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-sonnet-4-20250514","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":25,"cache_creation_input_tokens":188,"cache_read_input_tokens":1000,"cache_creation":{"ephemeral_5m_input_tokens":88,"ephemeral_1h_input_tokens":100},"output_tokens":1,"service_tier":"standard"}}}

event: ping
data: {"type": "ping"}

event: content_block_start
data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"I see"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}}

event: content_block_stop
data: {"type":"content_block_stop","index":0}

event: content_block_start
data: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"toolu_1","name":"find","input":{}}}

event: content_block_delta
data: {"type":"content_block_delta","index":1,"delta":{"type":"input_json_delta","partial_json":"{\"q\":1}"}}

event: content_block_delta
data: {"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":" end"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":30,"cache_read_input_tokens":0,"output_tokens":89,"server_tool_use":{"web_search_requests":1}}}

event: message_stop
data: {"type":"message_stop"}

"#,
        usage: &[(Input, 30), (CachedInput, 1000), (CacheWrite5m, 88), (CacheWrite1h, 100), (Output, 89), (Requests, 1), (WebSearches, 1)],
        events: 10,
        model: "claude-sonnet-4-20250514",
        service_tier: "standard",
        text: "I seefind{\"q\":1} end",
        ..CHAT
    },
    Fixture {
        name: "anthropic: cut off, input known, output counted",
        endpoint: Endpoint::Messages,
        kind: Kind::Anthropic,
        before: r#"event: message_start
data: {"type":"message_start","message":{"id":"msg_1","model":"claude-sonnet-4-20250514","usage":{"input_tokens":25,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello world, how are you"}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_de"#,
        usage: &[(Input, 25), (Output, 6), (Requests, 1)],
        source: Source::Mixed,
        events: 2,
        ended: false,
        model: "claude-sonnet-4-20250514",
        text: "Hello world, how are you",
        ..CHAT
    },
    Fixture {
        name: "anthropic: overloaded",
        endpoint: Endpoint::Messages,
        kind: Kind::Anthropic,
        before: "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\", \"message\": \"Overloaded\"}}\n\n",
        usage: &[(Requests, 1)],
        source: Source::Counted,
        events: 1,
        ended: false,
        error: Some(("overloaded_error", "Overloaded")),
        ..CHAT
    },
    Fixture {
        name: "images: partial images, then one with usage",
        endpoint: Endpoint::Images,
        before: r#"event: image_generation.partial_image
data: {"type":"image_generation.partial_image","b64_json":"iVBORw0KGgo=","partial_image_index":0}

event: image_generation.completed
data: {"type":"image_generation.completed","b64_json":"iVBORw0KGgo=","usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50,"input_tokens_details":{"text_tokens":10,"image_tokens":40}}}

"#,
        usage: &[(Input, 10), (ImageInput, 40), (ImageOutput, 50), (Images, 1), (Requests, 1)],
        events: 2,
        ..CHAT
    },
    Fixture {
        name: "transcription: tokens",
        endpoint: Endpoint::Transcriptions,
        before: r#"data: {"type":"transcript.text.delta","delta":"I see"}

data: {"type":"transcript.text.delta","delta":" skies"}

data: {"type":"transcript.text.done","text":"I see skies","usage":{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":4,"audio_tokens":10},"output_tokens":45,"total_tokens":59}}

"#,
        usage: &[(Input, 4), (AudioInput, 10), (Output, 45), (Requests, 1)],
        events: 3,
        text: "I see skies",
        ..CHAT
    },
    Fixture {
        name: "speech: audio in events",
        endpoint: Endpoint::Speech,
        before: r#"data: {"type":"speech.audio.delta","audio":"//uQxAAAAAA="}

data: {"type":"speech.audio.done","usage":{"input_tokens":14,"output_tokens":101,"total_tokens":115}}

"#,
        usage: &[(Input, 14), (AudioOutput, 101), (Requests, 1)],
        events: 2,
        ..CHAT
    },
    Fixture { name: "nothing", source: Source::Counted, usage: &[(Input, 99)], ended: false, ..CHAT },
    Fixture {
        name: "not JSON",
        before: "data: <html>\n\ndata: {\"choices\":[}\n\ndata: 5\n\n",
        source: Source::Counted,
        usage: &[(Input, 99), (Requests, 1)],
        events: 3,
        ended: false,
        ..CHAT
    },
];

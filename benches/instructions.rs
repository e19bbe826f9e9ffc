//! Instruction counts of the engine's hot paths. A count is the same on a busy machine as on a quiet one, so a change in it is a
//! change in the code. `benches/instructions.sh` runs each case under callgrind and compares with `benches/baseline.txt`.
//!
//! Called with a case's name it runs that case; with `--list` it names them; with `--time NAME` it prints the wall clock of one run.

#![allow(missing_docs, clippy::expect_used)]

#[path = "cases/plan.rs"]
mod plan;
#[path = "cases/streams.rs"]
mod streams;

use bytes::Bytes;
use std::hint::black_box;
use std::time::Instant;
use weir::engine::catalog::Strategy;
use weir::engine::dialect::Endpoint;
use weir::engine::peek::{self, Edits};

/// A case: its name, and what makes the closure to measure. Making it is not measured.
type Case = (&'static str, fn() -> Box<dyn FnMut()>);

const CASES: &[Case] = &[
    ("peek_chat_1k", || peek_json(chat(1_000, PROSE))),
    ("peek_chat_20k", || peek_json(chat(20_000, PROSE))),
    ("peek_chat_500k", || peek_json(chat(500_000, PROSE))),
    ("peek_chat_500k_code", || peek_json(chat(500_000, CODE))),
    ("peek_chat_500k_cjk", || peek_json(chat(500_000, CJK))),
    ("peek_image_500k", || peek_json(image(500_000))),
    ("peek_token_ids_100k", || peek_embeddings(token_ids(100_000))),
    ("peek_multipart_500k", || peek_form(500_000)),
    ("edit_chat_20k", || edit_json(chat(20_000, PROSE))),
    ("plan_10000x20_weighted", || plan::decide(Strategy::WeightedRandom)),
    ("plan_10000x20_latency", || plan::decide(Strategy::LeastLatency)),
    ("decode_chat_100_events", || streams::decode(100)),
    ("meter_chat_100_events", || streams::chat(100, usize::MAX)),
    ("meter_chat_100_events_cut", || streams::chat(100, 61)),
    ("meter_chat_100_events_counted", || streams::counted(100)),
    ("meter_chat_3000_events", || streams::chat(3_000, usize::MAX)),
    ("meter_messages_100_events", || streams::messages(100)),
    ("meter_whole_chat_20k", || streams::whole(20_000)),
];

const PROSE: &str = "The quick brown fox jumps over the lazy dog, and the dog, who has seen this before, goes back to sleep. ";
const CODE: &str = "    if let Some(\\\"value\\\") = map.get(\\\"key\\\") {\\n        println!(\\\"{value}\\\");\\n    }\\n";
const CJK: &str = "快速的棕色狐狸跳过了懒狗，而那只狗早已见过这一幕，于是又睡着了。";

/// What callgrind collects. Not inlined so that it has a name to be found by.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--list"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        ["--time", name] => time(name),
        [name] => {
            let mut run = case(name);
            // The first run pays for what is done once: feature detection, lazy tables.
            run();
            measured(&mut run);
        }
        _ => CASES.iter().for_each(|(name, _)| time(name)),
    }
}

fn case(name: &str) -> Box<dyn FnMut()> {
    let (_, make) = CASES.iter().find(|(known, _)| *known == name).expect("a case's name, see --list");
    make()
}

fn time(name: &str) {
    let mut run = case(name);
    let best = (0..200)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .min()
        .expect("many runs");
    println!("{name:24} {:>10.1} µs", best.as_secs_f64() * 1e6);
}

fn peek_json(body: String) -> Box<dyn FnMut()> {
    Box::new(move || {
        black_box(peek::json(Endpoint::ChatCompletions, black_box(body.as_bytes())).expect("a good body"));
    })
}

fn peek_embeddings(body: String) -> Box<dyn FnMut()> {
    Box::new(move || {
        black_box(peek::json(Endpoint::Embeddings, black_box(body.as_bytes())).expect("a good body"));
    })
}

fn peek_form(size: usize) -> Box<dyn FnMut()> {
    let mut body =
        b"--b0undary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg\r\n\r\n".to_vec();
    // Every byte value in turn: line ends and dashes as often as in compressed audio.
    body.extend((0..size).map(|at| (at * 7 + at / 251) as u8));
    body.extend_from_slice(b"\r\n--b0undary\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b0undary--\r\n");
    Box::new(move || {
        black_box(peek::multipart("multipart/form-data; boundary=b0undary", black_box(&body)).expect("a good form"));
    })
}

fn edit_json(body: String) -> Box<dyn FnMut()> {
    let body = Bytes::from(body);
    let read = peek::json(Endpoint::ChatCompletions, &body).expect("a good body");
    Box::new(move || {
        let edits =
            Edits { model: Some("openai/gpt-4o-mini"), include_usage: true, max_output: Some(2_000), cap_field: "max_completion_tokens" };
        black_box(peek::edit(Endpoint::ChatCompletions, black_box(&body), &read, &edits));
    })
}

/// A conversation of about `size` bytes in messages of some 2 KB, as a client without spaces between tokens writes it.
fn chat(size: usize, text: &str) -> String {
    let mut body = String::from(
        "{\"model\":\"gpt-4o-mini\",\"stream\":true,\"temperature\":0.7,\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"}",
    );
    while body.len() < size {
        let content = text.repeat((2_000.min(size - body.len()) / text.len()).max(1));
        let role = if body.len() % 2 == 0 { "user" } else { "assistant" };
        body.push_str(&format!(",{{\"role\":\"{role}\",\"content\":\"{content}\"}}"));
    }
    body + "]}"
}

/// A question about one inline image of about `size` bytes.
fn image(size: usize) -> String {
    let data = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ".repeat(size / 44);
    format!(
        "{{\"model\":\"gpt-4o-mini\",\"messages\":[{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"What is this?\"}},{{\"type\":\"image_url\",\"image_url\":{{\"url\":\"data:image/png;base64,{data}\"}}}}]}}]}}"
    )
}

/// An embeddings request of token ids, about `size` bytes.
fn token_ids(size: usize) -> String {
    let ids: Vec<String> = (0..size / 6).map(|id| (10_000 + id % 80_000).to_string()).collect();
    format!("{{\"model\":\"text-embedding-3-small\",\"input\":[{}]}}", ids.join(","))
}

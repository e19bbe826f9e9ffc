use super::fixtures::{FIXTURES, Fixture};
use super::*;
use crate::engine::sse::MAX_EVENT_BYTES;
use crate::engine::tokens::{self, Encoding};

const FAMILY: Family = Family { encoding: Encoding::O200k, per_mille: 1000 };
/// Our estimate of every prompt here.
const PROMPT_TOKENS: u64 = 99;

fn watch(endpoint: Endpoint, kind: Kind, strip_usage: bool) -> Watch {
    Watch { endpoint, kind, family: FAMILY, strip_usage }
}

/// Everything that must not depend on the cuts.
#[derive(Debug, PartialEq)]
struct Result {
    forwarded: String,
    events: u64,
    text_bytes: u64,
    usage: Vec<(Bucket, u64)>,
    source: Source,
    ended: bool,
    model: Option<String>,
    service_tier: Option<String>,
    cost: Option<i128>,
    error: Option<UpstreamError>,
    inconsistent: bool,
}

fn run<'a>(watch: Watch, chunks: impl Iterator<Item = &'a [u8]>) -> Result {
    let mut meter = StreamMeter::new(watch);
    let mut out = Vec::new();
    let mut fed_bytes = 0;
    for chunk in chunks {
        let finished = meter.reading.finished;
        meter.feed(Bytes::copy_from_slice(chunk), &mut out);
        fed_bytes += chunk.len();
        if !watch.strip_usage || (!finished && !meter.reading.finished) {
            assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), fed_bytes, "held back for no reason");
        }
    }
    meter.flush(&mut out);
    let (events, text_bytes) = (meter.events(), meter.reading.text_bytes);
    let (mut tally, mut text) = meter.finish();
    tally.count(PROMPT_TOKENS, &mut text);
    Result {
        forwarded: String::from_utf8(out.concat()).expect("the fixtures are text"),
        events,
        text_bytes,
        usage: tally.usage.iter().filter(|(_, count)| *count != 0).collect(),
        source: tally.source,
        ended: tally.ended,
        model: tally.model,
        service_tier: tally.service_tier,
        cost: tally.reported_cost.map(|cost| cost.0),
        error: tally.error,
        inconsistent: tally.inconsistent,
    }
}

/// A comment put in wherever the meter says that one may follow changes no event.
fn check_comments(fixture: &Fixture, strip_usage: bool, line_end: &str) {
    let Fixture { before, cut, after, .. } = fixture;
    let stream = format!("{before}{cut}{after}").replace('\n', line_end);
    let watch = watch(fixture.endpoint, fixture.kind, strip_usage);
    let expected = run(watch, [stream.as_bytes()].into_iter());
    let mut comments = 0;
    for size in [1, 2, 7, 50] {
        let (mut meter, mut out) = (StreamMeter::new(watch), Vec::new());
        for chunk in stream.as_bytes().chunks(size) {
            meter.feed(Bytes::copy_from_slice(chunk), &mut out);
            if meter.is_between_events() {
                comments += 1;
                out.push(Bytes::from_static(b": heartbeat\n\n"));
            }
        }
        meter.flush(&mut out);
        // The client reads what it got; nothing more is to be left out.
        let commented = run(Watch { strip_usage: false, ..watch }, [&out.concat()[..]].into_iter());
        let plain = run(Watch { strip_usage: false, ..watch }, [expected.forwarded.as_bytes()].into_iter());
        assert_eq!(Result { forwarded: String::new(), ..commented }, Result { forwarded: String::new(), ..plain }, "{}", fixture.name);
    }
    // The last event may lack its blank line.
    assert!(comments + 1 >= fixture.events, "{}: {comments} places for {} events", fixture.name, fixture.events);
}

#[test]
fn comments_fit_between_events() {
    for fixture in FIXTURES {
        for line_end in ["\n", "\r\n", "\r"] {
            check_comments(fixture, false, line_end);
            check_comments(fixture, true, line_end);
        }
    }
}

fn check(fixture: &Fixture, strip_usage: bool, line_end: &str) {
    let Fixture { before, cut, after, .. } = fixture;
    let spelled = |text: String| text.replace('\n', line_end);
    let stream = spelled(format!("{before}{cut}{after}"));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let expected = Result {
        forwarded: if strip_usage { spelled(format!("{before}{after}")) } else { stream.clone() },
        events: fixture.events,
        text_bytes: fixture.text.len() as u64,
        usage: fixture.usage.to_vec(),
        source: fixture.source,
        ended: fixture.ended,
        model: some(fixture.model),
        service_tier: some(fixture.service_tier),
        cost: fixture.cost,
        error: fixture.error.map(|(code, message)| UpstreamError { code: code.to_string(), message: message.to_string() }),
        inconsistent: fixture.inconsistent,
    };
    let watch = watch(fixture.endpoint, fixture.kind, strip_usage);
    let stream = stream.as_bytes();
    let what = format!("{}, strip {strip_usage}, {line_end:?}", fixture.name);
    for cut in 0..=stream.len() {
        assert_eq!(run(watch, [&stream[..cut], &stream[cut..]].into_iter()), expected, "{what}, cut at {cut}");
    }
    for size in [1, 2, 7] {
        assert_eq!(run(watch, stream.chunks(size)), expected, "{what}, in chunks of {size}");
    }
}

#[test]
fn every_provider_at_every_cut() {
    for fixture in FIXTURES {
        for strip_usage in [false, true] {
            for line_end in ["\n", "\r\n", "\r"] {
                check(fixture, strip_usage, line_end);
            }
        }
    }
}

#[test]
fn the_text_is_what_the_fixture_says() {
    for fixture in FIXTURES {
        let mut meter = StreamMeter::new(watch(fixture.endpoint, fixture.kind, false));
        meter.feed(Bytes::from_static(fixture.before.as_bytes()), &mut Vec::new());
        meter.flush(&mut Vec::new());
        assert_eq!(meter.output_counted(), tokens::count(FAMILY, fixture.text), "{}", fixture.name);
        assert!(meter.output_at_most() >= meter.output_counted());
    }
}

#[test]
fn damaged_streams_pass_unchanged() {
    for fixture in FIXTURES {
        let stream = format!("{}{}{}", fixture.before, fixture.cut, fixture.after).into_bytes();
        for (at, byte) in (0..stream.len()).step_by(3).zip(b"\"\\{}[]:,\n\r\xff0-u".iter().cycle()) {
            let mut damaged = stream.clone();
            damaged[at] = *byte;
            for strip_usage in [false, true] {
                let mut meter = StreamMeter::new(watch(fixture.endpoint, fixture.kind, strip_usage));
                let mut out = Vec::new();
                damaged.chunks(11).for_each(|chunk| meter.feed(Bytes::copy_from_slice(chunk), &mut out));
                meter.flush(&mut out);
                let out = out.concat();
                assert!(out == damaged || (strip_usage && out.len() < damaged.len()), "{} with {byte} at {at}", fixture.name);
            }
            // As a whole answer it is as good or bad as it is; it only must not panic.
            let _ = whole(&watch(fixture.endpoint, fixture.kind, false), &damaged[damaged.len() / 3..]);
        }
    }
}

#[test]
fn chunks_go_out_as_they_came_in() {
    let chunk = Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: {\"cho");
    let mut meter = StreamMeter::new(watch(Endpoint::ChatCompletions, Kind::OpenAi, true));
    let mut out = Vec::new();
    meter.feed(chunk.clone(), &mut out);
    assert_eq!((out.len(), out[0].as_ptr(), out[0].len()), (1, chunk.as_ptr(), chunk.len()), "the same memory");
}

#[test]
fn a_partial_event_is_held_only_behind_a_finish_reason_and_not_for_long() {
    let mut meter = StreamMeter::new(watch(Endpoint::ChatCompletions, Kind::OpenAi, true));
    let mut out = Vec::new();
    meter.feed(Bytes::from_static(b"data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"), &mut out);
    out.clear();
    meter.feed(Bytes::from_static(b"data: {\"choices\":[],\"usa"), &mut out);
    assert!(out.is_empty(), "it may be the usage event");
    meter.feed(Bytes::from_static(b"ge\":null}\n\ndata: "), &mut out);
    assert_eq!(out.concat(), b"data: {\"choices\":[],\"usage\":null}\n\n", "it was not; the next may be");
    out.clear();
    meter.feed(Bytes::from(vec![b'x'; MAX_HELD_BYTES]), &mut out);
    assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), 6 + MAX_HELD_BYTES, "too long for a usage event");
}

#[test]
fn usage_behind_a_very_large_value_is_found() {
    let large = "A".repeat(2 * MAX_EVENT_BYTES);
    let images = format!(
        "event: image_generation.completed\ndata: {{\"type\":\"image_generation.completed\",\"b64_json\":\"{large}\",\"usage\":{{\"input_tokens\":5,\"output_tokens\":7}}}}\n\n"
    );
    let responses = format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"tools\":\"{large}\",\"usage\":{{\"input_tokens\":5,\"output_tokens\":7}},\"metadata\":{{}}}}}}\n\n"
    );
    for (endpoint, stream, output) in [(Endpoint::Images, images, Bucket::ImageOutput), (Endpoint::Responses, responses, Bucket::Output)] {
        for size in [1000, stream.len()] {
            let result = run(watch(endpoint, Kind::OpenAi, false), stream.as_bytes().chunks(size));
            assert_eq!((result.ended, result.source, result.events), (true, Source::Upstream, 1));
            assert!(result.usage.contains(&(Bucket::Input, 5)) && result.usage.contains(&(output, 7)), "{:?}", result.usage);
        }
    }
}

#[test]
fn text_after_the_last_report_is_not_lost() {
    // A server that reports the prompt at once and never again.
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":0}}\n\n\
                  data: {\"choices\":[{\"delta\":{\"content\":\"one two three\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let result = run(watch(Endpoint::ChatCompletions, Kind::Vllm, false), [stream.as_bytes()].into_iter());
    assert_eq!((result.source, result.usage), (Source::Mixed, vec![(Bucket::Input, 7), (Bucket::Output, 3), (Bucket::Requests, 1)]));
}

#[test]
fn an_end_without_a_mark_is_fine_behind_a_finish_reason_or_an_error() {
    let check = |endpoint, stream: &'static str, expected: bool| {
        let mut meter = StreamMeter::new(watch(endpoint, Kind::OpenAi, false));
        meter.feed(Bytes::from_static(stream.as_bytes()), &mut Vec::new());
        assert_eq!(meter.may_end_without_mark(), expected, "{stream}");
    };
    check(Endpoint::ChatCompletions, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n", false);
    check(Endpoint::ChatCompletions, "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n", true);
    check(Endpoint::ChatCompletions, "data: {\"error\":{\"message\":\"broken\"}}\n\n", true);
    check(
        Endpoint::Messages,
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n",
        false,
    );
}

/// A whole answer comes to these buckets (after [`Tally::count`]).
fn check_whole(endpoint: Endpoint, kind: Kind, body: &str, usage: &[(Bucket, u64)], source: Source) {
    let (mut tally, mut text) = whole(&watch(endpoint, kind, false), body.as_bytes()).expect(body);
    assert_eq!(tally.error, None, "{body}");
    tally.count(PROMPT_TOKENS, &mut text);
    assert_eq!((tally.usage.iter().filter(|(_, count)| *count != 0).collect::<Vec<_>>(), tally.source), (usage.to_vec(), source), "{body}");
    // The same body, passed on in pieces without being held.
    for size in [1, 16, body.len()] {
        let mut meter = StreamMeter::of_body(watch(endpoint, kind, true));
        let mut out = Vec::new();
        body.as_bytes().chunks(size).for_each(|chunk| meter.feed(Bytes::copy_from_slice(chunk), &mut out));
        meter.flush(&mut out);
        assert!(meter.may_end_without_mark());
        assert_eq!(out.concat(), body.as_bytes());
        let (passed, _) = meter.finish();
        if tally.source == Source::Upstream {
            assert_eq!(passed.usage, tally.usage, "{body}");
        }
    }
}

#[test]
fn whole_answers_are_read() {
    use Bucket::*;
    use Source::*;
    let check = check_whole;
    check(
        Endpoint::ChatCompletions,
        Kind::OpenAi,
        r#"{"id":"c","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":4}},"service_tier":"default"}"#,
        &[(Input, 5), (CachedInput, 4), (Output, 12), (Requests, 1)],
        Upstream,
    );
    check(
        Endpoint::ChatCompletions,
        Kind::Vllm,
        " {\"choices\":[{\"message\":{\"content\":\"Hello world\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}}]}\n",
        &[(Input, 99), (Output, 4), (Requests, 1)],
        Counted,
    );
    check(
        Endpoint::Completions,
        Kind::OpenAi,
        r#"{"choices":[{"text":"Hello world"}]}"#,
        &[(Input, 99), (Output, 2), (Requests, 1)],
        Counted,
    );
    check(
        Endpoint::Messages,
        Kind::Anthropic,
        r#"{"id":"m","type":"message","model":"claude","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":3}}"#,
        &[(Input, 10), (CachedInput, 5), (Output, 3), (Requests, 1)],
        Upstream,
    );
    check(
        Endpoint::Messages,
        Kind::Anthropic,
        r#"{"type":"message","content":[{"type":"text","text":"Hello world"},{"type":"tool_use","name":"f","input":{}}]}"#,
        &[(Input, 99), (Output, 4), (Requests, 1)],
        Counted,
    );
    check(Endpoint::CountTokens, Kind::Anthropic, r#"{"input_tokens":2095}"#, &[(Requests, 1)], Upstream);
    check(
        Endpoint::Responses,
        Kind::OpenAi,
        r#"{"id":"r","object":"response","status":"completed","error":null,"output":[{"type":"web_search_call","action":{"type":"search"}},{"type":"message","content":[{"type":"output_text","text":"Hi"}]}],"usage":{"input_tokens":36,"output_tokens":87,"output_tokens_details":{"reasoning_tokens":80}}}"#,
        &[(Input, 36), (Output, 7), (Reasoning, 80), (Requests, 1), (WebSearches, 1)],
        Upstream,
    );
    check(
        Endpoint::Responses,
        Kind::OpenAi,
        r#"{"error":null,"output":[{"type":"message","content":[{"type":"output_text","text":"Hello world"}]}],"usage":null}"#,
        &[(Input, 99), (Output, 2), (Requests, 1)],
        Counted,
    );
    check(
        Endpoint::Embeddings,
        Kind::OpenAi,
        r#"{"object":"list","data":[{"embedding":[0.1,-2e-5],"index":0}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
        &[(Input, 8), (Requests, 1)],
        Upstream,
    );
    check(Endpoint::Moderations, Kind::OpenAi, r#"{"id":"m","results":[{"flagged":false}]}"#, &[(Input, 99), (Requests, 1)], Counted);
    check(
        Endpoint::Images,
        Kind::OpenAi,
        r#"{"created":1,"data":[{"b64_json":"AA=="},{"b64_json":"AA=="}],"usage":{"input_tokens":5,"output_tokens":70}}"#,
        &[(Input, 5), (ImageOutput, 70), (Images, 2), (Requests, 1)],
        Upstream,
    );
    check(
        Endpoint::Images,
        Kind::OpenAi,
        r#"{"created":1,"data":[{"url":"https://x"},{"url":"https://y"}]}"#,
        &[(Images, 2), (Requests, 1)],
        Upstream,
    );
    check(
        Endpoint::Transcriptions,
        Kind::OpenAi,
        r#"{"text":"Hello world","usage":{"type":"duration","seconds":7.25}}"#,
        &[(Milliseconds, 7250), (Requests, 1)],
        Upstream,
    );
    check(
        Endpoint::Transcriptions,
        Kind::Groq,
        r#"{"task":"transcribe","language":"en","duration":"3.47","text":"Hello world","segments":[{"text":"x"}]}"#,
        &[(Milliseconds, 3470), (Requests, 1)],
        Upstream,
    );
}

#[test]
fn answers_that_are_not_json_are_fine_where_they_may_be() {
    let read = |endpoint, body: &str| {
        let (mut tally, mut text) = whole(&watch(endpoint, Kind::OpenAi, false), body.as_bytes()).expect(body);
        tally.count(PROMPT_TOKENS, &mut text);
        (tally.usage.of(Bucket::Input), tally.usage.of(Bucket::Output), tally.usage.of(Bucket::Requests))
    };
    assert_eq!(read(Endpoint::Speech, "\u{1}\u{2}ID3"), (99, 0, 1));
    assert_eq!(read(Endpoint::Transcriptions, "Hello world\n"), (99, tokens::count(FAMILY, "Hello world\n"), 1));
    for endpoint in [Endpoint::ChatCompletions, Endpoint::Messages, Endpoint::Embeddings, Endpoint::Images] {
        for body in ["", " ", "<html>", "{\"choices\":[{\"message\"", "null", "[]", "{} {}"] {
            assert!(whole(&watch(endpoint, Kind::OpenAi, false), body.as_bytes()).is_err(), "{endpoint:?} {body:?}");
        }
    }
    assert!(whole(&watch(Endpoint::Speech, Kind::OpenAi, false), b"").is_err());
}

#[test]
fn errors_are_found_in_every_shape() {
    for (body, code, message) in [
        (r#"{"error":{"message":"No","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#, "insufficient_quota", "No"),
        (r#"{"error":{"message":"No","type":"invalid_request_error","param":null,"code":null}}"#, "invalid_request_error", "No"),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"Busy"},"request_id":"r"}"#, "overloaded_error", "Busy"),
        (r#"{"error":{"code":402,"message":"Pay","metadata":{"raw":"x"}},"user_id":"u"}"#, "402", "Pay"),
        (
            r#"{"success":false,"errors":[{"code":3036,"message":"Neurons used up"}],"messages":[],"result":null}"#,
            "3036",
            "Neurons used up",
        ),
        (r#"{"error":"model not found"}"#, "", "model not found"),
        (
            r#"{"object":"error","message":{"detail":[{"msg":"bad"}]},"type":"invalid_request_error","param":null,"code":"1500"}"#,
            "1500",
            r#"{"detail":[{"msg":"bad"}]}"#,
        ),
        (r#"{"object":"error","message":"Too long","type":"BadRequestError","param":null,"code":400}"#, "badrequesterror", "Too long"),
        (
            r#"[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":[{"@type":"x","message":"inner"}]}}]"#,
            "resource_exhausted",
            "Quota",
        ),
    ] {
        let expected = UpstreamError { code: code.to_string(), message: message.to_string() };
        assert_eq!(error_of(body.as_bytes()), expected, "{body}");
        for endpoint in [Endpoint::ChatCompletions, Endpoint::Messages, Endpoint::Embeddings, Endpoint::Responses] {
            let (mut tally, mut text) = whole(&watch(endpoint, Kind::OpenAi, false), body.as_bytes()).expect(body);
            assert_eq!(tally.error.as_ref(), Some(&expected), "{endpoint:?} {body}");
            tally.count(PROMPT_TOKENS, &mut text);
            assert!(tally.usage.is_zero(), "an error costs nothing");
        }
    }
    // Only behind an error status.
    for (body, message) in [
        (
            r#"{"detail":[{"type":"extra_forbidden","msg":"Extra inputs are not permitted"}]}"#,
            r#"[{"type":"extra_forbidden","msg":"Extra inputs are not permitted"}]"#,
        ),
        (r#"{"statusCode":401,"message":"Unauthorized"}"#, "Unauthorized"),
        ("upstream connect error\n", "upstream connect error"),
        ("", ""),
    ] {
        assert_eq!(error_of(body.as_bytes()), UpstreamError { code: String::new(), message: message.to_string() });
    }
    let long = format!("{{\"error\":\"{}\"}}", "\u{e9}".repeat(10_000));
    assert_eq!(error_of(long.as_bytes()).message.len(), 1024);
}

#[test]
fn our_own_errors_are_read_back_as_errors() {
    for endpoint in Endpoint::ALL {
        let mut event = Vec::new();
        dialect::error_event(endpoint, "upstream_error", "upstream_error", "It \"broke\"\noff", &mut event);
        let text = String::from_utf8(event.clone()).expect("it is text");
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("it has data");
        let json: serde_json::Value = serde_json::from_str(data).expect("it is JSON");
        assert_eq!(json["error"]["message"], "It \"broke\"\noff");
        let mut meter = StreamMeter::new(watch(endpoint, Kind::OpenAi, false));
        meter.feed(event.into(), &mut Vec::new());
        assert_eq!((meter.error().map(|error| error.code.as_str()), meter.ended()), (Some("upstream_error"), false), "{endpoint:?}");
    }
}

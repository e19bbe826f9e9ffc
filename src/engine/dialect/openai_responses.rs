//! `/v1/responses`: typed events; the last one holds the whole response and its usage. There is no `[DONE]`.

use super::reading::Reading;
use super::scan::Scan;
use super::upstream_error;

/// One event's data. `name` is its `event:` field, which repeats the type.
pub fn event(name: &[u8], data: &[u8], reading: &mut Reading) -> bool {
    if data == b"[DONE]" {
        reading.ended = true;
        return true;
    }
    let mut scan = Scan::new(data);
    let mut kind = name;
    let mut written: Option<&[u8]> = None;
    let mut has_error = false;
    scan.object(|key, scan| match key {
        b"type" => kind = scan.string().unwrap_or(kind),
        b"delta" => written = scan.string(),
        b"sequence_number" => reading.count_here(scan),
        b"obfuscation" => reading.padding_here(scan),
        b"response" => response(scan, reading),
        b"error" => {
            has_error = matches!(scan.here(), Some(b'{' | b'"'));
            reading.error_here(scan);
        }
        _ => {}
    });
    match kind {
        b"response.completed" | b"response.incomplete" => reading.ended = true,
        b"error" if !has_error => reading.error = Some(upstream_error(data)),
        _ => {}
    }
    if let Some(raw) = written
        && kind.ends_with(b".delta")
        && !is_audio(kind)
    {
        reading.generated(raw);
    }
    scan.is_whole()
}

/// A whole answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    response(&mut scan, reading);
    scan.is_whole()
}

/// The response object: at the top of a whole answer, inside the events of a stream (where `output` was streamed before).
fn response(scan: &mut Scan<'_>, reading: &mut Reading) {
    let mut searches = 0;
    scan.object(|key, scan| match key {
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"service_tier" => reading.service_tier_here(scan),
        b"error" => reading.error_here(scan),
        b"status" => reading.finished |= scan.string() == Some(b"completed"),
        b"output" => scan.array(|scan| searches += output_item(scan, reading)),
        _ => {}
    });
    reading.raise_web_searches(searches);
}

/// One item of the output. Its text is taken by readings of whole answers only; in a stream it came in deltas. Returns the web
/// searches it stands for.
fn output_item(scan: &mut Scan<'_>, reading: &mut Reading) -> u64 {
    let mut search = false;
    let mut opened_page = false;
    scan.object(|key, scan| match key {
        b"type" => search = scan.string() == Some(b"web_search_call"),
        // Opening a page that was found is not a search of its own.
        b"action" => scan.object(|key, scan| {
            if key == b"type" {
                opened_page = scan.string().is_some_and(|action| action != b"search");
            }
        }),
        b"content" | b"summary" if reading.is_whole_answer() => scan.array(|scan| {
            scan.object(|key, scan| {
                if matches!(key, b"text" | b"refusal") {
                    reading.generated_here(scan);
                }
            });
        }),
        b"name" | b"arguments" | b"input" | b"code" if reading.is_whole_answer() => reading.generated_here(scan),
        _ => {}
    });
    u64::from(search && !opened_page)
}

fn is_audio(kind: &[u8]) -> bool {
    matches!(kind, b"response.audio.delta" | b"response.output_audio.delta")
}

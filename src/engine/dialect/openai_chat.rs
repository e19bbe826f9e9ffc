//! `/v1/chat/completions`: deltas in `choices[].delta`, usage in an event of its own before `[DONE]`.
//!
//! Spoken, with additions, by nearly everybody: `reasoning_content` (DeepSeek, vLLM), `reasoning` (OpenRouter, Groq, Ollama), content
//! as a list of parts (Mistral's thinking), `x_groq.usage`, an `error` beside or instead of the choices. Azure's first event has
//! empty choices and no usage.

use super::reading::Reading;
use super::scan::Scan;
use super::{Endpoint, error_in_answer};

/// One event's data.
pub fn event(data: &[u8], reading: &mut Reading) -> bool {
    if data == b"[DONE]" {
        reading.ended = true;
        return true;
    }
    answer(data, reading)
}

/// A whole answer or an event: they differ in `message` and `delta`. `false`: the text cannot be read to its end.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    let mut scan = Scan::new(data);
    let mut is_error = false;
    scan.object(|key, scan| match key {
        b"choices" => choices(scan, reading),
        b"usage" => reading.usage_here(scan),
        b"model" => reading.model_here(scan),
        b"service_tier" => reading.service_tier_here(scan),
        b"error" => reading.error_here(scan),
        b"x_groq" => scan.object(|key, scan| match key {
            b"usage" => reading.usage_here(scan),
            b"error" => reading.error_here(scan),
            _ => {}
        }),
        b"obfuscation" => reading.padding_here(scan),
        b"object" => is_error = scan.string() == Some(b"error"),
        // Workers AI's own format, should a model answer in it.
        b"response" => reading.generated_here(scan),
        _ => {}
    });
    if is_error {
        // vLLM's error event has the error's fields at the top: {"object":"error","message":…}.
        reading.error = error_in_answer(data);
    }
    scan.is_whole()
}

fn choices(scan: &mut Scan<'_>, reading: &mut Reading) {
    let mut some = scan.here() != Some(b'[');
    scan.array(|scan| {
        some = true;
        scan.object(|key, scan| match key {
            // Together sends the text under both names, whichever of the two paths was asked.
            b"delta" | b"message" if reading.endpoint != Endpoint::Completions => delta(scan, reading),
            b"text" if reading.endpoint == Endpoint::Completions => reading.generated_here(scan),
            // OpenRouter's, when one of several choices fails.
            b"error" => reading.error_here(scan),
            b"finish_reason" => reading.finished |= scan.here() == Some(b'"'),
            _ => {}
        });
    });
    if !some {
        reading.no_choices();
    }
}

/// Everything in a delta that the model wrote.
fn delta(scan: &mut Scan<'_>, reading: &mut Reading) {
    // Some servers send the same reasoning under both names.
    let mut reasoned: &[u8] = b"";
    scan.object(|key, scan| match key {
        b"content" => content(scan, reading),
        b"reasoning_content" | b"reasoning" if scan.here() == Some(b'"') && (reasoned.is_empty() || reasoned == key) => {
            reasoned = key;
            reading.generated_here(scan);
        }
        b"refusal" => reading.generated_here(scan),
        b"tool_calls" => scan.array(|scan| {
            scan.object(|key, scan| {
                if key == b"function" || key == b"custom" {
                    call(scan, reading);
                }
            });
        }),
        b"function_call" => call(scan, reading),
        b"audio" => scan.object(|key, scan| {
            if key == b"transcript" {
                reading.generated_here(scan);
            }
        }),
        _ => {}
    });
}

/// Content is text, or a list of parts whose text (Mistral: `thinking`, itself a list) counts.
fn content(scan: &mut Scan<'_>, reading: &mut Reading) {
    reading.generated_here(scan);
    scan.array(|scan| {
        scan.object(|key, scan| match key {
            b"text" => reading.generated_here(scan),
            b"thinking" => {
                reading.generated_here(scan);
                scan.array(|scan| {
                    scan.object(|key, scan| {
                        if key == b"text" {
                            reading.generated_here(scan);
                        }
                    });
                });
            }
            _ => {}
        });
    });
}

/// The call of a tool: its name and arguments are generated text.
fn call(scan: &mut Scan<'_>, reading: &mut Reading) {
    scan.object(|key, scan| {
        if matches!(key, b"name" | b"arguments" | b"input") {
            reading.generated_here(scan);
        }
    });
}

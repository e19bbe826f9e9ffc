//! Replays exchanges through the library without a proxy, and prints what came of them, a line of JSON each.
//!
//! `replay SETTINGS`, with a line of JSON for each exchange on the standard input: `{path, headers, body, admission, answers}` (body and
//! admission as text), where an answer is `{status, headers, body | events, cut}`. Used by the tests, and an example of how the library is called.

use serde_json::{Map, Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use weir_ffi::packed::{EDITED, Packed, Refused, Step, TEXTS_MAX};
use weir_ffi::request::{Failed, Fed};
use weir_ffi::settings::Settings;
use weir_ffi::{Engine, Request};

/// What a proxy takes as a failure and asks the library about, as nginx/nginx.conf does with `error_page`.
const RETRIED: [u64; 10] = [401, 402, 403, 408, 429, 500, 502, 503, 504, 529];

fn main() -> Result<(), Box<dyn Error>> {
    let settings = std::env::args().nth(1).ok_or("replay SETTINGS")?;
    let engine = Engine::open(Settings::parse(settings.as_bytes())?)?;
    for line in std::io::stdin().lock().lines() {
        let exchange: Value = serde_json::from_str(&line?)?;
        writeln!(std::io::stdout(), "{}", replay(&engine, &exchange)?)?;
    }
    Ok(())
}

fn replay(engine: &Engine, exchange: &Value) -> Result<Value, Box<dyn Error>> {
    let body = exchange["body"].as_str().unwrap_or_default();
    let mut head = exchange["path"].as_str().unwrap_or_default().to_owned();
    for (name, value) in headers(exchange) {
        head += &format!("\n{name}: {value}");
    }
    let (mut request, step) = match Request::begin(engine, head.as_bytes(), body.as_bytes()) {
        Ok(begun) => begun,
        Err(refused) => return Ok(ended(vec![], Some(refused), None)),
    };
    let mut step = match step {
        Step::Admit(_) => request.admitted(200, exchange["admission"].as_str().unwrap_or_default().as_bytes()),
        step => step,
    };
    let mut attempts = Vec::new();
    let mut answers = exchange["answers"].as_array().into_iter().flatten();
    loop {
        if step != Step::Try {
            let refused = if let Step::Refuse(refused) = step { Some(refused) } else { None };
            let row = request.end(refused.as_ref().map_or(0, |refused| refused.status), false, true);
            return Ok(ended(attempts, refused, row));
        }
        attempts.push(sent(exchange, body, &request).ok_or("a step is not packed as it should be")?);
        let answer = answers.next().ok_or("there are more attempts than answers")?;
        let status = answer["status"].as_u64().unwrap_or(0);
        if RETRIED.contains(&status) {
            step = request.next(&Failed { status: status as u16, from_upstream: true, is_last: false, retry_after_ms: None, body: b"" });
            continue;
        }
        let (told, body) = answered(&mut request, answer, status as u16);
        let row = request.end(status as u16, false, answer["cut"] != true);
        return Ok(json!({ "attempts": attempts, "status": status, "body": body, "told": told, "row": row }));
    }
}

/// What a provider gets: the client's headers but those that stay here, and those that are set. `None`: the step has no such texts.
fn sent(exchange: &Value, body: &str, request: &Request) -> Option<Value> {
    let mut out = String::new();
    let packed = request.write_step(&Step::Try, &mut out);
    let [id, uri, remove, set, key_name, key] = texts(&packed, &out)?;
    let remove: Vec<&str> = remove.lines().collect();
    let mut kept: Map<String, Value> =
        headers(exchange).filter(|(name, _)| !remove.contains(&name.as_str())).map(|(name, value)| (name, value.into())).collect();
    kept.insert("x-request-id".into(), id.into());
    kept.extend(told(set));
    if !key_name.is_empty() {
        kept.insert(key_name.into(), key.into());
    }
    let mut edited = Vec::new();
    request.write_body(&mut edited);
    let body = if packed.flags & EDITED != 0 { String::from_utf8_lossy(&edited).into_owned() } else { body.to_owned() };
    Some(json!({ "path": uri, "headers": kept, "body": body }))
}

/// The texts of a step.
fn texts<'t>(packed: &Packed, mut out: &'t str) -> Option<[&'t str; TEXTS_MAX]> {
    let mut texts = [""; TEXTS_MAX];
    for (text, length) in texts.iter_mut().zip(packed.lengths) {
        (*text, out) = out.split_at_checked(length as usize)?;
    }
    Some(texts)
}

/// Headers, name and value a line each.
fn told(text: &str) -> Map<String, Value> {
    let mut lines = text.lines();
    std::iter::from_fn(|| Some((lines.next()?.to_owned(), lines.next()?.into()))).collect()
}

/// What the client gets of an answer: its new headers and its body.
fn answered(request: &mut Request, answer: &Value, status: u16) -> (Value, String) {
    let head: String = headers(answer).map(|(name, value)| format!("{name}: {value}\n")).collect();
    let mut texts_out = String::new();
    let packed = request.answer(status, head.as_bytes(), &mut texts_out);
    let set = texts(&packed, &texts_out).map_or("", |texts| texts[1]);
    let mut out = Vec::new();
    let whole = [answer["body"].clone()];
    let pieces = answer["events"].as_array().map_or(whole.as_slice(), Vec::as_slice);
    for piece in pieces.iter().filter_map(Value::as_str) {
        feed(request, piece.as_bytes(), false, &mut out);
    }
    if answer["cut"] != true {
        feed(request, b"", true, &mut out);
    }
    (told(set).into(), String::from_utf8_lossy(&out).into_owned())
}

fn feed(request: &mut Request, chunk: &[u8], last: bool, out: &mut Vec<u8>) {
    let before = out.len();
    if request.feed(chunk, last, out).fed == Fed::Unchanged {
        out.truncate(before);
        out.extend_from_slice(chunk);
    }
}

fn ended(attempts: Vec<Value>, refused: Option<Refused>, row: Option<String>) -> Value {
    let (status, body, headers) = refused.map_or((0, String::new(), vec![]), |refused| (refused.status, refused.body, refused.headers));
    let told: Map<String, Value> = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
    json!({ "attempts": attempts, "status": status, "body": body, "told": told, "row": row })
}

fn headers(of: &Value) -> impl Iterator<Item = (String, String)> + '_ {
    of["headers"].as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
}

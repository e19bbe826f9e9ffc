//! The request, made once; what differs from one to the next is overwritten in place, in slots of fixed width.

use crate::Options;
use crate::answer::Expected;
use memchr::memmem;

/// The name of the model with this number.
pub fn model(number: usize) -> String {
    format!("bench-{number:05}")
}

/// What the provider does wrong, by the word that asks for it (of four letters, as [`NO_FAULT`]).
#[derive(Clone, Copy)]
pub struct Fault(&'static str);

const NO_FAULT: &str = "none";

impl Fault {
    /// Status 500, status 429, a connection closed before the answer, one closed in the midst of it.
    pub const ALL: [Fault; 4] = [Fault("s500"), Fault("s429"), Fault("shut"), Fault("half")];
}

/// Numbers by xorshift64 (Marsaglia 2003): the same in every run, from a seed.
pub struct Dice(u64);

impl Dice {
    /// Dice of the worker with this index.
    pub fn new(index: usize) -> Dice {
        Dice((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Whether this is one of so many in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        percent > 0 && self.next() % 100 < percent
    }
}

/// Head and body, ready to be written.
#[derive(Clone)]
pub struct Request {
    bytes: Vec<u8>,
    /// Where what may differ begins.
    key_at: Option<usize>,
    model_at: Option<usize>,
    fault_at: Option<usize>,
}

impl Request {
    /// The request that the options ask for.
    pub fn new(options: &Options) -> Request {
        let body = body(options);
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\nuser-agent: load/1\r\n{}content-length: {}\r\n\r\n",
            options.path,
            options.address,
            options.headers,
            body.len()
        );
        let bytes = (head + &body).into_bytes();
        let find = |what: &str| memmem::find(&bytes, what.as_bytes());
        let key_at = options.keys.first().and_then(|key| find(key));
        let model_at = if options.models > 0 { find(&options.model) } else { None };
        let fault_at = find(&format!("fault={NO_FAULT}")).map(|at| at + "fault=".len());
        Request { bytes, key_at, model_at, fault_at }
    }

    /// Makes it the next one.
    pub fn draw(&mut self, options: &Options, dice: &mut Dice, fault: Option<Fault>) {
        let mut put = |at: Option<usize>, text: &str| {
            if let Some(at) = at {
                self.bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
            }
        };
        if self.key_at.is_some() {
            put(self.key_at, &options.keys[dice.below(options.keys.len())]);
        }
        if self.model_at.is_some() {
            put(self.model_at, &model(dice.below(options.models)));
        }
        put(self.fault_at, fault.map_or(NO_FAULT, |fault| fault.0));
    }

    /// As it is now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A conversation of about `body_kb` KiB in turns of about a KiB, with escapes and text beyond ASCII as real ones have.
fn body(options: &Options) -> String {
    const TURN: &str = r#"The reading at gauge 7 was \"2.31 m\",\nrising; Zufluss über dem Mittel (≈ 14 m³/s) — 水位 normal. "#;
    let mut wishes = Vec::new();
    let mut stream = String::new();
    if let Expected::Stream { events, usage } = options.expected {
        stream = format!(r#""stream":true,{}"#, if usage { r#""stream_options":{"include_usage":true},"# } else { "" });
        wishes.push(format!("events={events} pause_ms={}", options.pause_ms));
    }
    if options.churn.faults > 0 {
        wishes.push(format!("fault={NO_FAULT}"));
    }
    let wishes = if wishes.is_empty() { String::new() } else { format!("{{{{{}}}}} ", wishes.join(" ")) };
    let mut body = format!(
        r#"{{"model":"{}","temperature":0.3,"max_tokens":300,{stream}"messages":[{{"role":"system","content":"{wishes}You watch a river."}}"#,
        options.model
    );
    let size = options.body_kb << 10;
    let last = r#",{"role":"user","content":"And now?"}]}"#;
    for role in ["user", "assistant"].into_iter().cycle() {
        let room = size.saturating_sub(body.len() + last.len() + 32);
        let turns = (room / TURN.len()).min(9);
        if turns == 0 {
            break;
        }
        body += &format!(r#",{{"role":"{role}","content":"{}"}}"#, TURN.repeat(turns));
    }
    body + last
}

//! Usage as providers report it, and the one way from there to disjoint buckets.
//!
//! The names of the counts do not collide between the formats, so one table reads all of them; what differs is which count
//! includes which ([`Habits`]). Field names: openai-python `types/completion_usage.py`, `types/responses/response_usage.py`,
//! `types/audio/transcription.py`, `types/images_response.py`; anthropic-sdk-python `types/usage.py`, `cache_creation.py`,
//! `server_tool_usage.py`; DeepSeek's `prompt_cache_hit_tokens` and top-level `cached_tokens` of others from genai-prices
//! `prices/providers/`.

use super::scan::{Scan, decimal};
use super::{Dialect, Endpoint};
use crate::engine::provider::{Habits, Kind, spec};
use crate::engine::usage::{Bucket, Usage};

/// One count in a provider's usage object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// Prompt tokens; what they include is the provider's habits.
    Input,
    /// Answer tokens; what they include is the provider's habits.
    Output,
    /// Input and output as the provider adds them.
    Total,
    /// Read from the cache.
    Cached,
    /// Read from the cache, audio; inside `Cached` and `AudioInput`.
    CachedAudio,
    /// Written to the cache, whatever the life time.
    CacheWrite,
    /// Written for five minutes; inside `CacheWrite`.
    CacheWrite5m,
    /// Written for an hour; inside `CacheWrite`.
    CacheWrite1h,
    /// Hidden reasoning.
    Reasoning,
    /// Audio in the prompt.
    AudioInput,
    /// Images in the prompt.
    ImageInput,
    /// Text in the answer, where text is not the rule (images).
    TextOutput,
    /// Audio in the answer.
    AudioOutput,
    /// Images in the answer.
    ImageOutput,
    /// Web searches the provider made.
    WebSearches,
    /// Audio billed by time, in milliseconds.
    Milliseconds,
}

/// The counts of one usage object, or of several merged. Absent is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reported {
    counts: [u64; 16],
}

/// The habits of `kind` in the format of `endpoint`.
pub fn habits(kind: Kind, endpoint: Endpoint) -> Habits {
    let habits = spec(kind).habits;
    // A format's field names settle where the cache stands, whoever speaks it (DeepSeek, Ollama and vLLM speak Anthropic's, too).
    let beside = endpoint.dialect() == Dialect::Anthropic;
    Habits { cached_in_input: !beside, cache_write_in_input: !beside, ..habits }
}

impl Reported {
    /// The count in `field`.
    pub fn of(&self, field: Field) -> u64 {
        self.counts[field as usize]
    }

    /// Sets the count in `field`.
    pub fn set(&mut self, field: Field, count: u64) {
        self.counts[field as usize] = count;
    }

    /// Nothing counted: a placeholder, such as Ollama's legacy completions put into every event.
    pub fn is_zero(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// A later report replaces an earlier one, count by count; a zero or a missing count replaces nothing.
    pub fn replace_by(&mut self, later: &Reported) {
        for (mine, later) in self.counts.iter_mut().zip(later.counts) {
            if later != 0 {
                *mine = later;
            }
        }
    }

    /// Takes the larger of each count (cumulative reports: Anthropic).
    pub fn raise_to(&mut self, later: &Reported) {
        for (mine, later) in self.counts.iter_mut().zip(later.counts) {
            *mine = (*mine).max(later);
        }
    }

    /// Reads the usage object at `scan`. `other` is offered the fields that are no counts (`cost`, `service_tier`).
    pub fn read<'a>(&mut self, scan: &mut Scan<'a>, mut other: impl FnMut(&'a [u8], &mut Scan<'a>)) {
        scan.object(|key, scan| match key {
            b"prompt_tokens_details" | b"input_tokens_details" | b"input_token_details" => self.details(scan, INPUT_DETAILS),
            b"completion_tokens_details" | b"output_tokens_details" | b"output_token_details" => self.details(scan, OUTPUT_DETAILS),
            b"cache_creation" => self.details(scan, CACHE_CREATION),
            b"server_tool_use" => self.details(scan, SERVER_TOOLS),
            b"seconds" => {
                let milliseconds = scan.number().and_then(|number| decimal(number, 3));
                self.set(Field::Milliseconds, milliseconds.map_or(0, clamped));
            }
            _ => match find(TOTALS, key) {
                Some(field) => self.number(scan, field),
                None => other(key, scan),
            },
        });
    }

    fn details(&mut self, scan: &mut Scan<'_>, names: Names) {
        scan.object(|key, scan| match find(names, key) {
            Some(field) => self.number(scan, field),
            None if key == b"cached_tokens_details" => self.details(scan, CACHED_DETAILS),
            None => {}
        });
    }

    /// Several names may stand for one count (`prompt_cache_hit_tokens` and `cached_tokens`): the larger is taken.
    fn number(&mut self, scan: &mut Scan<'_>, field: Field) {
        if let Some(number) = scan.number() {
            let count = decimal(number, 0).map_or(0, clamped);
            self.set(field, self.of(field).max(count));
        }
    }

    /// The disjoint buckets, and whether the parts contradicted the totals (which then won).
    pub fn buckets(&self, habits: Habits, endpoint: Endpoint) -> (Usage, bool) {
        let mut split = Split { usage: Usage::default(), inconsistent: false };
        self.split_input(habits, &mut split);
        self.split_output(habits, endpoint, &mut split);
        split.usage.set(Bucket::WebSearches, self.of(Field::WebSearches));
        split.usage.set(Bucket::Milliseconds, self.of(Field::Milliseconds));
        (split.usage, split.inconsistent)
    }

    fn split_input(&self, habits: Habits, split: &mut Split) {
        let mut rest = self.of(Field::Input);
        if rest == 0 && self.of(Field::Output) == 0 {
            // Embeddings whose usage is a grand total alone.
            rest = self.of(Field::Total);
        }
        let mut cached = self.of(Field::Cached);
        if habits.cached_in_input {
            cached = split.part(&mut rest, cached);
        }
        let cached_audio = split.part(&mut cached, self.of(Field::CachedAudio));
        split.usage.set(Bucket::CachedInput, cached);
        split.usage.set(Bucket::CachedAudioInput, cached_audio);

        let (mut write_5m, mut write_1h) = self.cache_writes(split);
        if habits.cache_write_in_input {
            write_5m = split.part(&mut rest, write_5m);
            write_1h = split.part(&mut rest, write_1h);
        }
        split.usage.set(Bucket::CacheWrite5m, write_5m);
        split.usage.set(Bucket::CacheWrite1h, write_1h);

        let audio = split.part(&mut rest, self.of(Field::AudioInput).saturating_sub(cached_audio));
        split.usage.set(Bucket::AudioInput, audio);
        let image = split.part(&mut rest, self.of(Field::ImageInput));
        split.usage.set(Bucket::ImageInput, image);
        split.usage.set(Bucket::Input, rest);
    }

    /// Cache writes by life time. Anthropic's own example has 456 + 100 of 248: the total wins and the hour is kept.
    fn cache_writes(&self, split: &mut Split) -> (u64, u64) {
        let (total, five, hour) = (self.of(Field::CacheWrite), self.of(Field::CacheWrite5m), self.of(Field::CacheWrite1h));
        let parts = five.saturating_add(hour);
        if total == 0 || parts == total {
            return (five, hour);
        }
        split.inconsistent |= parts != 0;
        (total.saturating_sub(hour), hour.min(total))
    }

    fn split_output(&self, habits: Habits, endpoint: Endpoint, split: &mut Split) {
        let mut rest = self.of(Field::Output);
        let known = self.of(Field::Input).saturating_add(rest);
        let total = self.of(Field::Total);
        let beyond = if known == 0 { 0 } else { total.saturating_sub(known) };
        split.inconsistent |= total != 0 && total < known;

        let audio = split.part(&mut rest, self.of(Field::AudioOutput));
        let image = split.part(&mut rest, self.of(Field::ImageOutput));
        let reported = self.of(Field::Reasoning);
        let reasoning = if habits.hidden_from_total && beyond > 0 {
            // Gemini hides its thoughts there; xAI (an `openai-compatible` one) puts there what it reports.
            split.inconsistent |= reported != 0 && reported != beyond;
            beyond
        } else if !habits.reasoning_in_output && total == 0 {
            reported
        } else {
            split.part(&mut rest, reported)
        };
        split.usage.set(Bucket::Reasoning, reasoning);
        split.usage.set(Bucket::AudioOutput, audio);
        split.usage.set(Bucket::ImageOutput, image);
        // Where the answer is not text, the part without a name is what the endpoint makes.
        let (main, text) = match endpoint {
            Endpoint::Images => (Bucket::ImageOutput, split.part(&mut rest, self.of(Field::TextOutput))),
            Endpoint::Speech => (Bucket::AudioOutput, split.part(&mut rest, self.of(Field::TextOutput))),
            _ => (Bucket::Output, 0),
        };
        split.usage.set(main, split.usage.of(main).saturating_add(rest));
        split.usage.set(Bucket::Output, split.usage.of(Bucket::Output).saturating_add(text));
    }
}

/// Takes parts out of totals.
struct Split {
    usage: Usage,
    inconsistent: bool,
}

impl Split {
    /// Takes `part` out of `rest`, or all of it where that is less.
    fn part(&mut self, rest: &mut u64, part: u64) -> u64 {
        self.inconsistent |= part > *rest;
        let part = part.min(*rest);
        *rest -= part;
        part
    }
}

type Names = &'static [(&'static [u8], Field)];

const TOTALS: Names = &[
    (b"prompt_tokens", Field::Input),
    (b"completion_tokens", Field::Output),
    (b"total_tokens", Field::Total),
    (b"input_tokens", Field::Input),
    (b"output_tokens", Field::Output),
    (b"cached_tokens", Field::Cached),
    (b"prompt_cache_hit_tokens", Field::Cached),
    (b"cache_read_input_tokens", Field::Cached),
    (b"cache_creation_input_tokens", Field::CacheWrite),
    (b"reasoning_tokens", Field::Reasoning),
];
const INPUT_DETAILS: Names = &[
    (b"cached_tokens", Field::Cached),
    (b"cache_write_tokens", Field::CacheWrite),
    (b"audio_tokens", Field::AudioInput),
    (b"image_tokens", Field::ImageInput),
];
const OUTPUT_DETAILS: Names = &[
    (b"reasoning_tokens", Field::Reasoning),
    (b"thinking_tokens", Field::Reasoning),
    (b"audio_tokens", Field::AudioOutput),
    (b"image_tokens", Field::ImageOutput),
    (b"text_tokens", Field::TextOutput),
];
const CACHED_DETAILS: Names = &[(b"audio_tokens", Field::CachedAudio)];
const CACHE_CREATION: Names = &[(b"ephemeral_5m_input_tokens", Field::CacheWrite5m), (b"ephemeral_1h_input_tokens", Field::CacheWrite1h)];
const SERVER_TOOLS: Names = &[(b"web_search_requests", Field::WebSearches)];

fn find(names: Names, key: &[u8]) -> Option<Field> {
    names.iter().find(|(name, _)| *name == key).map(|(_, field)| *field)
}

/// A count of an answer cannot come near this; a larger one is a provider's mistake and must not overflow sums.
fn clamped(count: i128) -> u64 {
    count.clamp(0, i128::from(u32::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use Bucket::*;

    /// The usage object, by `kind` at `endpoint`, gives exactly these buckets.
    fn check(kind: Kind, endpoint: Endpoint, json: &str, expected: &[(Bucket, u64)], inconsistent: bool) {
        let mut reported = Reported::default();
        let mut scan = Scan::new(json.as_bytes());
        reported.read(&mut scan, |_, _| {});
        assert!(scan.is_whole(), "{json}");
        let (usage, flagged) = reported.buckets(habits(kind, endpoint), endpoint);
        let seen: Vec<_> = usage.iter().filter(|(_, count)| *count != 0).collect();
        assert_eq!((seen, flagged), (expected.to_vec(), inconsistent), "{json}");
    }

    #[test]
    fn openai_shapes_become_disjoint() {
        let chat = |kind, json, expected: &[_], inconsistent| check(kind, Endpoint::ChatCompletions, json, expected, inconsistent);
        chat(Kind::OpenAi, r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15}"#, &[(Input, 10), (Output, 5)], false);
        chat(
            Kind::OpenAi,
            r#"{"prompt_tokens":2006,"completion_tokens":300,"total_tokens":2306,
                "prompt_tokens_details":{"cached_tokens":1920,"audio_tokens":40,"cache_write_tokens":6},
                "completion_tokens_details":{"reasoning_tokens":192,"audio_tokens":8,"accepted_prediction_tokens":4,"rejected_prediction_tokens":2}}"#,
            &[(Input, 40), (AudioInput, 40), (CachedInput, 1920), (CacheWrite5m, 6), (Output, 100), (Reasoning, 192), (AudioOutput, 8)],
            false,
        );
        chat(
            Kind::DeepSeek,
            r#"{"prompt_tokens":100,"completion_tokens":9,"total_tokens":109,"prompt_tokens_details":{"cached_tokens":64},"prompt_cache_hit_tokens":64,"prompt_cache_miss_tokens":36}"#,
            &[(Input, 36), (CachedInput, 64), (Output, 9)],
            false,
        );
        chat(
            Kind::OpenAi,
            r#"{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30,"prompt_tokens_details":{"cached_tokens":12},"completion_tokens_details":{"reasoning_tokens":50}}"#,
            &[(CachedInput, 10), (Reasoning, 20)],
            true,
        );
        chat(Kind::OpenAi, r#"{"prompt_tokens":10,"completion_tokens":20,"total_tokens":5}"#, &[(Input, 10), (Output, 20)], true);
        chat(
            Kind::Gemini,
            r#"{"prompt_tokens":10,"completion_tokens":20,"total_tokens":130}"#,
            &[(Input, 10), (Output, 20), (Reasoning, 100)],
            false,
        );
        let xai = r#"{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"prompt_tokens_details":{"text_tokens":32,"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":94}}"#;
        chat(Kind::OpenAiCompatible, xai, &[(Input, 24), (CachedInput, 8), (Output, 9), (Reasoning, 94)], false);
        let inside =
            r#"{"prompt_tokens":32,"completion_tokens":103,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}"#;
        chat(Kind::OpenAiCompatible, inside, &[(Input, 32), (Output, 9), (Reasoning, 94)], false);
        chat(Kind::OpenAi, r#"{"prompt_tokens":null,"completion_tokens":"5","total_tokens":7.0}"#, &[(Input, 7)], false);
        chat(Kind::OpenAi, r#"{"prompt_tokens":1e99,"completion_tokens":-5}"#, &[], false);
    }

    #[test]
    fn anthropic_keeps_the_cache_beside_the_input() {
        let messages = |json, expected: &[_], inconsistent| check(Kind::Anthropic, Endpoint::Messages, json, expected, inconsistent);
        messages(
            r#"{"input_tokens":21,"cache_creation_input_tokens":188,"cache_read_input_tokens":1000,"output_tokens":393,
                "cache_creation":{"ephemeral_5m_input_tokens":88,"ephemeral_1h_input_tokens":100},
                "output_tokens_details":{"thinking_tokens":93},"server_tool_use":{"web_search_requests":2,"web_fetch_requests":1}}"#,
            &[(Input, 21), (CachedInput, 1000), (CacheWrite5m, 88), (CacheWrite1h, 100), (Output, 300), (Reasoning, 93), (WebSearches, 2)],
            false,
        );
        messages(
            r#"{"input_tokens":1,"cache_creation_input_tokens":7,"output_tokens":1}"#,
            &[(Input, 1), (CacheWrite5m, 7), (Output, 1)],
            false,
        );
        messages(
            r#"{"input_tokens":1,"cache_creation_input_tokens":248,"cache_creation":{"ephemeral_5m_input_tokens":456,"ephemeral_1h_input_tokens":100}}"#,
            &[(Input, 1), (CacheWrite5m, 148), (CacheWrite1h, 100)],
            true,
        );
        messages(
            r#"{"input_tokens":1,"cache_creation_input_tokens":48,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":100}}"#,
            &[(Input, 1), (CacheWrite1h, 48)],
            true,
        );
    }

    #[test]
    fn images_speech_and_transcriptions_have_their_own_main_bucket() {
        check(
            Kind::OpenAi,
            Endpoint::Images,
            r#"{"total_tokens":4210,"input_tokens":50,"output_tokens":4160,"input_tokens_details":{"text_tokens":10,"image_tokens":40}}"#,
            &[(Input, 10), (ImageInput, 40), (ImageOutput, 4160)],
            false,
        );
        check(
            Kind::OpenAi,
            Endpoint::Images,
            r#"{"input_tokens":10,"output_tokens":4200,"output_tokens_details":{"text_tokens":40,"image_tokens":4160}}"#,
            &[(Input, 10), (Output, 40), (ImageOutput, 4160)],
            false,
        );
        check(
            Kind::OpenAi,
            Endpoint::Speech,
            r#"{"input_tokens":14,"output_tokens":101,"total_tokens":115}"#,
            &[(Input, 14), (AudioOutput, 101)],
            false,
        );
        check(
            Kind::OpenAi,
            Endpoint::Transcriptions,
            r#"{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":4,"audio_tokens":10},"output_tokens":45,"total_tokens":59}"#,
            &[(Input, 4), (AudioInput, 10), (Output, 45)],
            false,
        );
        check(Kind::OpenAi, Endpoint::Transcriptions, r#"{"type":"duration","seconds":3.4567}"#, &[(Milliseconds, 3457)], false);
        check(Kind::OpenAi, Endpoint::Embeddings, r#"{"prompt_tokens":8,"total_tokens":8}"#, &[(Input, 8)], false);
        check(Kind::Cloudflare, Endpoint::Embeddings, r#"{"total_tokens":8}"#, &[(Input, 8)], false);
    }

    #[test]
    fn later_reports_replace_and_cumulative_ones_rise() {
        let report = |input, output| {
            let mut reported = Reported::default();
            reported.set(Field::Input, input);
            reported.set(Field::Output, output);
            reported
        };
        let mut last = report(10, 7);
        last.replace_by(&report(0, 5));
        assert_eq!(last, report(10, 5));
        let mut risen = report(10, 1);
        risen.raise_to(&report(0, 25));
        risen.raise_to(&report(12, 3));
        assert_eq!(risen, report(12, 25));
    }
}

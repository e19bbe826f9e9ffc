//! Which vocabulary stands for which model, and how far off it is.
//!
//! Only OpenAI's models are counted with their own vocabulary. For the others `o200k_base` stands in, and its count is corrected by how
//! many more tokens their own tokenizers made of four texts (English, Python and Rust code, JSON, Chinese; 1-2 MB each, 60 KB for Claude).
//! The own tokenizers: the vocabularies in the crate `tiktoken` 4.1.2; for Claude the reconstruction in `ctok` 1.3.0 (PyPI). A correction
//! is the mean of the four, rounded up to the next 5 %, never below 1.0: a single text can be 10-15 % off either way. Counts that matter
//! come from the provider; these fill the gaps.

use super::Encoding;

/// An encoding and a correction for families whose own vocabulary is not in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The stand-in encoding.
    pub encoding: Encoding,
    /// Counted tokens are multiplied by this over 1000.
    pub per_mille: u32,
}

impl Family {
    /// A count in this family's own tokens, rounded up.
    pub(super) fn corrected(self, tokens: u64) -> u64 {
        match self.per_mille {
            1000 => tokens,
            per_mille => tokens.saturating_mul(u64::from(per_mille)).div_ceil(1000),
        }
    }
}

const O200K: Family = Family { encoding: Encoding::O200k, per_mille: 1000 };
const CL100K: Family = Family { encoding: Encoding::Cl100k, per_mille: 1000 };

/// `o200k_base` and a correction.
const fn o200k_times(per_mille: u32) -> Family {
    Family { encoding: Encoding::O200k, per_mille }
}

/// Claude 3 to Opus 4.6: +14 % English, +33 % code, +26 % JSON, +18 % Chinese.
const CLAUDE: Family = o200k_times(1250);

/// Claude from 4.7 on, by the same source: +54 %, +69 %, +49 %, +27 %.
const CLAUDE_NEWER: Family = o200k_times(1500);

/// What a model's name contains, at the start of a word, and the family that it means; the first entry that fits counts.
///
/// Everything else is `o200k_base` as it is: OpenAI's later models (gpt-4o, gpt-4.1, gpt-5, o1, o3, o4, gpt-oss: tiktoken's `model.py`),
/// the families whose measured mean is at or below zero (Llama 3, Kimi K2, GLM 4, MiniMax), and those of which nothing is known (Gemini,
/// Grok, Cohere, Nova).
const FAMILIES: &[(&str, Family)] = &[
    // OpenAI, by tiktoken's `model.py`. The older gpt-4 names come after the newer ones that begin with them.
    ("gpt-4o", O200K),
    ("gpt-4.1", O200K),
    ("gpt-4.5", O200K),
    ("gpt-4", CL100K),
    ("gpt-3.5", CL100K),
    ("gpt-35", CL100K), // as Azure spells it
    ("text-embedding", CL100K),
    ("davinci-002", CL100K),
    ("babbage-002", CL100K),
    // Distilled models keep the tokenizer of the model that learned.
    ("distill-llama", O200K),
    ("distill-qwen", o200k_times(1050)),
    ("deepseek", o200k_times(1050)), // +5.0 %, +9.8 %, +8.3 %, -5.5 %
    ("qwen", o200k_times(1050)),     // +5.0 %, 0.0 %, +7.7 %, -2.6 %
    ("qwq", o200k_times(1050)),
    // Mistral's Tekken: +7.2 %, +6.3 %, +13.6 %, +18.3 %. The models before it (7B, Mixtral) have an older vocabulary, not measured.
    ("mistral", o200k_times(1150)),
    ("ministral", o200k_times(1150)),
    ("mixtral", o200k_times(1150)),
    ("codestral", o200k_times(1150)),
    ("devstral", o200k_times(1150)),
    ("magistral", o200k_times(1150)),
    ("pixtral", o200k_times(1150)),
];

/// The family of an upstream model name, with or without a vendor's prefix (`openai/`, `@cf/meta/`, `us.anthropic.`) and in any case.
///
/// Total: a name that says nothing is `o200k_base` without a correction.
pub fn family(model: &str) -> Family {
    let model = model.as_bytes();
    let name = &model[model.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)..];
    let mut first = FAMILIES.len();
    for word in words(name) {
        if let Some(rest) = after(word, "claude") {
            return if is_newer_claude(rest) { CLAUDE_NEWER } else { CLAUDE };
        }
        first = FAMILIES[..first].iter().position(|(known, _)| after(word, known).is_some()).unwrap_or(first);
    }
    FAMILIES.get(first).map_or(O200K, |(_, family)| *family)
}

/// How many tokens a text of `text_bytes` bytes of UTF-8 may come to, without looking at it: for an allowance that is set aside first and
/// settled later.
///
/// One token for each three bytes, times the family's correction, rounded up. More than prose, code and Chinese come to, but no bound:
/// base64 and random letters come to twice as much, characters that nobody writes to three times.
pub fn estimate(family: Family, text_bytes: usize) -> u64 {
    family.corrected((text_bytes as u64).div_ceil(CAUTIOUS_BYTES_A_TOKEN))
}

/// Bytes of text for each token set aside. Measured in `o200k_base`: Python 4.3 bytes a token, JSON 3.7, READMEs 3.5, Chinese and Japanese
/// manual pages 3.3, Rust 3.2; so this sets aside too much rather than too little.
const CAUTIOUS_BYTES_A_TOKEN: u64 = 3;

/// `name` from each place on that has a letter, and no letter or digit before it.
fn words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let begins = |at: &usize| name[*at].is_ascii_alphabetic() && (*at == 0 || !name[*at - 1].is_ascii_alphanumeric());
    (0..name.len()).filter(begins).map(|at| &name[at..])
}

/// What follows `word` (lower case) where `name` begins with it, case aside.
fn after<'n>(name: &'n [u8], word: &str) -> Option<&'n [u8]> {
    // Most words end at their first letter; the comparison of the whole is a call.
    if name[0] | 0x20 != word.as_bytes()[0] {
        return None;
    }
    let (start, rest) = name.split_at_checked(word.len())?;
    start.eq_ignore_ascii_case(word.as_bytes()).then_some(rest)
}

/// Whether a Claude's name, from after `claude`, says 4.7 or later. A name without a version is an alias of the newest.
fn is_newer_claude(rest: &[u8]) -> bool {
    // A version has at most two digits a part; eight digits are a date (`claude-sonnet-4-20250514`), and `v2:0` counts Amazon's own
    // revisions.
    let mut parts = rest.split(|byte| matches!(byte, b'-' | b'.' | b'_' | b'@' | b':')).skip_while(|part| version_part(part).is_none());
    let Some(major) = parts.next().and_then(version_part) else { return true };
    let minor = parts.next().and_then(version_part).unwrap_or(0);
    (major, minor) >= (4, 7)
}

fn version_part(part: &[u8]) -> Option<u32> {
    let is_version = matches!(part.len(), 1 | 2) && part.iter().all(u8::is_ascii_digit);
    is_version.then(|| part.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        let check = |models: &[&str], expected: Family| {
            for model in models {
                assert_eq!(family(model), expected, "{model}");
            }
        };
        check(
            &["gpt-4o", "openai/gpt-4o-mini", "gpt-4.1-nano", "gpt-5", "gpt-5.2-codex", "o1", "o3-mini", "o4-mini", "chatgpt-4o-latest"],
            O200K,
        );
        check(&["ft:gpt-4o-mini-2024-07-18:org::id", "openrouter/openai/gpt-4o:free", "@cf/openai/gpt-oss-120b", "gpt-4.5-preview"], O200K);
        check(
            &["gpt-4", "gpt-4-turbo-2024-04-09", "OpenAI/GPT-4-32k", "gpt-3.5-turbo", "gpt-35-turbo-16k", "ft:gpt-3.5-turbo:org"],
            CL100K,
        );
        check(&["text-embedding-3-large", "openai/text-embedding-ada-002", "davinci-002"], CL100K);
        check(
            &["claude-3-5-sonnet-20241022", "anthropic/claude-3-haiku", "claude-sonnet-4-20250514", "claude-opus-4-6", "claude-opus-4.1"],
            CLAUDE,
        );
        check(
            &["us.anthropic.claude-3-5-sonnet-20241022-v2:0", "anthropic.claude-opus-4-20250514-v1:0", "claude-sonnet-4@20250514"],
            CLAUDE,
        );
        check(
            &["claude-opus-4-7", "anthropic/claude-opus-4.7", "claude-opus-4-8-20261001", "claude-sonnet-5", "claude-opus-latest"],
            CLAUDE_NEWER,
        );
        check(&["us.anthropic.claude-opus-4-7-20260301-v1:0", "claude-haiku-10"], CLAUDE_NEWER);
        check(
            &["deepseek-chat", "deepseek-ai/DeepSeek-V3", "@cf/deepseek-ai/deepseek-r1-distill-qwen-32b", "qwen3-max", "QwQ-32B"],
            o200k_times(1050),
        );
        check(&["mistral-large-latest", "mistralai/Mixtral-8x22B", "@cf/mistral/mistral-7b-instruct-v0.1", "codestral"], o200k_times(1150));
        check(&["@cf/meta/llama-3.1-8b-instruct", "deepseek-r1-distill-llama-70b", "gemini-2.5-pro", "kimi-k2", "grok-4"], O200K);
        check(&["", "/", "claud", "my-claudette-9".trim_end_matches("claudette-9"), "é/ü", "notgpt-4"], O200K);
    }

    #[test]
    fn corrections_round_up() {
        for (per_mille, tokens, expected) in [(1000, 7, 7), (1250, 4, 5), (1250, 5, 7), (1500, 0, 0), (1250, u64::MAX, u64::MAX / 1000 + 1)]
        {
            assert_eq!(o200k_times(per_mille).corrected(tokens), expected);
        }
    }

    #[test]
    fn estimates() {
        for (family, text_bytes, expected) in
            [(O200K, 0, 0), (O200K, 1, 1), (O200K, 3000, 1000), (CLAUDE_NEWER, 3001, 1502), (CL100K, 4, 2)]
        {
            assert_eq!(estimate(family, text_bytes), expected);
        }
    }
}

//! `/v1/completions` (legacy): text in `choices[].text`, everything else as in chat.
//!
//! Ollama puts a usage of zeros into every event here; the real one comes last.

use super::openai_chat;
use super::reading::Reading;

/// One event's data.
pub fn event(data: &[u8], reading: &mut Reading) -> bool {
    openai_chat::event(data, reading)
}

/// A whole answer.
pub fn answer(data: &[u8], reading: &mut Reading) -> bool {
    openai_chat::answer(data, reading)
}

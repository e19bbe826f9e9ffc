//! What a request used, in buckets that do not overlap.

/// One disjoint kind of use. The order is the order of the ledger's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Bucket {
    /// Text tokens of the prompt that no other input bucket holds.
    Input,
    /// Image tokens of the prompt.
    ImageInput,
    /// Audio tokens of the prompt.
    AudioInput,
    /// Text tokens read from the provider's prompt cache.
    CachedInput,
    /// Audio tokens read from the provider's prompt cache.
    CachedAudioInput,
    /// Tokens written to the provider's cache for five minutes (or its default life time).
    CacheWrite5m,
    /// Tokens written to the provider's cache for an hour.
    CacheWrite1h,
    /// Tokens of the answer that no other output bucket holds.
    Output,
    /// Hidden reasoning tokens; priced as output unless priced apart.
    Reasoning,
    /// Audio tokens of the answer.
    AudioOutput,
    /// Image tokens of the answer.
    ImageOutput,
    /// Milliseconds of audio, for providers that bill time (the ledger shows seconds).
    Milliseconds,
    /// Images made.
    Images,
    /// Requests, for providers that bill each (1 once an upstream accepted the request).
    Requests,
    /// Calls of a provider's own web search tool.
    WebSearches,
}

impl Bucket {
    /// Every bucket, in column order.
    pub const ALL: [Bucket; 15] = [
        Bucket::Input,
        Bucket::ImageInput,
        Bucket::AudioInput,
        Bucket::CachedInput,
        Bucket::CachedAudioInput,
        Bucket::CacheWrite5m,
        Bucket::CacheWrite1h,
        Bucket::Output,
        Bucket::Reasoning,
        Bucket::AudioOutput,
        Bucket::ImageOutput,
        Bucket::Milliseconds,
        Bucket::Images,
        Bucket::Requests,
        Bucket::WebSearches,
    ];

    /// The bucket's name in rows, metrics and price keys.
    pub const fn name(self) -> &'static str {
        match self {
            Bucket::Input => "input",
            Bucket::ImageInput => "image_input",
            Bucket::AudioInput => "audio_input",
            Bucket::CachedInput => "cached_input",
            Bucket::CachedAudioInput => "cached_audio_input",
            Bucket::CacheWrite5m => "cache_write_5m",
            Bucket::CacheWrite1h => "cache_write_1h",
            Bucket::Output => "output",
            Bucket::Reasoning => "reasoning",
            Bucket::AudioOutput => "audio_output",
            Bucket::ImageOutput => "image_output",
            Bucket::Milliseconds => "seconds",
            Bucket::Images => "images",
            Bucket::Requests => "requests",
            Bucket::WebSearches => "web_searches",
        }
    }
}

/// Where a count came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Source {
    /// The provider reported it.
    #[default]
    Upstream,
    /// Our tokenizer counted it.
    Counted,
    /// Some of it was reported and some counted (an aborted stream whose input was reported).
    Mixed,
}

impl Source {
    /// The name in rows and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Upstream => "upstream",
            Source::Counted => "counted",
            Source::Mixed => "mixed",
        }
    }
}

/// Disjoint counts of one request or attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    counts: [u64; Bucket::ALL.len()],
}

impl Usage {
    /// The count in `bucket`.
    pub fn of(&self, bucket: Bucket) -> u64 {
        self.counts[bucket as usize]
    }

    /// Sets the count in `bucket`.
    pub fn set(&mut self, bucket: Bucket, count: u64) {
        self.counts[bucket as usize] = count;
    }

    /// Takes the larger count of each bucket: a merge never lowers a count.
    pub fn raise_to(&mut self, other: &Usage) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine = (*mine).max(theirs);
        }
    }

    /// Adds another request's counts, saturating.
    pub fn add(&mut self, other: &Usage) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// All tokens on the input side.
    pub fn input_tokens(&self) -> u64 {
        use Bucket::*;
        [Input, ImageInput, AudioInput, CachedInput, CachedAudioInput, CacheWrite5m, CacheWrite1h]
            .iter()
            .fold(0, |sum, bucket| sum.saturating_add(self.of(*bucket)))
    }

    /// All tokens on the output side.
    pub fn output_tokens(&self) -> u64 {
        use Bucket::*;
        [Output, Reasoning, AudioOutput, ImageOutput].iter().fold(0, |sum, bucket| sum.saturating_add(self.of(*bucket)))
    }

    /// Input and output tokens together.
    pub fn total_tokens(&self) -> u64 {
        self.input_tokens().saturating_add(self.output_tokens())
    }

    /// Nothing was counted at all.
    pub fn is_zero(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// The counts in column order.
    pub fn counts(&self) -> [u64; Bucket::ALL.len()] {
        self.counts
    }

    /// Bucket and count, in column order.
    pub fn iter(&self) -> impl Iterator<Item = (Bucket, u64)> + '_ {
        Bucket::ALL.iter().map(|bucket| (*bucket, self.of(*bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_never_lowers_a_count() {
        let mut usage = Usage::default();
        usage.set(Bucket::Input, 10);
        let mut later = Usage::default();
        later.set(Bucket::Output, 5);
        usage.raise_to(&later);
        assert_eq!((usage.of(Bucket::Input), usage.of(Bucket::Output), usage.total_tokens()), (10, 5, 15));
    }
}

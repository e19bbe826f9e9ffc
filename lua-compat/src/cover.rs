//! How far a running stream's reservation reaches, and when to ask the node for more.
//!
//! A body filter cannot wait for an answer. So it is asked for early ([`ASK_AHEAD_TOKENS`] before the end), and a stream that outruns
//! the answer ends: the account is never overdrawn by more than the event that is in hand.

use weir::engine::meter::StreamMeter;

/// The node is asked when so much is left: a fast model writes a hundred tokens a second, and a node answers within a second or is
/// away.
const ASK_AHEAD_TOKENS: u64 = 1024;

/// What a node's reservation covers of one stream.
pub struct Cover {
    /// Output tokens that are covered.
    tokens: u64,
    /// Output tokens at which the node is asked for more.
    ask_at: u64,
    /// Bytes of text, never fewer than tokens, at which the next exact count is due.
    count_at: u64,
    /// The node has been asked.
    asked: bool,
    counted: u64,
}

/// Whether a stream may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    /// It may.
    Enough,
    /// It may, and the node is to be asked now.
    AskNow,
    /// It is used up.
    UsedUp,
}

impl Cover {
    /// The reservation covers so many tokens.
    pub fn new(tokens: u64) -> Cover {
        let ask_at = tokens.saturating_sub(ASK_AHEAD_TOKENS);
        Cover { tokens, ask_at, count_at: ask_at, asked: false, counted: 0 }
    }

    /// After a chunk.
    pub fn check(&mut self, meter: &mut StreamMeter) -> Covered {
        let at_most = meter.output_at_most();
        if at_most <= self.count_at {
            return Covered::Enough;
        }
        self.counted = meter.output_counted();
        self.after(at_most)
    }

    fn after(&mut self, at_most: u64) -> Covered {
        if self.counted > self.tokens {
            return Covered::UsedUp;
        }
        if !self.asked && self.counted >= self.ask_at {
            // Again with every chunk until `asking` is called: an answer that is lost on its way costs nothing.
            self.count_at = at_most;
            return Covered::AskNow;
        }
        // Each further token takes at least a byte: no need to count before that many more have come.
        let next = if self.asked { self.tokens } else { self.ask_at };
        self.count_at = at_most.saturating_add(next.saturating_sub(self.counted));
        Covered::Enough
    }

    /// The node is being asked: how many tokens the stream has come to.
    pub fn asking(&mut self) -> u64 {
        self.asked = true;
        self.counted
    }

    /// The node's answer; `None`: it did not say yes. Asked again when half of what is left is used.
    pub fn answered(&mut self, tokens: Option<u64>) {
        self.asked = false;
        self.tokens = self.tokens.max(tokens.unwrap_or(0));
        let half = self.counted + self.tokens.saturating_sub(self.counted).div_ceil(2);
        self.ask_at = half.max(self.tokens.saturating_sub(ASK_AHEAD_TOKENS));
        // Bytes are at least tokens: counting earlier than that cannot find more.
        self.count_at = self.count_at.min(self.ask_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of tokens of one byte each, which is the hardest case.
    fn at(cover: &mut Cover, tokens: u64) -> Covered {
        if tokens <= cover.count_at {
            return Covered::Enough;
        }
        cover.counted = tokens;
        cover.after(tokens)
    }

    #[test]
    fn the_node_is_asked_before_the_end_and_the_stream_goes_on_as_far_as_it_says() {
        let mut cover = Cover::new(4096);
        assert_eq!(at(&mut cover, 3072), Covered::Enough);
        assert_eq!(at(&mut cover, 3073), Covered::AskNow);
        // Not taken up yet: again.
        assert_eq!(at(&mut cover, 3074), Covered::AskNow);
        assert_eq!(cover.asking(), 3074);
        assert_eq!(at(&mut cover, 4096), Covered::Enough);
        cover.answered(Some(6144));
        assert_eq!(at(&mut cover, 5119), Covered::Enough);
        assert_eq!(at(&mut cover, 5121), Covered::AskNow);
    }

    #[test]
    fn a_stream_that_outruns_the_answer_ends() {
        let mut cover = Cover::new(2000);
        assert_eq!(at(&mut cover, 1000), Covered::AskNow);
        cover.asking();
        assert_eq!(at(&mut cover, 2001), Covered::UsedUp);
    }

    #[test]
    fn a_small_balance_is_asked_for_again_and_again_and_used_to_its_end() {
        let mut cover = Cover::new(64);
        let mut asked = 0;
        for tokens in 1..=64 {
            if at(&mut cover, tokens) == Covered::AskNow {
                cover.asking();
                cover.answered(None);
                asked += 1;
            }
        }
        assert!((2..=8).contains(&asked), "{asked}");
        assert_eq!(at(&mut cover, 65), Covered::UsedUp);
    }
}

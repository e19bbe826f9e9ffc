//! One request, one row: the account is settled exactly once, on every path.
//!
//! A [`Settlement`] is made when a request is admitted and consumed when its answer ends. If it is dropped before (a panic, a
//! task that was cancelled, a shutdown), the drop settles with what is known.

use super::gateway::Gateway;
use crate::engine::budget::Reservation;
use crate::engine::catalog::{Target, TargetPrice};
use crate::engine::dialect::Endpoint;
use crate::engine::limit::Admitted;
use crate::engine::meter::{StreamMeter, Tally};
use crate::engine::money::{Credits, Factor, Usd, charge};
use crate::engine::route::{self, Class, Payer};
use crate::engine::tokens::{Family, Stream as TextCounter};
use crate::engine::usage::{Bucket, Source, Usage};
use crate::store::ledger::{Closed, End, Facts, LedgerFull, Outcome, Ticket};
use crate::telemetry::clock;
use crate::telemetry::series::Series;
use std::sync::Arc;
use std::time::Instant;

/// Output tokens a running stream's reservation is extended by at a time: a few seconds of a fast model.
pub const EXTEND_TOKENS: u64 = 512;
/// A stream is covered without counting its tokens while what is left is this many times what it was given so.
const PLENTY: i64 = 100;
/// Output tokens another proxy can have covered by one call: more than any model writes. It asks again for more.
const COVER_TOKENS_MAX: u64 = 1 << 20;
/// Bytes a token has in English prose, for estimates that an orderly end replaces by a count.
const BYTES_PER_TOKEN: u64 = 4;
/// A stream's progress goes to the journal at most this often.
pub const PROGRESS_INTERVAL_MS: u64 = 1000;

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With the answer's normal end.
    Complete,
    /// By an error, the provider's or ours.
    Failed,
    /// By the client, or by its balance.
    Cancelled,
}

/// What an exchange came to.
pub struct Exchanged {
    /// Counts, as far as the provider reported them.
    pub tally: Tally,
    /// The text, to count where it did not.
    pub text: TextCounter,
}

/// The attempt that is being made: who is asked, with whose key.
#[derive(Clone)]
pub struct Current {
    /// The target.
    pub target: Arc<Target>,
    /// With the caller's own key.
    pub own_key: bool,
    /// How many attempts, this one included.
    pub attempts: u32,
    /// Not the plan's first.
    pub was_fallback: bool,
}

/// An attempt and what it came to, for the log.
#[derive(Debug)]
pub struct Tried {
    /// The target.
    pub target: Arc<Target>,
    /// What its outcome meant.
    pub class: Class,
    /// The provider's status, when it gave one.
    pub status: Option<u16>,
}

/// How far the exchange with the providers has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nobody is being asked.
    Idle,
    /// Waiting for a first event.
    Asking,
    /// A target has committed.
    Answering,
}

/// How a charge is made from a cost.
#[derive(Debug, Clone, Copy)]
pub struct Tariff {
    /// The level's factor.
    pub multiplier: Factor,
    /// The tier's surcharge.
    pub markup: Factor,
    /// Credits a request with an own key costs.
    pub byok_fee: Credits,
    /// What a credit is worth.
    pub credit: Usd,
}

impl Tariff {
    /// The charge of a cost.
    pub fn charge(&self, cost: Usd, own_key: bool) -> Credits {
        if own_key { self.byok_fee } else { charge(cost, self.multiplier, self.markup, self.credit) }
    }

    /// The charge of two attempts of one request, `(cost, with an own key)` each: rounded once, and one fee.
    pub fn charge_both(&self, attempts: [(Usd, bool); 2]) -> Credits {
        let platform = attempts.iter().filter(|(_, own_key)| !own_key).fold(0, |sum, (cost, _)| cost.0.saturating_add(sum));
        let fee = if attempts.iter().any(|(_, own_key)| *own_key) { self.byok_fee } else { Credits(0) };
        Credits(self.charge(Usd(platform), false).0.saturating_add(fee.0))
    }
}

/// Where an open request's row is.
pub enum OpenRow {
    /// In the journal.
    Journal(Ticket),
    /// With the proxy that serves the request, until it hands the row over.
    OtherProxy(Facts),
}

impl OpenRow {
    /// What the row says from the beginning.
    fn facts(&self) -> Option<&Facts> {
        match self {
            OpenRow::Journal(ticket) => ticket.facts(),
            OpenRow::OtherProxy(facts) => Some(facts),
        }
    }
}

/// An open account of one request.
pub struct Settlement {
    open: Option<Box<Open>>,
}

/// What an open account holds.
pub struct Open {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Where its row is until it is written.
    pub row: OpenRow,
    /// Credits set aside.
    pub reservation: Reservation,
    /// Rate limits that were drawn on.
    pub limits: Vec<Admitted>,
    /// The estimate of the prompt's tokens.
    pub prompt_tokens: u64,
    /// Pictures that were asked for.
    pub images: u64,
    /// How a cost becomes a charge.
    pub tariff: Tariff,
    /// What was asked.
    pub endpoint: Endpoint,
    /// When the request's head was read.
    pub started: Instant,
    /// The attempt under way.
    pub current: Option<Current>,
    /// The attempt that was made beside it and lost the race. It is in the same row: its prompt counts as used, at its own
    /// price, while `price_id` is the one of the target that answered.
    pub beside: Option<Current>,
    /// Attempts that came to nothing; the one under way is not among them.
    pub tried: Vec<Tried>,
    /// How far it has come.
    pub stage: Stage,
    /// The metrics of its pair.
    pub series: Option<Arc<Series>>,
    /// Head to first event.
    pub first_event_ms: Option<u64>,
    /// The status the client gets.
    pub status: u16,
    /// Output tokens the reservation covers, counted from the first.
    pub covered_tokens: u64,
    /// Bytes of output that need no look at the reservation: at the first beyond them it is extended, or the tokens are counted.
    pub count_at: u64,
    /// What was set aside for bytes that were not counted.
    pub uncounted: Credits,
    /// When progress is journalled next.
    pub progress_due_ms: u64,
    /// Bytes of output text seen, for an end that nobody sees coming.
    pub seen_bytes: u64,
}

/// What a settled request came to.
#[derive(Debug, Clone, Copy)]
pub struct Settled {
    /// What the provider asks.
    pub cost: Usd,
    /// What the caller is charged.
    pub charge: Credits,
}

impl Exchanged {
    /// Nothing came back.
    pub fn nothing(family: Family) -> Exchanged {
        Exchanged { tally: Tally::default(), text: TextCounter::new(family) }
    }
}

impl Settlement {
    /// An account to be settled.
    pub fn new(open: Box<Open>) -> Settlement {
        Settlement { open: Some(open) }
    }

    /// The open account, while there is one (always, outside of settling).
    pub fn open(&mut self) -> Option<&mut Open> {
        self.open.as_deref_mut()
    }

    /// Whether the output so far has used up what was reserved and the balance has no more. Reserves on as needed.
    /// Counts with the tokenizer only when the text's bytes, which are never fewer than its tokens, could be too many, and the
    /// balance has not plenty to cover them.
    pub fn exhausted(&mut self, meter: &mut StreamMeter) -> bool {
        self.open.as_deref_mut().is_some_and(|open| open.exhausted(meter))
    }

    /// Journals how far a stream has come, at most once in [`PROGRESS_INTERVAL_MS`].
    pub fn progress(&mut self, meter: &StreamMeter) {
        if let Some(open) = self.open.as_deref_mut() {
            open.progress(meter);
        }
    }

    /// Reserves on for a stream that another proxy serves, until `output_tokens` are covered (at most [`COVER_TOKENS_MAX`] more)
    /// or the balance has no more. Returns how many are.
    pub fn cover(&mut self, output_tokens: u64) -> u64 {
        let Some(open) = self.open.as_deref_mut() else { return 0 };
        let wanted = output_tokens.min(open.covered_tokens.saturating_add(COVER_TOKENS_MAX));
        while open.covered_tokens < wanted && open.extend() {}
        open.covered_tokens
    }

    /// Closes the account: one row, one charge. When this returns, the row survives the process (with `commit = "strict"`
    /// also the machine).
    pub async fn settle(mut self, ending: Ending, exchanged: Exchanged) -> Settled {
        let Some(open) = self.open.take() else { return Settled { cost: Usd(0), charge: Credits(0) } };
        let (settled, closed) = if exchanged.tally.reported || exchanged.text.is_loaded() {
            open.close(ending, exchanged)
        } else {
            // The vocabulary is loaded on its first use: not on a worker that has streams to serve.
            match tokio::task::spawn_blocking(move || open.close(ending, exchanged)).await {
                Ok(done) => done,
                Err(_) => return Settled { cost: Usd(0), charge: Credits(0) },
            }
        };
        safe(closed).await;
        settled
    }

    /// As [`Settlement::settle`] for counts that were made elsewhere and are final.
    pub async fn settle_known(mut self, ending: Ending, mut tally: Tally) {
        let Some(open) = self.open.take() else { return };
        let (_, closed) = open.close_counted(ending, &mut tally);
        safe(closed).await;
    }

    /// Closes the account of a request that no target answered.
    pub async fn refuse(mut self, end: End, status: u16) {
        let Some(mut open) = self.open.take() else { return };
        open.status = status;
        let closed = open.write_row(end, Usage::default(), Source::Counted, None, Usd(0), Credits(0));
        safe(closed).await;
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            if matches!(open.row, OpenRow::OtherProxy(_)) {
                // Whoever serves it still has the row.
                open.give_back();
                return;
            }
            // The meter is gone: the prompt was sent, and is taken as used if an attempt was under way; the output is estimated
            // from the bytes that came.
            let mut tally = Tally::default();
            if open.current.is_some() {
                tally.usage.set(Bucket::Input, open.prompt_tokens);
                tally.usage.set(Bucket::Output, open.seen_bytes.div_ceil(BYTES_PER_TOKEN));
                tally.usage.set(Bucket::Requests, 1);
                tally.source = Source::Counted;
            }
            let (cost, price_id, charge) = open.bill(&mut tally);
            let (usage, source) = (tally.usage, tally.source);
            let _ = open.write_row(End::Cancelled, usage, source, price_id, cost, charge);
        }
    }
}

impl Open {
    fn exhausted(&mut self, meter: &mut StreamMeter) -> bool {
        let at_most = meter.text_at_most();
        if at_most <= self.count_at {
            return false;
        }
        if self.cover_out_of_plenty(at_most) {
            self.count_at = self.covered_tokens;
            return false;
        }
        let counted = meter.output_counted();
        while counted > self.covered_tokens {
            if !self.extend() {
                return true;
            }
        }
        // Each further token takes at least a byte: no need to count before that many more have come.
        self.count_at = at_most.saturating_add(self.covered_tokens - counted);
        false
    }

    /// What covering `more` further tokens costs at most.
    fn cost_of(&self, more: u64) -> Option<Credits> {
        Some(match &self.current.as_ref()?.target.price {
            TargetPrice::Priced(price) if !self.is_own_key() => {
                let with = self.covered_tokens.saturating_add(more);
                let cost = Usd(price.most(self.prompt_tokens, with).0 - price.most(self.prompt_tokens, self.covered_tokens).0);
                self.tariff.charge(cost, false)
            }
            _ => Credits(0),
        })
    }

    /// Covers a bound on the tokens, which may be four times their count, if all that this stream was given so is little of what
    /// is left ([`PLENTY`]). A balance that is shared by many streams gives each of them less so.
    fn cover_out_of_plenty(&mut self, tokens: u64) -> bool {
        let more = tokens.saturating_sub(self.covered_tokens).next_multiple_of(EXTEND_TOKENS);
        let Some(cost) = self.cost_of(more) else { return false };
        let uncounted = Credits(self.uncounted.0.saturating_add(cost.0));
        if !self.reservation.leaves(Credits(uncounted.0.saturating_mul(PLENTY))) || self.reservation.extend(cost).is_err() {
            return false;
        }
        self.uncounted = uncounted;
        self.covered_tokens = self.covered_tokens.saturating_add(more);
        true
    }

    fn extend(&mut self) -> bool {
        let Some(more) = self.cost_of(EXTEND_TOKENS) else { return false };
        // All of it, or a token's worth at a time of what is left: a balance is used to its end, not beyond.
        if more.0 == 0 || self.reservation.extend(more).is_ok() {
            self.covered_tokens = self.covered_tokens.saturating_add(EXTEND_TOKENS);
            return true;
        }
        let per_token = Credits((more.0 / EXTEND_TOKENS as i64).max(1));
        match self.reservation.extend_up_to(per_token, more) {
            Ok(got) => {
                self.covered_tokens = self.covered_tokens.saturating_add((got.0 / per_token.0).max(1) as u64);
                true
            }
            Err(_) => false,
        }
    }

    fn progress(&mut self, meter: &StreamMeter) {
        self.seen_bytes = meter.output_at_most();
        let now_ms = clock::now_ms();
        if now_ms < self.progress_due_ms {
            return;
        }
        self.progress_due_ms = now_ms + PROGRESS_INTERVAL_MS;
        let mut tally = Tally::default();
        tally.usage.set(Bucket::Input, self.prompt_tokens);
        tally.usage.set(Bucket::Requests, 1);
        // Cheap on purpose. A crash settles by it, an orderly end does not.
        tally.usage.set(Bucket::Output, self.seen_bytes.div_ceil(BYTES_PER_TOKEN));
        let (cost, price_id, charge) = self.bill(&mut tally);
        let outcome = self.outcome(End::Failed, tally.usage, Source::Counted, price_id, cost, charge);
        if let OpenRow::Journal(ticket) = &mut self.row {
            ticket.progress(now_ms, || outcome);
        }
    }

    /// Takes a row over that another proxy kept.
    pub fn journal(&mut self) -> Result<(), LedgerFull> {
        if let OpenRow::OtherProxy(facts) = &self.row {
            self.row = OpenRow::Journal(self.gateway.ledger.open(facts.clone())?);
        }
        Ok(())
    }

    /// Gives back what was drawn on and set aside, without a row.
    fn give_back(mut self: Box<Self>) {
        self.limits.drain(..).for_each(Admitted::release);
        self.reservation.release();
    }

    fn is_own_key(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.own_key)
    }

    /// Sets the most aside that another attempt beside the current one can add: its prompt, for it is cancelled if it loses
    /// and takes the current one's place if it wins. `false`: the balance has no more.
    pub fn reserve_beside<'a>(&mut self, candidates: impl Iterator<Item = &'a route::Attempt>) -> bool {
        let (tariff, prompt_tokens) = (self.tariff, self.prompt_tokens);
        let most = candidates.map(|attempt| match (&attempt.payer, &attempt.target.price) {
            (Payer::Own(_), _) => tariff.byok_fee,
            (Payer::Platform, TargetPrice::Priced(price)) => tariff.charge(price.most(prompt_tokens, 0), false),
            (Payer::Platform, _) => Credits(0),
        });
        self.reservation.extend(most.max().unwrap_or_default()).is_ok()
    }

    /// What a tally comes to, with the prompt of an attempt that lost the race added to it.
    fn bill(&self, tally: &mut Tally) -> (Usd, Option<Arc<str>>, Credits) {
        let (cost, price_id) = self.cost(tally);
        let Some(beside) = &self.beside else { return (cost, price_id, self.tariff.charge(cost, self.is_own_key())) };
        let mut prompt = Usage::default();
        prompt.set(Bucket::Input, self.prompt_tokens);
        prompt.set(Bucket::Requests, 1);
        let lost = match &beside.target.price {
            TargetPrice::Priced(price) => price.cost(&prompt, None, None),
            TargetPrice::Free | TargetPrice::Unpriced => Usd(0),
        };
        for (bucket, count) in prompt.iter() {
            tally.usage.set(bucket, tally.usage.of(bucket).saturating_add(count));
        }
        tally.source = if tally.source == Source::Upstream { Source::Mixed } else { tally.source };
        let charge = self.tariff.charge_both([(cost, self.is_own_key()), (lost, beside.own_key)]);
        (Usd(cost.0.saturating_add(lost.0)), price_id, charge)
    }

    /// What a tally costs at the current target.
    fn cost(&self, tally: &Tally) -> (Usd, Option<Arc<str>>) {
        let Some(current) = &self.current else { return (Usd(0), None) };
        let (cost, price_id) = current.target.price.bill(&tally.usage, tally.service_tier.as_deref(), tally.reported_cost);
        (cost, Some(price_id.into()))
    }

    fn close(self: Box<Self>, ending: Ending, mut exchanged: Exchanged) -> (Settled, Option<Closed>) {
        exchanged.tally.count(self.prompt_tokens, &mut exchanged.text);
        let tally = &mut exchanged.tally;
        if tally.usage.of(Bucket::Requests) == 0 {
            tally.usage.set(Bucket::Requests, 1);
        }
        // Of an answer that was too long to be kept nobody has counted them.
        if ending == Ending::Complete && tally.error.is_none() && tally.usage.of(Bucket::Images) == 0 {
            tally.usage.set(Bucket::Images, self.images);
        }
        self.close_counted(ending, tally)
    }

    fn close_counted(self: Box<Self>, ending: Ending, tally: &mut Tally) -> (Settled, Option<Closed>) {
        let (cost, price_id, charge) = self.bill(tally);
        let end = match ending {
            Ending::Complete => End::Complete,
            Ending::Failed => End::Failed,
            Ending::Cancelled => End::Cancelled,
        };
        let closed = self.write_row(end, tally.usage, tally.source, price_id, cost, charge);
        (Settled { cost, charge }, closed)
    }

    fn outcome(&self, end: End, usage: Usage, usage_source: Source, price_id: Option<Arc<str>>, cost: Usd, charge: Credits) -> Outcome {
        let current = self.current.as_ref();
        Outcome {
            model: current.map(|current| current.target.model.clone()),
            provider: current.map(|current| current.target.provider.name.clone()),
            byok: current.is_some_and(|current| current.own_key),
            attempts: current.map_or(0, |current| current.attempts),
            was_fallback: current.is_some_and(|current| current.was_fallback),
            status: self.status,
            end,
            usage,
            usage_source,
            price_id,
            cost,
            charge,
            first_event_ms: self.first_event_ms,
            duration_ms: self.started.elapsed().as_millis() as u64,
        }
    }

    /// The attempt that was under way when the request ended, as the log has it.
    fn last(&self, end: End, status: u16) -> Option<Tried> {
        let (class, status) = match (self.stage, end) {
            (Stage::Idle, _) => return None,
            (Stage::Asking, _) => (Class::Cancelled, None),
            (Stage::Answering, End::Failed) => (Class::BrokenOff, Some(status)),
            (Stage::Answering, _) => (Class::Ok, Some(status)),
        };
        self.current.as_ref().map(|current| Tried { target: current.target.clone(), class, status })
    }

    /// The end of every request: limits corrected, balance settled, row journalled, metrics counted, line logged.
    fn write_row(
        mut self: Box<Self>,
        end: End,
        usage: Usage,
        usage_source: Source,
        price_id: Option<Arc<str>>,
        cost: Usd,
        charge: Credits,
    ) -> Option<Closed> {
        let now_ms = clock::now_ms();
        for admitted in self.limits.drain(..) {
            admitted.correct(now_ms, usage.total_tokens());
        }
        let outcome = self.outcome(end, usage, usage_source, price_id, cost, charge);
        let gateway = self.gateway.clone();
        let series = self.series.take().unwrap_or_else(|| gateway.metrics.of_none());
        series.answered(self.endpoint, outcome.status);
        let last = self.last(end, outcome.status);
        let Open { row, reservation, endpoint, tried, started, .. } = *self;
        let facts = row.facts();
        if outcome.provider.is_some() {
            series.used(&outcome.usage, outcome.usage_source);
            series.cost(outcome.cost, outcome.byok);
            gateway.metrics.charge(
                facts.and_then(|facts| facts.level.as_deref()).unwrap_or("none"),
                facts.and_then(|facts| facts.tier.as_deref()).unwrap_or("none"),
                outcome.charge,
            );
            series.request.observe(started.elapsed());
        }
        if let Some(facts) = facts {
            gateway.log_request(facts, &outcome, endpoint, tried.iter().chain(&last));
        }
        reservation.settle(charge);
        match row {
            OpenRow::Journal(ticket) => Some(ticket.close(outcome)),
            OpenRow::OtherProxy(_) => None,
        }
    }
}

/// Waits until a row is as safe as it is to be.
async fn safe(closed: Option<Closed>) {
    if let Some(closed) = closed.filter(|closed| !closed.is_safe()) {
        closed.safe().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_attempts_of_one_request_are_charged_together() {
        // A credit of 2 pico-dollars: half a unit of 10⁻⁹ credit is lost or won with each rounding of an odd product.
        let tariff =
            Tariff { multiplier: Factor::parse("0.000000001").unwrap(), markup: Factor::ZERO, byok_fee: Credits(7), credit: Usd(2) };
        assert_eq!([tariff.charge(Usd(1), false), tariff.charge(Usd(3), false)], [Credits(0), Credits(2)]);
        for (attempts, expected) in [
            ([(Usd(1), false), (Usd(1), false)], 1),
            ([(Usd(3), false), (Usd(3), false)], 3),
            ([(Usd(3), true), (Usd(3), false)], 7 + 2),
            ([(Usd(3), true), (Usd(3), true)], 7),
        ] {
            assert_eq!(tariff.charge_both(attempts), Credits(expected), "{attempts:?}");
        }
    }
}

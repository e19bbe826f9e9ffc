//! Who answers: one target is asked and, where the model hedges and its first event is late, another one beside it. The first
//! to commit wins, the other is dropped, which cancels it.
//!
//! Meanwhile the client is watched, for nobody should be asked for a client that has gone. Where the provider's `heartbeat` is
//! set, a stream that has not begun by then is opened for the client with comments: that gives up the status and the headers
//! which name the target, so a failure from then on is an error event.

use super::attempt::{self, Committed, Failed, Sending};
use super::exchange::{self, Prepared, Told};
use super::gateway::Gateway;
use super::ingress::{Admitted, Head};
use super::relay::{CLIENT_WRITE_TIMEOUT, HEARTBEAT};
use super::settle::{Current, Stage, Tried};
use crate::engine::health::InFlight;
use crate::engine::refusal::Refusal;
use crate::engine::route::{Attempt, Class, Denied, Outcome, Payer, Verdict};
use crate::engine::tokens::Family;
use crate::store::secret::Secret;
use crate::telemetry::clock;
use crate::telemetry::series::Series;
use bytes::Bytes;
use pingora_core::protocols::http::ServerSession;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// When to come again while every target serves as many requests as it may: they end by the second.
const BUSY_RETRY_MS: u64 = 1_000;

/// A request on its way to an answer: what all of its attempts share.
pub struct Serving<'a> {
    /// The gateway.
    pub gateway: &'a Arc<Gateway>,
    /// Its head.
    pub head: &'a Head,
    /// What was admitted. In a box: nothing of it but the account is needed while a stream runs.
    pub admitted: Box<Admitted>,
    /// The answer's header and comments have gone out: what follows are events.
    pub opened: bool,
    /// A target was passed over because it serves as many requests as it may.
    pub passed_over: bool,
}

/// An attempt under way, or just ended.
pub struct Try {
    /// Where, and with whose key.
    pub attempt: Attempt,
    /// What the client is told of it.
    pub told: Told,
    /// The pair's metrics.
    pub series: Arc<Series>,
    /// Counts at the target until the answer's end.
    pub in_flight: InFlight,
    /// The key that was sent.
    pub key: Option<Arc<Secret>>,
    /// How its text is counted.
    pub family: Family,
    /// When it began.
    pub asked_at: Instant,
    /// When the exchange must be over.
    pub deadline: Instant,
}

/// How a race ended.
pub enum Raced {
    /// A target answers.
    Won(Box<Try>, Committed),
    /// Nobody answers; what the last to fail said, and what follows.
    Lost(Box<Try>, Box<Failed>, Verdict),
    /// The client went away.
    Gone(Family),
}

/// A second attempt beside the first.
type Beside<'a> = (Try, Pin<Box<dyn Future<Output = Result<Committed, Failed>> + Send + 'a>>);

/// What woke the race.
enum Step {
    First(Result<Committed, Failed>),
    Second(Result<Committed, Failed>),
    Gone,
    Hedge,
    Beat,
}

impl Try {
    fn current(&self, attempts: u32) -> Current {
        Current { target: self.told.target.clone(), own_key: self.told.own_key, attempts, was_fallback: self.told.was_fallback }
    }
}

impl<'a> Serving<'a> {
    /// Prepares the plan's next attempt. A target that serves as many requests as it may is passed over, one whose key is not
    /// there has failed. The error says why there is none.
    pub fn next(&mut self, session: &ServerSession) -> Result<(Try, Sending), Refusal> {
        loop {
            let Some(attempt) = self.admitted.plan.next(clock::now_ms()) else {
                // The verdict before said there is one, and a plan begins with one: so it was passed over.
                return Err(if self.passed_over { Refusal::Overloaded { retry_after_ms: BUSY_RETRY_MS } } else { Refusal::Internal });
            };
            let Some(in_flight) = attempt.target.try_begin() else {
                self.admitted.plan.pass_over(&attempt, clock::now_ms());
                self.passed_over = true;
                continue;
            };
            match exchange::prepare(self.gateway, session, self.head, &self.admitted, &attempt) {
                Ok(prepared) => return Ok(self.begin(attempt, in_flight, prepared)),
                Err(refusal) => {
                    // As a provider's 401 would: the key is to blame, and another target may have one.
                    let outcome = Outcome::Status { code: 401, retry_after_ms: None, error_code: "", message: "" };
                    self.unasked(&attempt);
                    if !matches!(self.admitted.plan.after(&attempt, &outcome, clock::now_ms()), Verdict::TryNext) {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// Takes note of an attempt that failed before anything was sent.
    fn unasked(&mut self, attempt: &Attempt) {
        let (target, attempts) = (attempt.target.clone(), self.admitted.plan.attempts());
        if let Some(open) = self.admitted.settlement.open() {
            open.tried.push(Tried { target: target.clone(), class: Class::KeyRefused, status: None });
            if open.stage == Stage::Idle {
                let own_key = matches!(attempt.payer, Payer::Own(_));
                open.series = Some(self.gateway.metrics.of_target(&target));
                open.current = Some(Current { target, own_key, attempts, was_fallback: attempt.is_fallback || attempts > 1 });
            }
        }
    }

    fn begin(&mut self, attempt: Attempt, in_flight: InFlight, prepared: Prepared) -> (Try, Sending) {
        let attempts = self.admitted.plan.attempts();
        let told = Told {
            target: attempt.target.clone(),
            own_key: matches!(attempt.payer, Payer::Own(_)),
            was_fallback: attempt.is_fallback || attempts > 1 || self.passed_over,
            attempts,
        };
        let Prepared { sending, key } = prepared;
        let (series, family, deadline) = (self.gateway.metrics.of_target(&attempt.target), sending.watch.family, sending.deadline);
        let tried = Try { attempt, told, series, in_flight, key, family, asked_at: Instant::now(), deadline };
        (tried, sending)
    }

    /// The same attempt once more, on another connection. `None`: its key has gone meanwhile.
    fn again(&self, session: &ServerSession, tried: &mut Try) -> Option<Sending> {
        let prepared = exchange::prepare(self.gateway, session, self.head, &self.admitted, &tried.attempt).ok()?;
        tried.key = prepared.key;
        Some(prepared.sending)
    }

    /// Asks, beside it another one if it is late, until one commits or nobody is left.
    /// Dropped half way, it closes what it opened, and the settlement closes the account as cancelled.
    pub async fn race(&mut self, session: &mut ServerSession, first: Try, sending: Sending) -> Raced {
        let gateway = self.gateway;
        if let Some(open) = self.admitted.settlement.open() {
            open.current = Some(first.current(first.told.attempts));
            open.beside = None;
            open.series = Some(first.series.clone());
            open.stage = Stage::Asking;
        }
        let mut hedge = timer(self.admitted.plan.hedge_after_us(&first.attempt, clock::now_ms()).map(Duration::from_micros));
        let interval = self.heartbeat(session, &first);
        let mut beat = timer(interval);
        let mut asking = pin!(attempt::attempt(&gateway.upstreams, sending));
        let mut first = Some(first);
        let mut second: Option<Beside<'a>> = None;
        loop {
            let step = tokio::select! {
                biased;
                result = &mut asking, if first.is_some() => Step::First(result),
                result = answer_of(&mut second) => Step::Second(result),
                _ = session.read_body_or_idle(true) => Step::Gone,
                () = due(&mut hedge) => Step::Hedge,
                () = due(&mut beat) => Step::Beat,
            };
            let is_first = matches!(step, Step::First(_));
            let (ended, other, result) = match step {
                Step::First(result) => (first.take(), second.as_ref().map(|(tried, _)| tried), result),
                Step::Second(result) => (second.take().map(|(tried, _)| tried), first.as_ref(), result),
                Step::Gone => return self.gone(first, second),
                Step::Hedge => {
                    hedge = None;
                    second = self.hedge(session);
                    continue;
                }
                Step::Beat => {
                    if !self.beat(session).await {
                        return self.gone(first, second);
                    }
                    beat = timer(interval);
                    continue;
                }
            };
            // Only an attempt that is there can end.
            let Some(mut ended) = ended else { continue };
            if matches!(&result, Err(failed) if failed.is_stale())
                && let Some(sending) = self.again(session, &mut ended)
            {
                let asked = attempt::attempt(&gateway.upstreams, sending);
                if is_first {
                    asking.set(asked);
                    first = Some(ended);
                } else {
                    second = Some((ended, Box::pin(asked)));
                }
                continue;
            }
            match result {
                Ok(committed) => return self.won(ended, other, committed),
                Err(failed) => {
                    let (class, verdict) = self.failed(&ended, &failed, other);
                    let is_decided = class == Class::BadRequest || matches!(verdict, Verdict::Refuse(Denied::OwnKeyRefused { .. }));
                    match other {
                        Some(other) if is_decided => {
                            self.cancelled(other, false);
                            self.set_beside(None);
                        }
                        Some(_) => continue,
                        None => {}
                    }
                    return Raced::Lost(Box::new(ended), Box::new(failed), verdict);
                }
            }
        }
    }

    /// How often to comment while the first event is awaited.
    fn heartbeat(&self, session: &ServerSession, first: &Try) -> Option<Duration> {
        // Without chunks (HTTP/1.0) the header would have to say how the answer ends before anybody knows.
        let can_open = self.admitted.peek.stream && session.req_header().version != http::Version::HTTP_10;
        first.attempt.target.provider.heartbeat.filter(|_| can_open)
    }

    /// Opens the stream for the client, if that was not done, and tells it that somebody is there. `false`: it has gone.
    async fn beat(&mut self, session: &mut ServerSession) -> bool {
        session.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT));
        if !self.opened {
            self.opened = true;
            let header = exchange::opening_header(self.head, &self.admitted.standings);
            if session.write_response_header(header).await.is_err() {
                return false;
            }
        }
        session.write_response_body(Bytes::from_static(HEARTBEAT), false).await.is_ok()
    }

    /// The next attempt beside the current one, if there is one and the balance bears it.
    fn hedge(&mut self, session: &ServerSession) -> Option<Beside<'a>> {
        let gateway = self.gateway;
        let Admitted { settlement, plan, .. } = &mut *self.admitted;
        if !settlement.open().is_some_and(|open| open.reserve_beside(plan.upcoming())) {
            return None;
        }
        let (second, sending) = self.next(session).ok()?;
        self.set_beside(Some(second.current(second.told.attempts)));
        Some((second, Box::pin(attempt::attempt(&gateway.upstreams, sending))))
    }

    fn set_beside(&mut self, beside: Option<Current>) {
        if let Some(open) = self.admitted.settlement.open() {
            open.beside = beside;
        }
    }

    fn won(&mut self, mut winner: Try, loser: Option<&Try>, committed: Committed) -> Raced {
        let (now_ms, now) = (clock::now_ms(), Instant::now());
        let waited = now.saturating_duration_since(winner.asked_at);
        winner.told.attempts = self.admitted.plan.attempts();
        winner.attempt.record_first_event(now_ms, waited.as_micros() as u64);
        self.admitted.plan.after(&winner.attempt, &Outcome::Ok, now_ms);
        if let Some(loser) = loser {
            self.cancelled(loser, true);
        }
        let total = now.saturating_duration_since(self.head.started);
        winner.series.first_event.observe(total);
        winner.series.overhead.observe(total.saturating_sub(waited));
        if let Some(open) = self.admitted.settlement.open() {
            open.current = Some(winner.current(winner.told.attempts));
            open.beside = loser.map(|loser| loser.current(winner.told.attempts));
            open.series = Some(winner.series.clone());
            open.stage = Stage::Answering;
            open.first_event_ms = Some(total.as_millis() as u64);
        }
        Raced::Won(Box::new(winner), committed)
    }

    /// Takes note of a failure. `other` is still under way.
    fn failed(&mut self, ended: &Try, failed: &Failed, other: Option<&Try>) -> (Class, Verdict) {
        let outcome = failed.outcome();
        let class = outcome.class();
        self.count(ended, class.name());
        let verdict = self.admitted.plan.after(&ended.attempt, &outcome, clock::now_ms());
        self.gateway.log_attempt(self.head.id.as_str(), &ended.attempt.target, class, failed.status());
        let attempts = self.admitted.plan.attempts();
        if let Some(open) = self.admitted.settlement.open() {
            open.tried.push(Tried { target: ended.attempt.target.clone(), class, status: failed.status() });
            open.beside = None;
            match other {
                Some(other) => (open.current, open.series) = (Some(other.current(attempts)), Some(other.series.clone())),
                None => open.stage = Stage::Idle,
            }
        }
        (class, verdict)
    }

    /// Takes note of an attempt that nobody waits for any more. `was_slower`: than another one.
    fn cancelled(&mut self, tried: &Try, was_slower: bool) {
        let now_ms = clock::now_ms();
        if was_slower {
            // It took at least this long: left out, its percentiles would tell of its fast answers only.
            tried.attempt.record_first_event(now_ms, tried.asked_at.elapsed().as_micros() as u64);
        }
        self.admitted.plan.after(&tried.attempt, &Outcome::Cancelled, now_ms);
        self.count(tried, Class::Cancelled.name());
        if let Some(open) = self.admitted.settlement.open() {
            open.tried.push(Tried { target: tried.attempt.target.clone(), class: Class::Cancelled, status: None });
        }
    }

    /// The client has gone: both prompts were sent, so both count as used.
    fn gone(&mut self, first: Option<Try>, second: Option<Beside<'a>>) -> Raced {
        let second = second.map(|(tried, _)| tried);
        let (current, beside) = if first.is_some() { (first, second) } else { (second, None) };
        if let Some(beside) = &beside {
            self.cancelled(beside, false);
        }
        let Some(current) = current else { return Raced::Gone(crate::engine::tokens::family("")) };
        self.admitted.plan.after(&current.attempt, &Outcome::Cancelled, clock::now_ms());
        self.count(&current, Class::Cancelled.name());
        Raced::Gone(current.family)
    }

    fn count(&self, tried: &Try, outcome: &str) {
        self.gateway.metrics.attempts.with_label_values(&[&tried.attempt.target.provider.name, outcome]).inc();
    }
}

/// A timer, when there is something to wait for.
fn timer(after: Option<Duration>) -> Option<Pin<Box<Sleep>>> {
    after.map(|after| Box::pin(tokio::time::sleep(after)))
}

async fn due(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => pending().await,
    }
}

async fn answer_of(beside: &mut Option<Beside<'_>>) -> Result<Committed, Failed> {
    match beside {
        Some((_, asking)) => asking.await,
        None => pending().await,
    }
}

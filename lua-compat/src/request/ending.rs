//! The end of a request: what was used, what it costs, and its row.

use super::{Observed, Request};
use crate::engine::now_ms;
use crate::row::{End, Row};
use std::sync::atomic::Ordering::Relaxed;
use weir::engine::catalog::Tier;
use weir::engine::dialect::Endpoint;
use weir::engine::meter::Tally;
use weir::engine::money::{Credits, Factor, Usd, charge};
use weir::engine::price::Price;
use weir::engine::route::Outcome;
use weir::engine::tokens;
use weir::engine::usage::Bucket;

impl Request {
    /// Ends the request: the row. `None`: it has ended before, or the node did not admit it, and so it is nobody's.
    /// `client_gone`: nobody read the answer to its end. `complete`: the upstream's answer came to its end.
    pub fn end(&mut self, status: u16, client_gone: bool, complete: bool) -> Option<String> {
        if self.ended {
            return None;
        }
        self.ended = true;
        if self.unknown {
            self.engine.inner.counts.ended[End::Refused as usize].fetch_add(1, Relaxed);
            return None;
        }
        if status != 0 {
            self.status = status;
        }
        let mut broke_off = false;
        // Otherwise every attempt was refused, and nothing was used.
        let is_used = self.answer.is_some() || client_gone && self.current.is_some();
        let asked = self.current.is_some() || self.attempts > 0 && self.observed.is_some();
        let (mut tally, end) = match self.answer.take() {
            None if asked && client_gone => {
                let mut tally = Tally::default();
                let family = tokens::family("");
                tally.count(self.prompt_tokens, &mut tokens::Stream::new(family));
                (tally, End::Cancelled)
            }
            None => {
                (Tally { source: weir::engine::usage::Source::Counted, ..Tally::default() }, if asked { End::Failed } else { End::Refused })
            }
            Some(answer) => {
                let cut = answer.is_stream && !answer.meter.ended() && !answer.meter.may_end_without_mark();
                let failed = answer.meter.error().is_some();
                broke_off = cut || failed || (!complete && !client_gone);
                let (mut tally, mut text) = answer.meter.finish();
                tally.count(self.prompt_tokens, &mut text);
                let end = if answer.stopped || (client_gone && (cut || !complete)) {
                    End::Cancelled
                } else if failed || cut || !complete {
                    End::Failed
                } else {
                    End::Complete
                };
                // Of an answer that is too long to be kept whole nobody has counted them.
                if self.endpoint == Endpoint::Images && end == End::Complete && tally.usage.of(Bucket::Images) == 0 {
                    tally.usage.set(Bucket::Images, self.peek.choices.max(1));
                }
                (tally, end)
            }
        };
        if let (Some(plan), Some(current)) = (&mut self.plan, &self.current) {
            if broke_off && end == End::Failed {
                plan.after(&current.attempt, &Outcome::BrokenOff, now_ms());
            } else if !current.judged {
                // A probe that nobody waited for is no verdict, but another may be made.
                plan.after(&current.attempt, &Outcome::Cancelled, now_ms());
            } else if is_used {
                current.attempt.came_to_its_end();
            }
        }
        if is_used {
            tally.usage.set(Bucket::Requests, 1);
        }
        let counts = &self.engine.inner.counts;
        counts.ended[end as usize].fetch_add(1, Relaxed);
        counts.input_tokens.fetch_add(tally.usage.input_tokens(), Relaxed);
        counts.output_tokens.fetch_add(tally.usage.output_tokens(), Relaxed);
        Some(self.row(end, &tally, is_used))
    }

    /// What a tally costs, by which price, and what is charged for it; nothing where every attempt was refused.
    fn bill(&self, tally: &Tally, is_used: bool) -> (Usd, Option<String>, Credits) {
        if !is_used {
            return (Usd(0), None, Credits(0));
        }
        let tier = tally.service_tier.as_deref();
        let (cost, price_id) = match self.current.as_ref().map(|current| &current.attempt.target.price) {
            Some(price) => Some(price.bill(&tally.usage, tier, tally.reported_cost)),
            None => self.listed_price().map(|price| price.bill(&tally.usage, tier, tally.reported_cost)),
        }
        .map_or((Usd(0), None), |(cost, price_id)| (cost, Some(price_id.to_owned())));
        let tier = self.tier();
        let charged = match self.current.as_ref().is_some_and(|current| current.own_key) {
            // Whoever routed it sold it.
            _ if self.observed.is_some() => Credits(0),
            true => tier.map_or(Credits(0), |tier| tier.byok_fee),
            false => {
                let multiplier = self.plan.as_ref().map_or(Factor::ONE, |plan| plan.multiplier);
                charge(cost, multiplier, tier.map_or(Factor::ZERO, |tier| tier.markup), self.engine.inner.settings.credit)
            }
        };
        (cost, price_id, charged)
    }

    fn tier(&self) -> Option<&Tier> {
        let catalog = &self.snapshot.catalog;
        let name = self.who.tier.as_deref().or(catalog.routing.default_tier.as_deref())?;
        catalog.tiers.get(name).map(|tier| &**tier)
    }

    fn row(&self, end: End, tally: &Tally, is_used: bool) -> String {
        let target = self.current.as_ref().map(|current| &current.attempt.target);
        let byok = self.current.as_ref().is_some_and(|current| current.own_key);
        let (cost, price_id, charged) = self.bill(tally, is_used);
        let (seen_provider, seen_model) =
            self.observed.as_ref().map_or((None, None), |observed| (observed.provider.as_deref(), observed.model.as_deref()));
        Row {
            request_id: self.request_id(),
            admitted: self.admission.is_some(),
            started_ms: self.started_ms,
            account: &self.who.account,
            key_id: &self.who.key_id,
            asked_model: self.peek.model.as_deref().unwrap_or_default(),
            path: self.endpoint.path(),
            level: self.plan.as_ref().and_then(|plan| plan.level.as_ref()).map(|level| &*level.name),
            tier: self.tier().map(|tier| &*tier.name),
            model: target.map(|target| &*target.model).or(seen_model),
            provider: target.map(|target| &*target.provider.name).or(seen_provider),
            upstream_model: target.map(|target| &*target.upstream_model).or(seen_model),
            byok,
            attempts: self.attempts,
            was_fallback: self.current.as_ref().is_some_and(|current| current.was_fallback),
            status: self.status,
            end,
            first_event_ms: self.first_event_ms,
            duration_ms: now_ms().saturating_sub(self.started_ms),
            tally,
            price_id: price_id.as_deref(),
            cost,
            charge: charged,
        }
        .json()
    }

    /// What `prices.toml` says of the provider and model that were observed.
    fn listed_price(&self) -> Option<&Price> {
        let Observed { provider: Some(provider), model: Some(model) } = self.observed.as_ref()? else { return None };
        self.snapshot.catalog.prices.get(&*format!("{provider}/{model}")).map(|price| &**price)
    }
}

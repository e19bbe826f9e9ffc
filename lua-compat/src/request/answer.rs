//! The answer on its way: its head, its chunks, and the reservation that goes on under it.

use super::{Answering, FRAMING, Fed, Observed, Passage, Request};
use crate::admission::covered;
use crate::cover::Covered;
use crate::engine::now_ms;
use crate::head::Head;
use crate::packed::{self, Packed, Packer};
use bytes::Bytes;
use serde_json::json;
use weir::engine::dialect::Dialect;
use weir::engine::meter::{StreamMeter, Watch};
use weir::engine::outbound;
use weir::engine::peek::Pieces;
use weir::engine::provider::Kind;
use weir::engine::refusal::Refusal;
use weir::engine::route::Outcome;
use weir::engine::tokens;

impl Request {
    /// An answer begins. Appends the headers to take out and those to put in.
    pub fn answer(&mut self, status: u16, head: &[u8], out: &mut String) -> Packed {
        let head = Head::parse_answer(head);
        if self.observed.is_some() {
            return self.observe(status, head);
        }
        if let Some(current) = &mut self.current {
            // The request has gone; the memory of its body may, too.
            current.body = Pieces::new();
            let is_stream = head.is_stream();
            let now_ms = now_ms();
            let is_answer = (200..300).contains(&status);
            if let Some(plan) = self.plan.as_mut().filter(|_| !current.judged) {
                let refused = Outcome::Status { code: status, retry_after_ms: None, error_code: "", message: "" };
                plan.after(&current.attempt, if is_answer { &Outcome::Ok } else { &refused }, now_ms);
                current.judged = true;
            }
            if is_answer && self.answer.is_none() {
                self.first_event_ms = Some(now_ms.saturating_sub(self.started_ms));
                current.attempt.record_first_event(now_ms, now_ms.saturating_sub(current.started_ms).saturating_mul(1000));
                let meter = if is_stream { StreamMeter::new(current.watch) } else { StreamMeter::of_body(current.watch) };
                self.answer = Some(Box::new(Answering { meter, is_stream, stopped: false }));
            }
        }
        self.status = status;
        self.body = Bytes::new();
        let strips = self.current.as_ref().is_some_and(|current| current.watch.strip_usage)
            && self.answer.as_ref().is_some_and(|answer| answer.is_stream);
        let connections: Vec<&str> = head.values("connection").collect();
        let nominated = |name: &str| connections.iter().any(|by| outbound::nominates(by.as_bytes(), name));
        let stays = |name: &&str| (!outbound::crosses_down(name) || nominated(name)) && !FRAMING.contains(name);
        let mut packer = Packer::new(packed::HEAD, out);
        packer.text(|out| head.names().filter(stays).for_each(|name| packed::line(out, name)));
        packer.text(|out| self.write_told(out));
        Packed { flags: if strips { packed::STRIPS } else { 0 }, ..packer.step }
    }

    /// The headers that the client gets beside the upstream's.
    fn write_told(&self, out: &mut String) {
        let flag = |is: bool| if is { "true" } else { "false" };
        packed::header(out, "x-request-id", self.shown_id());
        packed::header(out, "x-weir-request-id", self.request_id());
        if let Some(current) = &self.current {
            packed::header(out, "x-provider-used", &current.attempt.target.provider.name);
            packed::header(out, "x-model-used", &current.attempt.target.upstream_model);
            packed::header(out, "x-used-byok", flag(current.own_key));
            packed::header(out, "x-was-fallback", flag(current.was_fallback));
            packed::header(out, "x-weir-attempts", itoa::Buffer::new().format(self.attempts));
        }
        for (name, value) in self.admission.iter().flat_map(|admission| &admission.headers) {
            packed::header(out, name, value);
        }
    }

    /// An answer begins that others asked for: nothing of it is changed.
    fn observe(&mut self, status: u16, head: Head) -> Packed {
        let is_stream = head.is_stream();
        let model = head.model().map(str::to_owned).or_else(|| self.peek.model.clone());
        if (200..300).contains(&status) && self.answer.is_none() {
            self.first_event_ms = Some(now_ms().saturating_sub(self.started_ms));
            // By the format the client reads; a provider's own habits are the other plugin's to translate.
            let kind = if self.endpoint.dialect() == Dialect::Anthropic { Kind::Anthropic } else { Kind::OpenAiCompatible };
            let family = tokens::family(model.as_deref().unwrap_or_default());
            let watch = Watch { endpoint: self.endpoint, kind, family, strip_usage: false };
            let meter = if is_stream { StreamMeter::new(watch) } else { StreamMeter::of_body(watch) };
            self.answer = Some(Box::new(Answering { meter, is_stream, stopped: false }));
        }
        self.attempts = 1;
        self.observed = Some(Observed { provider: head.provider().map(str::to_owned), model });
        self.status = status;
        Packed { kind: packed::HEAD, ..Packed::default() }
    }

    /// Takes a chunk of the answer; `last`: none follows. Appends what goes out to `out` unless it is the chunk itself.
    pub fn feed(&mut self, chunk: &[u8], last: bool, out: &mut Vec<u8>) -> Passage {
        let unchanged = Passage { fed: Fed::Unchanged, extend: false };
        let Some(answer) = &mut self.answer else { return unchanged };
        if answer.stopped {
            return Passage { fed: Fed::Stop, extend: false };
        }
        let mut pieces = Vec::new();
        if !chunk.is_empty() {
            answer.meter.feed(Bytes::copy_from_slice(chunk), &mut pieces);
        }
        if last && answer.is_stream {
            answer.meter.flush(&mut pieces);
        }
        let covered = match &mut self.cover {
            Some(cover) if answer.is_stream && !answer.meter.ended() => cover.check(&mut answer.meter),
            _ => Covered::Enough,
        };
        let extend = covered == Covered::AskNow;
        if covered != Covered::UsedUp && pieces.iter().map(Bytes::len).sum::<usize>() == chunk.len() && pieces.len() <= 1 {
            return Passage { extend, ..unchanged };
        }
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        if covered == Covered::UsedUp {
            answer.stopped = true;
            let mut event = String::from("\n\n");
            Refusal::CreditsRanOut { upgrade_url: None }.write_event(self.endpoint, &mut event);
            out.extend_from_slice(event.as_bytes());
            return Passage { fed: Fed::Stop, extend: false };
        }
        Passage { fed: Fed::Changed, extend }
    }

    /// The body of `POST /plugin/v1/extend`, once [`Passage::extend`] said so. `None`: there is nothing to extend.
    pub fn extension(&mut self) -> Option<String> {
        let output_tokens = self.current.as_ref().and(self.cover.as_mut())?.asking();
        let current = self.current.as_ref()?;
        let target = &current.attempt.target;
        let asked = json!({
            "request_id": self.request_id(), "provider": &*target.provider.name, "upstream_model": &*target.upstream_model,
            "byok": current.own_key, "attempts": self.attempts, "was_fallback": current.was_fallback, "output_tokens": output_tokens,
        });
        Some(asked.to_string())
    }

    /// Takes the node's answer to an extension; `status` 0: there was none.
    pub fn extended(&mut self, status: u16, body: &[u8]) {
        if let Some(cover) = &mut self.cover {
            cover.answered(covered(status, body));
        }
    }
}

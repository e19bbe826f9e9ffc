//! The journal's records as bytes: LEB128 numbers, texts with a length in front, buckets that are zero left out.
//!
//! A record is read by the weir that wrote it or a newer one; each kind has a number of its own, and a changed layout gets
//! a new number. Nothing here touches a file; see [`crate::store::journal`] for frames and checksums.

use super::row::{End, Facts, Outcome, Row, TEXT_BYTES_MAX};
use crate::engine::money::{Credits, Usd};
use crate::engine::usage::{Bucket, Source, Usage};
use std::sync::Arc;

const OPEN: u8 = 1;
const PROGRESS: u8 = 2;
const CARRIED: u8 = 3;
const CLOSE: u8 = 4;

/// A text and its length (two bytes hold lengths to 16,383).
const TEXT_MAX: usize = TEXT_BYTES_MAX + 2;

/// Facts never take more: seven texts, a time, an amount, two marks of presence.
pub const FACTS_BYTES_MAX: usize = 7 * TEXT_MAX + 10 + 19 + 8;

/// An outcome never takes more: three texts, fifteen counts, an amount of 128 bits, one of 64, four numbers, flags.
pub const OUTCOME_BYTES_MAX: usize = 3 * TEXT_MAX + 2 + Bucket::ALL.len() * 10 + 19 + 10 + 4 * 10 + 16;

/// What one record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A request was admitted.
    Open(u64, Facts),
    /// What it would come to if it ended now.
    Progress(u64, Outcome),
    /// The same with the facts repeated, so that the segment that holds the `Open` can go.
    Carried(u64, Row),
    /// It ended.
    Close(u64, Row),
}

/// Appends an `Open` record.
pub fn put_open(out: &mut Vec<u8>, ticket: u64, facts: &Facts) {
    out.push(OPEN);
    put_number(out, ticket);
    put_facts(out, facts);
}

/// Appends a `Progress` record.
pub fn put_progress(out: &mut Vec<u8>, ticket: u64, outcome: &Outcome) {
    out.push(PROGRESS);
    put_number(out, ticket);
    put_outcome(out, outcome);
}

/// Appends a `Carried` record.
pub fn put_carried(out: &mut Vec<u8>, ticket: u64, facts: &Facts, outcome: &Outcome) {
    out.push(CARRIED);
    put_number(out, ticket);
    put_facts(out, facts);
    put_outcome(out, outcome);
}

/// Appends a `Close` record.
pub fn put_close(out: &mut Vec<u8>, ticket: u64, facts: &Facts, outcome: &Outcome) {
    out.push(CLOSE);
    put_number(out, ticket);
    put_facts(out, facts);
    put_outcome(out, outcome);
}

/// Reads a record; `None`: not one of ours.
pub fn read(bytes: &[u8]) -> Option<Record> {
    let mut reader = Reader { rest: bytes };
    let kind = reader.byte()?;
    let ticket = reader.number()?;
    let record = match kind {
        OPEN => Record::Open(ticket, reader.facts()?),
        PROGRESS => Record::Progress(ticket, reader.outcome()?),
        CARRIED => Record::Carried(ticket, Row { facts: reader.facts()?, outcome: reader.outcome()? }),
        CLOSE => Record::Close(ticket, Row { facts: reader.facts()?, outcome: reader.outcome()? }),
        _ => return None,
    };
    reader.rest.is_empty().then_some(record)
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    put_wide(out, u128::from(number));
}

fn put_wide(out: &mut Vec<u8>, mut number: u128) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Small magnitudes of either sign stay short.
fn put_signed(out: &mut Vec<u8>, number: i128) {
    put_wide(out, ((number << 1) ^ (number >> 127)) as u128);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// A missing text is a zero; a present one has its length plus one in front.
fn put_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => out.push(0),
        Some(text) => {
            put_number(out, text.len() as u64 + 1);
            out.extend_from_slice(text.as_bytes());
        }
    }
}

fn put_facts(out: &mut Vec<u8>, facts: &Facts) {
    put_text(out, &facts.request_id);
    put_number(out, facts.started_ms);
    put_text(out, &facts.account);
    put_text(out, &facts.key_id);
    put_text(out, &facts.asked_model);
    put_optional(out, facts.level.as_deref());
    put_optional(out, facts.tier.as_deref());
    put_optional(out, facts.idempotency_key.as_deref());
    match facts.reserved {
        None => out.push(0),
        Some(reserved) => {
            out.push(1);
            put_signed(out, i128::from(reserved.0));
        }
    }
}

const BYOK: u8 = 1;
const FALLBACK: u8 = 2;
const FIRST_EVENT: u8 = 4;

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    put_optional(out, outcome.model.as_deref());
    put_optional(out, outcome.provider.as_deref());
    put_optional(out, outcome.price_id.as_deref());
    let mut flags = 0;
    for (set, flag) in [(outcome.byok, BYOK), (outcome.was_fallback, FALLBACK), (outcome.first_event_ms.is_some(), FIRST_EVENT)] {
        flags |= if set { flag } else { 0 };
    }
    out.extend_from_slice(&[flags, outcome.end as u8, outcome.usage_source as u8]);
    put_number(out, u64::from(outcome.attempts));
    put_number(out, u64::from(outcome.status));
    let present = outcome.usage.iter().filter(|(_, count)| *count > 0).fold(0u64, |set, (bucket, _)| set | 1 << bucket as u8);
    put_number(out, present);
    for (_, count) in outcome.usage.iter().filter(|(_, count)| *count > 0) {
        put_number(out, count);
    }
    put_signed(out, outcome.cost.0);
    put_signed(out, i128::from(outcome.charge.0));
    if let Some(first_event_ms) = outcome.first_event_ms {
        put_number(out, first_event_ms);
    }
    put_number(out, outcome.duration_ms);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn wide(&mut self) -> Option<u128> {
        let mut number = 0u128;
        for shift in (0..128).step_by(7) {
            let byte = self.byte()?;
            number |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn number(&mut self) -> Option<u64> {
        u64::try_from(self.wide()?).ok()
    }

    fn signed(&mut self) -> Option<i128> {
        let number = self.wide()?;
        Some((number >> 1) as i128 ^ -((number & 1) as i128))
    }

    fn bytes_as_text(&mut self, length: u64) -> Option<&'a str> {
        let (text, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.number()?;
        self.bytes_as_text(length)
    }

    fn optional(&mut self) -> Option<Option<&'a str>> {
        match self.number()? {
            0 => Some(None),
            length => self.bytes_as_text(length - 1).map(Some),
        }
    }

    fn facts(&mut self) -> Option<Facts> {
        Some(Facts {
            request_id: self.text()?.into(),
            started_ms: self.number()?,
            account: self.text()?.into(),
            key_id: self.text()?.into(),
            asked_model: self.text()?.into(),
            level: self.optional()?.map(Arc::from),
            tier: self.optional()?.map(Arc::from),
            idempotency_key: self.optional()?.map(Box::from),
            reserved: match self.byte()? {
                0 => None,
                1 => Some(Credits(i64::try_from(self.signed()?).ok()?)),
                _ => return None,
            },
        })
    }

    fn outcome(&mut self) -> Option<Outcome> {
        let model = self.optional()?.map(Arc::from);
        let provider = self.optional()?.map(Arc::from);
        let price_id = self.optional()?.map(Arc::from);
        let flags = self.byte()?;
        let end = End::from_number(self.byte()?)?;
        let usage_source = source_from_number(self.byte()?)?;
        let attempts = u32::try_from(self.number()?).ok()?;
        let status = u16::try_from(self.number()?).ok()?;
        let present = self.number()?;
        let mut usage = Usage::default();
        for bucket in Bucket::ALL.into_iter().filter(|bucket| present & (1 << *bucket as u8) != 0) {
            usage.set(bucket, self.number()?);
        }
        Some(Outcome {
            model,
            provider,
            byok: flags & BYOK != 0,
            attempts,
            was_fallback: flags & FALLBACK != 0,
            status,
            end,
            usage,
            usage_source,
            price_id,
            cost: Usd(self.signed()?),
            charge: Credits(i64::try_from(self.signed()?).ok()?),
            first_event_ms: if flags & FIRST_EVENT != 0 { Some(self.number()?) } else { None },
            duration_ms: self.number()?,
        })
    }
}

/// From its number in the journal and the table.
pub fn source_from_number(number: u8) -> Option<Source> {
    [Source::Upstream, Source::Counted, Source::Mixed].into_iter().find(|source| *source as u8 == number)
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::full_row;
    use super::*;
    use proptest::prelude::*;

    fn largest_row() -> Row {
        let text = "x".repeat(TEXT_BYTES_MAX);
        let mut row = full_row(&text);
        row.facts.started_ms = u64::MAX;
        row.facts.account = text.as_str().into();
        row.facts.key_id = text.as_str().into();
        row.facts.asked_model = text.as_str().into();
        row.facts.level = Some(text.as_str().into());
        row.facts.tier = Some(text.as_str().into());
        row.facts.idempotency_key = Some(text.as_str().into());
        row.facts.reserved = Some(Credits(i64::MIN));
        row.outcome.model = Some(text.as_str().into());
        row.outcome.provider = Some(text.as_str().into());
        row.outcome.price_id = Some(text.as_str().into());
        row.outcome.attempts = u32::MAX;
        row.outcome.status = u16::MAX;
        for bucket in Bucket::ALL {
            row.outcome.usage.set(bucket, u64::MAX);
        }
        row.outcome.cost = Usd(i128::MIN);
        row.outcome.charge = Credits(i64::MIN);
        row.outcome.first_event_ms = Some(u64::MAX);
        row.outcome.duration_ms = u64::MAX;
        row
    }

    fn check(row: &Row) {
        let records = [
            Record::Open(7, row.facts.clone()),
            Record::Progress(300, row.outcome.clone()),
            Record::Carried(u64::MAX, row.clone()),
            Record::Close(0, row.clone()),
        ];
        for record in records {
            let mut bytes = Vec::new();
            match &record {
                Record::Open(ticket, facts) => put_open(&mut bytes, *ticket, facts),
                Record::Progress(ticket, outcome) => put_progress(&mut bytes, *ticket, outcome),
                Record::Carried(ticket, row) => put_carried(&mut bytes, *ticket, &row.facts, &row.outcome),
                Record::Close(ticket, row) => put_close(&mut bytes, *ticket, &row.facts, &row.outcome),
            }
            assert_eq!(read(&bytes).as_ref(), Some(&record));
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut]), None, "cut at {cut}");
            }
            bytes.push(0);
            assert_eq!(read(&bytes), None, "one byte too many");
        }
    }

    #[test]
    fn records_come_back_and_a_cut_one_does_not() {
        let mut bare = full_row("r");
        bare.facts.level = None;
        bare.facts.tier = None;
        bare.facts.reserved = None;
        bare.facts.idempotency_key = Some("".into());
        bare.outcome = Outcome::default();
        for row in [full_row("r"), bare, largest_row()] {
            check(&row);
        }
    }

    #[test]
    fn the_largest_parts_fit_their_bounds() {
        let row = largest_row();
        let (mut facts, mut outcome) = (Vec::new(), Vec::new());
        put_facts(&mut facts, &row.facts);
        put_outcome(&mut outcome, &row.outcome);
        assert!(facts.len() <= FACTS_BYTES_MAX && facts.len() + 32 > FACTS_BYTES_MAX, "{}", facts.len());
        assert!(outcome.len() <= OUTCOME_BYTES_MAX && outcome.len() + 64 > OUTCOME_BYTES_MAX, "{}", outcome.len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn numbers_come_back(number in any::<i128>()) {
            let mut bytes = Vec::new();
            put_signed(&mut bytes, number);
            prop_assert_eq!(Reader { rest: &bytes }.signed(), Some(number));
        }
    }
}

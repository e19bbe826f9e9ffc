//! In which order the candidates are asked.
//!
//! Ready ones before cooling ones; the model asked before its fallbacks; own keys before the platform's; low priority
//! numbers before high ones; inside such a group the model's strategy, or the conversation's prefix where it sticks.

use super::Draw;
use super::candidates::{Candidate, Context, Pool};
use crate::engine::catalog::{Strategy, TargetPrice};
use crate::engine::health::hash;
use crate::engine::level::blended_per_1m;

/// Group, rank inside it, and the draw by weight that decides between equals.
pub(super) type Key = (u64, u64, u64);

/// Puts the pool in order.
pub(super) fn sort(context: &Context<'_>, draw: Draw, pool: &mut Pool<'_>) {
    if pool.len() < 2 {
        return;
    }
    for (at, candidate) in pool.candidates.iter_mut().enumerate() {
        let random = mix(draw.0.wrapping_add((at as u64 + 1).wrapping_mul(GOLDEN)));
        candidate.key = (group(candidate), 0, race(random, candidate.target.weight));
    }
    for at in 0..pool.len() {
        let candidate = &pool.candidates[at];
        let rank = match candidate.due_ms {
            0 => rank(context, candidate, pool),
            due_ms => due_ms,
        };
        pool.candidates[at].key.1 = rank;
    }
    // Stable: what is equal stays in the order of the configuration.
    pool.candidates.sort_by_key(|candidate| candidate.key);
}

/// Cooling, position, payer and priority in one number. Cooling candidates are one group: the one due first is first.
fn group(candidate: &Candidate<'_>) -> u64 {
    if candidate.due_ms != 0 {
        return u64::MAX;
    }
    u64::from(candidate.position) << 33 | u64::from(candidate.own.is_none()) << 32 | u64::from(candidate.target.priority)
}

/// The rank inside the group; lower is asked first.
fn rank(context: &Context<'_>, candidate: &Candidate<'_>, pool: &Pool<'_>) -> u64 {
    let target = candidate.target;
    if let Some(margin) = candidate.facts.stick
        && context.ask.prefix_hash != 0
    {
        // Rendezvous: each target draws by the prefix, so a prefix keeps its target while others come and go.
        let identity = hash(&target.provider.name) ^ hash(&target.upstream_model).rotate_left(32);
        let score = race(mix(context.ask.prefix_hash ^ identity), target.weight) >> 1;
        let slow = u64::from(too_slow(context, candidate, pool, margin));
        return slow << 63 | score;
    }
    match candidate.facts.strategy {
        Strategy::WeightedRandom => 0,
        // Unknown ranks first: a target that is never asked is never measured.
        Strategy::LeastLatency => target.state.first_event.median_us(context.now_ms).unwrap_or(0),
        Strategy::LeastBusy => u64::from(target.state.in_flight()),
        Strategy::LeastCost => cost_rank(&target.price),
    }
}

/// Whether the group holds a target whose median is so much better that sticking does not pay.
fn too_slow(context: &Context<'_>, candidate: &Candidate<'_>, pool: &Pool<'_>, margin: u32) -> bool {
    let median = |candidate: &Candidate<'_>| candidate.target.state.first_event.median_us(context.now_ms);
    let Some(mine) = median(candidate) else { return false };
    let best = pool.iter().filter(|other| other.key.0 == candidate.key.0).filter_map(median).min();
    best.is_some_and(|best| u128::from(mine) * 100 > u128::from(best) * (100 + u128::from(margin)))
}

/// Pico-dollars per million tokens fit 64 bits up to 18 million dollars; more, and the unknown, rank last.
fn cost_rank(price: &TargetPrice) -> u64 {
    blended_per_1m(price).map_or(u64::MAX, |cost| u64::try_from(cost.0.max(0)).unwrap_or(u64::MAX))
}

/// An exponential race: sorting by these draws without replacement, each with a chance in proportion to its weight
/// (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006). Weight 0 comes after all others.
fn race(random: u64, weight: u32) -> u64 {
    // 53 random bits, never 0: within (0, 1].
    let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let time = if weight == 0 { f64::INFINITY } else { -uniform.ln() / f64::from(weight) };
    // Floats that are not negative sort as their bits do; -0.0 is not one of them.
    if time > 0.0 { time.to_bits() } else { 0 }
}

/// The odd constant of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

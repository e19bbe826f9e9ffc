//! Floor 0: decisions and counting. No I/O, no clock, no tasks: time, randomness and configuration come in as arguments.
//!
//! Reading order: [`catalog`] is what an operator configured; [`peek`] is what a request asks; [`policy`], [`level`] and
//! [`route`] turn the two into a plan of attempts; [`provider`] and [`dialect`] say how each attempt is spoken;
//! [`sse`] and [`meter`] count what comes back; [`price`], [`budget`] and [`limit`] turn counts into money and allowances;
//! [`refusal`] is every answer that is a no. [`vector`] is what the readers of JSON share.

pub mod budget;
pub mod catalog;
pub mod dialect;
pub mod health;
pub mod id;
pub mod level;
pub mod limit;
pub mod meter;
pub mod money;
pub mod outbound;
pub mod peek;
pub mod policy;
pub mod price;
pub mod provider;
pub mod refusal;
pub mod route;
pub mod sse;
pub mod tokens;
pub mod usage;
pub mod vector;

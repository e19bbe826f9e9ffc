//! weir: an LLM gateway at the edge.
//!
//! An app points its OpenAI or Anthropic client at weir. weir knows who calls, picks where the request goes, swaps the
//! credentials, passes the stream through untouched while it counts the tokens, and writes the bill.
//!
//! # The house
//!
//! A floor calls down, never up.
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 4 | `cli`, `app` | arguments, and the one place where the parts are put together |
//! | 3 | `admin` | operators: API, console, metrics page, health |
//! | 2 | `proxy` | the only floor that knows Pingora: the life of a request |
//! | 1 | [`config`], `store`, `auth`, `export`, `telemetry`, `policy` | files, disk, database, crypto, Prometheus, the clock, Lua |
//! | 0 | [`engine`] | decisions and counting: no I/O, no clock, no tasks |
//!
//! Floor 0, and the part of `config` that turns text into a catalog, build alone (`--no-default-features`): that is what the
//! library in `lua-compat` links.
//!
//! # The life of a request
//!
//! `proxy::ingress` reads the head, finds the caller (`store::callers`, a map in memory), reads the body once
//! ([`engine::peek`]), asks for a plan ([`engine::route`]), draws on the rate limits ([`engine::limit`]), reserves the most it
//! can cost ([`engine::budget`]) and journals that it begins (`store::ledger`). `proxy::exchange` makes the plan's attempts
//! until one commits with its first event, and `proxy::relay` passes the stream on while [`engine::meter`] counts.
//! `proxy::settle` turns the count into money ([`engine::price`]), settles the reservation and journals the row: once, on every
//! path, before the client sees the end. A thread brings rows from the journal to the database, another to the billing system.
//!
//! Each core has a runtime, an accept loop and idle upstream connections of its own (`proxy::cores`, `proxy::pool`): a request is
//! served where its connection is.
//!
//! What can change while it runs (routing, prices) is one immutable [`engine::catalog::Catalog`] that is swapped as a whole;
//! what must outlive the swap (health, measurements) hangs on it by shared pointers.

#![forbid(unsafe_code)]

pub mod config;
pub mod engine;

#[cfg(feature = "gateway")]
pub mod admin;
#[cfg(feature = "gateway")]
pub mod app;
#[cfg(feature = "gateway")]
pub mod auth;
#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod export;
#[cfg(feature = "lua-policy")]
pub mod policy;
#[cfg(feature = "gateway")]
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod store;
#[cfg(feature = "gateway")]
pub mod telemetry;

//! OpenResty-style Lua policy: a team's `access`, `header_filter`, `body_filter` and `log` handlers, unchanged.
//!
//! A policy is a Lua module that returns a table of handlers, as `access_by_lua_block { require("policy").access() }` would
//! call them in nginx. What it may use is a subset of ngx_lua (`names`); any other name under `ngx` is an error at load that
//! names it, never a `nil` in the middle of the night.
//!
//! Every worker thread has a virtual machine of its own (`vm`): handlers are synchronous, no Lua value crosses an await or a
//! thread. `ngx.ctx` travels between a request's handlers as plain data, for a request may move to another thread. The machine
//! compiles nothing: LuaJIT looks at hooks only while it interprets, and the hook is what stops a runaway loop.
//!
//! A policy never sees a credential: the headers that carry one read as `nil` and cannot be set. Who calls is in
//! `ngx.var.weir_account`, `weir_key_id` and `weir_tier`. Where the same policy runs in nginx, its configuration sets variables
//! of these names and takes the headers away before it calls the policy.
//!
//! Deliberately absent: cosockets, timers, subrequests, FFI, coroutines, files, loading code. Where the rules differ from
//! nginx: patterns of `ngx.re` are linear-time (no look-around, no back-references), a shared dictionary that is full refuses
//! rather than evicts, framing headers are the gateway's, a refusal (`ngx.exit(403)`) has the shape of the path's dialect, and
//! `header_filter` cannot refuse.

mod api;
mod data;
mod exchange;
mod names;
mod shared;
#[cfg(test)]
mod tests;
mod vm;

pub use exchange::{Access, Exchange, Failed, Filtered, Head, HeaderEdits};
pub use vm::check;

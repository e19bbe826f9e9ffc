//! weir's engine behind a C interface, for nginx, OpenResty, Kong and APISIX.
//!
//! An [`Engine`] is a worker's: it holds the configuration and swaps it when the files change. A [`Request`] is one
//! request's: it reads the body, plans, says what to send where, counts what comes back, and ends in one row. Who calls and
//! what it may cost is a weir node's to say ([`admission`]); without one the files alone decide.
//!
//! [`ffi`] is the C interface and the only place with `unsafe`. The other modules are plain Rust over `weir::engine`, so that
//! they can be tested without a proxy.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod admission;
pub mod cover;
pub mod engine;
#[allow(unsafe_code)]
pub mod ffi;
pub mod head;
pub mod packed;
pub mod request;
pub mod row;
pub mod settings;

pub use engine::Engine;
pub use request::Request;

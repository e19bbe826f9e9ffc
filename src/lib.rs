//! weir: an LLM gateway at the edge.
pub mod engine;
pub mod config;
#[cfg(feature = "gateway")]
pub mod auth;
#[cfg(feature = "gateway")]
pub mod cli;
#[cfg(feature = "gateway")]
pub mod export;
#[cfg(feature = "gateway")]
pub mod store;

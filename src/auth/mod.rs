//! Floor 1: who calls, when it is not one of weir's own keys.

pub mod jwks;
pub mod jwt;

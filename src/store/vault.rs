//! The vault.

pub mod seal;

/// Tables of this part.
pub const TABLES: &str = "";

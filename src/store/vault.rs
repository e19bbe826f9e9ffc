//! The vault.

/// Tables of this part.
pub const TABLES: &str = "";

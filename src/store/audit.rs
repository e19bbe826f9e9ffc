//! The audit log.

/// Tables of this part.
pub const TABLES: &str = "";

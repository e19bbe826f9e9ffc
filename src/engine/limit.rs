//! Rate limits: token buckets that may owe, per key, account and tier. The clock is passed in.

/// Limits as configured; `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Tokens a minute.
    pub tpm: Option<u64>,
    /// Requests a day.
    pub rpd: Option<u64>,
    /// Tokens a day.
    pub tpd: Option<u64>,
    /// Requests at the same time.
    pub concurrent: Option<u64>,
}

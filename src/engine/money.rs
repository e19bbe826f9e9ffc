//! Exact amounts. Money is never a float.

/// US dollars in units of 10⁻¹² (pico-dollars).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Usd(pub i128);

/// Credits in units of 10⁻⁹: what callers' balances and charges are kept in. Fits an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Credits(pub i64);

/// An exact decimal factor: `digits / 10^scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor {
    /// The digits without the point.
    pub digits: i128,
    /// How many of them stand behind the point.
    pub scale: u32,
}

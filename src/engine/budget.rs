//! Balances in memory: a reservation is consumed by settle or release, by value.

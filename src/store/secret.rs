//! Secrets in memory: zeroed on drop, never printed, compared in constant time.

use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Shorter secrets are masked whole: their first and last four characters would be too large a part of them.
const MASK_SHOWS_FROM: usize = 16;

/// A secret string. `Debug` and `Display` print `***`; the only way to its text is [`Secret::expose`].
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Takes the text over; its buffer is zeroed, spare capacity included.
    pub fn new(text: String) -> Secret {
        Secret::copied(&Zeroizing::new(text))
    }

    /// A copy of a text whose owner zeroes its own.
    pub fn copied(text: &str) -> Secret {
        Secret(Zeroizing::new(Box::from(text)))
    }

    /// The text, for the one place that sends or hashes it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What its owner may see of it.
    pub fn masked(&self) -> String {
        mask(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        same(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for Secret {}

/// Equality in a time that depends on the lengths alone.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// First four and last four characters of a secret of at least 16; `***` for shorter ones.
pub fn mask(text: &str) -> String {
    let count = text.chars().count();
    if count < MASK_SHOWS_FROM {
        return "***".into();
    }
    let first: String = text.chars().take(4).collect();
    let last: String = text.chars().skip(count - 4).collect();
    format!("{first}…{last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        for (text, expected) in [
            ("", "***"),
            ("sk-12345", "***"),
            ("123456789012345", "***"),
            ("1234567890123456", "1234…3456"),
            ("sk-proj-abcdefghijklmnop", "sk-p…mnop"),
            ("éééé56789012éééé", "éééé…éééé"),
        ] {
            assert_eq!(mask(text), expected);
        }
    }

    #[test]
    fn prints_nothing() {
        let secret = Secret::new("sk-abcdefghijklmnopqrstuvwxyz".into());
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
    }

    #[test]
    fn compares() {
        let secret = |text: &str| Secret::new(text.into());
        assert_eq!(secret("abc"), secret("abc"));
        assert_ne!(secret("abc"), secret("abd"));
        assert_ne!(secret("abc"), secret("abcd"));
    }
}

//! Exact amounts. Money is never a float.
//!
//! Dollars are kept in units of 10⁻¹²: every published price per million tokens with up to six decimals is then a whole number per
//! token. Credits are kept in units of 10⁻⁹ so that a balance fits an atomic. An amount is rounded once, half to even, when a
//! cost becomes a charge.
//!
//! Deliberately absent: `From<f64>`, and any operator that could overflow unseen.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// US dollars in units of 10⁻¹² (pico-dollars).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Usd(pub i128);

/// Credits in units of 10⁻⁹: what callers' balances and charges are kept in. Fits an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Credits(pub i64);

/// An exact decimal factor: `digits / 10^scale`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor {
    /// The digits without the point.
    pub digits: i128,
    /// How many of them stand behind the point.
    pub scale: u32,
}

/// Why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadAmount {
    /// Nothing there.
    Empty,
    /// Scientific notation.
    Exponent,
    /// Something else than digits with at most one point between them.
    NotDecimal,
    /// More decimals than the unit can hold; how many it can.
    TooManyDecimals(u32),
    /// Beyond what the unit can hold.
    TooLarge,
}

/// Decimals of a dollar amount.
const USD_DECIMALS: u32 = 12;
/// Decimals of a credit amount.
const CREDIT_DECIMALS: u32 = 9;
/// Decimals of a factor: with this bound (and [`FACTOR_MAX`]) the parts of a charge fit 128 bits each.
const FACTOR_DECIMALS: u32 = 9;
/// The largest factor, a million, in digits at the largest scale.
const FACTOR_MAX: i128 = 1_000_000;
/// Digits before the point at most: a number beyond 10^18 dollars is a mistake, and the bound keeps reading free of overflow.
const MAX_WHOLE_DIGITS: usize = 18;

impl Usd {
    /// No money.
    pub const ZERO: Usd = Usd(0);
    /// Pico-dollars in a dollar.
    pub const ONE: Usd = Usd(1_000_000_000_000);

    /// Reads a decimal string with at most twelve decimals, such as `"0.15"`.
    pub fn parse(text: &str) -> Result<Usd, BadAmount> {
        decimal(text, USD_DECIMALS).map(Usd)
    }

    /// Reads the text of a JSON number, which may have an exponent (`1.5e-07`), rounded half to even to 10⁻¹².
    /// `None`: not a number, or beyond 10^18 dollars.
    pub fn of_json_number(text: &str) -> Option<Usd> {
        number(text, USD_DECIMALS).map(|(amount, _)| Usd(amount))
    }

    /// Sum; stays at the largest amount instead of overflowing.
    pub const fn saturating_add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }

    /// Difference; stays at the smallest amount instead of overflowing.
    pub const fn saturating_sub(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }

    /// Cents as a decimal string with up to ten decimals: what Lago's `precise_total_amount_cents` takes.
    pub fn cents(self) -> String {
        AmountText::new(self.0, USD_DECIMALS - 2).as_str().to_owned()
    }
}

impl Credits {
    /// No credits.
    pub const ZERO: Credits = Credits(0);
    /// Units in a credit.
    pub const ONE: Credits = Credits(1_000_000_000);

    /// Reads a decimal string with at most nine decimals.
    pub fn parse(text: &str) -> Result<Credits, BadAmount> {
        decimal(text, CREDIT_DECIMALS).and_then(|amount| i64::try_from(amount).map(Credits).map_err(|_| BadAmount::TooLarge))
    }

    /// Credits for dollars at `credit_value` dollars each, half to even. Zero when `credit_value` is not positive.
    pub fn of_usd(amount: Usd, credit_value: Usd) -> Credits {
        charge(amount, Factor::ONE, Factor::ZERO, credit_value)
    }

    /// Sum; stays at the largest amount instead of overflowing.
    pub const fn saturating_add(self, other: Credits) -> Credits {
        Credits(self.0.saturating_add(other.0))
    }

    /// Difference; stays at the smallest amount instead of overflowing.
    pub const fn saturating_sub(self, other: Credits) -> Credits {
        Credits(self.0.saturating_sub(other.0))
    }
}

impl Factor {
    /// Times nothing.
    pub const ZERO: Factor = Factor { digits: 0, scale: 0 };
    /// Times one.
    pub const ONE: Factor = Factor { digits: 1, scale: 0 };

    /// Reads a decimal string, at most nine decimals and at most a million, such as `"0.25"`. Equal values are equal factors: zeros at the end do not count.
    pub fn parse(text: &str) -> Result<Factor, BadAmount> {
        let mut digits = decimal(text, FACTOR_DECIMALS)?;
        if digits.abs() > FACTOR_MAX * 10i128.pow(FACTOR_DECIMALS) {
            return Err(BadAmount::TooLarge);
        }
        let mut scale = FACTOR_DECIMALS;
        while scale > 0 && digits % 10 == 0 {
            digits /= 10;
            scale -= 1;
        }
        Ok(Factor { digits, scale })
    }
}

/// What a caller is charged: `cost × multiplier × (1 + markup) / credit_value`, rounded once, half to even, to 10⁻⁹ credit.
///
/// Zero when any of the parts is negative or `credit_value` is not positive: a charge never pays the caller. Stays at the largest
/// amount instead of overflowing.
pub fn charge(cost: Usd, multiplier: Factor, markup: Factor, credit_value: Usd) -> Credits {
    let ten_to = |scale: u32| 10u128.saturating_pow(scale);
    let (Ok(cost), Ok(multiplier_digits), Ok(markup_digits), Ok(credit)) =
        (u128::try_from(cost.0), u128::try_from(multiplier.digits), u128::try_from(markup.digits), u128::try_from(credit_value.0))
    else {
        return Credits::ZERO;
    };
    if credit == 0 {
        return Credits::ZERO;
    }
    let factor = markup_digits.saturating_add(ten_to(markup.scale)).saturating_mul(ten_to(CREDIT_DECIMALS));
    let below = ten_to(multiplier.scale).saturating_mul(ten_to(markup.scale)).saturating_mul(credit);
    let amount = mul_div_half_even(cost.saturating_mul(multiplier_digits), factor, below);
    Credits(i64::try_from(amount).unwrap_or(i64::MAX))
}

/// `number / divisor`, rounded half to even. `divisor` must be positive (a constant in every use).
pub const fn div_half_even(number: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (number.div_euclid(divisor), number.rem_euclid(divisor));
    // `rest < divisor`, so the difference cannot overflow where doubling could.
    let other = divisor - rest;
    if rest > other || (rest == other && quotient % 2 != 0) { quotient + 1 } else { quotient }
}

/// `a × b / divisor` with a 256-bit product, rounded half to even; stays at the largest number instead of overflowing.
fn mul_div_half_even(a: u128, b: u128, divisor: u128) -> u128 {
    let (quotient, rest) = match a.checked_mul(b) {
        Some(product) => (product / divisor, product % divisor),
        None => match wide_div(wide_mul(a, b), divisor) {
            Some(parts) => parts,
            None => return u128::MAX,
        },
    };
    let other = divisor - rest;
    if rest > other || (rest == other && quotient % 2 == 1) { quotient.saturating_add(1) } else { quotient }
}

/// The product as high and low half.
fn wide_mul(a: u128, b: u128) -> (u128, u128) {
    const HALF: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & HALF, b >> 64, b & HALF);
    let low = a0 * b0;
    // Each term is below 2^128 - 2^65, so adding two 64-bit carries stays inside 128 bits.
    let middle = a1 * b0 + (low >> 64);
    let other = a0 * b1 + (middle & HALF);
    (a1 * b1 + (middle >> 64) + (other >> 64), (other << 64) | (low & HALF))
}

/// Long division, a bit at a time; `None` when the quotient needs more than 128 bits.
fn wide_div((high, low): (u128, u128), divisor: u128) -> Option<(u128, u128)> {
    if high >= divisor {
        return None;
    }
    let (mut rest, mut quotient) = (high, 0u128);
    for bit in (0..128).rev() {
        let carry = rest >> 127;
        rest = (rest << 1) | ((low >> bit) & 1);
        quotient <<= 1;
        if carry == 1 || rest >= divisor {
            rest = rest.wrapping_sub(divisor);
            quotient |= 1;
        }
    }
    Some((quotient, rest))
}

/// Reads `[-]digits[.digits]` as an integer of `10^-decimals`.
fn decimal(text: &str, decimals: u32) -> Result<i128, BadAmount> {
    if text.is_empty() {
        return Err(BadAmount::Empty);
    }
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = unsigned.split_once('.').map_or((unsigned, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !fraction.is_none_or(all_digits) {
        let exponent = unsigned.starts_with(|first: char| first.is_ascii_digit()) && unsigned.contains(['e', 'E']);
        return Err(if exponent { BadAmount::Exponent } else { BadAmount::NotDecimal });
    }
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.unwrap_or("").trim_end_matches('0');
    if whole.len() > MAX_WHOLE_DIGITS {
        return Err(BadAmount::TooLarge);
    }
    if fraction.len() > decimals as usize {
        return Err(BadAmount::TooManyDecimals(decimals));
    }
    let digits = whole.bytes().chain(fraction.bytes()).fold(0i128, |sum, byte| sum * 10 + i128::from(byte - b'0'));
    let amount = digits * 10i128.pow(decimals - fraction.len() as u32);
    Ok(if negative { -amount } else { amount })
}

/// Reads a JSON number's text as an integer of `10^-decimals`, half to even, and whether it was exact.
pub(crate) fn number(text: &str, decimals: u32) -> Option<(i128, bool)> {
    /// Digits kept; a number with more is no price. Keeps the arithmetic inside 128 bits.
    const MAX_DIGITS: usize = 30;
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || whole.len() + fraction.len() > MAX_DIGITS {
        return None;
    }
    let digits = whole.bytes().chain(fraction.bytes()).fold(0i128, |sum, byte| sum * 10 + i128::from(byte - b'0'));
    let shift = exponent.checked_sub(fraction.len() as i32)?.checked_add(decimals as i32)?;
    let (amount, exact) = match shift.unsigned_abs() {
        _ if digits == 0 => (0, true),
        up if shift >= 0 => (digits.checked_mul(10i128.checked_pow(up)?)?, true),
        down => match 10i128.checked_pow(down) {
            Some(divisor) => (div_half_even(digits, divisor), digits % divisor == 0),
            None => (0, false),
        },
    };
    let limit = 10i128.pow(MAX_WHOLE_DIGITS as u32 + decimals);
    (amount < limit).then_some((if negative { -amount } else { amount }, exact))
}

/// The longest amount: a sign, the 39 digits of 128 bits, a zero before the point, and the point.
const TEXT_BYTES_MAX: usize = 42;

/// An amount as a plain decimal text without zeros at its end, on the stack.
#[derive(Debug, Clone, Copy)]
pub struct AmountText {
    bytes: [u8; TEXT_BYTES_MAX],
    start: usize,
}

impl AmountText {
    /// `amount / 10^decimals`; at most 38 decimals.
    fn new(amount: i128, decimals: u32) -> AmountText {
        let (mut bytes, mut start) = ([0; TEXT_BYTES_MAX], TEXT_BYTES_MAX);
        let mut put = |byte| {
            start -= 1;
            bytes[start] = byte;
        };
        let mut digits = Digits(amount.unsigned_abs());
        let mut is_shown = false;
        for _ in 0..decimals.min(38) {
            let digit = digits.last();
            is_shown |= digit != 0;
            if is_shown {
                put(b'0' + digit);
            }
        }
        if is_shown {
            put(b'.');
        }
        put(b'0' + digits.last());
        while digits.0 > 0 {
            put(b'0' + digits.last());
        }
        if amount < 0 {
            put(b'-');
        }
        AmountText { bytes, start }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Digits, a point and a sign are ASCII, so the fallback is never taken.
        std::str::from_utf8(&self.bytes[self.start..]).unwrap_or_default()
    }
}

/// A number that gives its digits away, the last one first.
struct Digits(u128);

impl Digits {
    fn last(&mut self) -> u8 {
        // Most amounts fit 64 bits, where a division is one instruction.
        match u64::try_from(self.0) {
            Ok(small) => {
                self.0 = u128::from(small / 10);
                (small % 10) as u8
            }
            Err(_) => {
                let digit = (self.0 % 10) as u8;
                self.0 /= 10;
                digit
            }
        }
    }
}

impl Usd {
    /// The amount in dollars, without an allocation.
    pub fn text(self) -> AmountText {
        AmountText::new(self.0, USD_DECIMALS)
    }
}

impl Credits {
    /// The amount in credits, without an allocation.
    pub fn text(self) -> AmountText {
        AmountText::new(i128::from(self.0), CREDIT_DECIMALS)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text().as_str())
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A hand-made scale beyond what `parse` yields is shown as far as 128 bits reach.
        f.pad(AmountText::new(self.digits, self.scale).as_str())
    }
}

impl fmt::Display for BadAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadAmount::Empty => f.write_str("an amount is missing"),
            BadAmount::Exponent => f.write_str("an amount is written out, without an exponent, such as \"0.00000015\""),
            BadAmount::NotDecimal => f.write_str("an amount is digits with at most one point between them, such as \"0.15\""),
            BadAmount::TooManyDecimals(most) => write!(f, "at most {most} decimals can be kept exactly"),
            BadAmount::TooLarge => f.write_str("the amount is too large"),
        }
    }
}

impl std::error::Error for BadAmount {}

impl FromStr for Usd {
    type Err = BadAmount;
    fn from_str(text: &str) -> Result<Usd, BadAmount> {
        Usd::parse(text)
    }
}

impl FromStr for Credits {
    type Err = BadAmount;
    fn from_str(text: &str) -> Result<Credits, BadAmount> {
        Credits::parse(text)
    }
}

impl FromStr for Factor {
    type Err = BadAmount;
    fn from_str(text: &str) -> Result<Factor, BadAmount> {
        Factor::parse(text)
    }
}

impl From<Usd> for String {
    fn from(amount: Usd) -> String {
        amount.to_string()
    }
}

impl From<Credits> for String {
    fn from(amount: Credits) -> String {
        amount.to_string()
    }
}

impl TryFrom<String> for Usd {
    type Error = BadAmount;
    fn try_from(text: String) -> Result<Usd, BadAmount> {
        Usd::parse(&text)
    }
}

impl TryFrom<String> for Credits {
    type Error = BadAmount;
    fn try_from(text: String) -> Result<Credits, BadAmount> {
        Credits::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_read_and_print_exactly() {
        let check = |text: &str, pico: i128, printed: &str| {
            assert_eq!(Usd::parse(text), Ok(Usd(pico)), "{text}");
            assert_eq!(Usd(pico).to_string(), printed);
        };
        check("0.00001845", 18_450_000, "0.00001845");
        check("3", 3_000_000_000_000, "3");
        check("0003.750", 3_750_000_000_000, "3.75");
        check("0.000000000001", 1, "0.000000000001");
        check("-0.5", -500_000_000_000, "-0.5");
        check("0", 0, "0");
        check("1.50000000000000000000", 1_500_000_000_000, "1.5");
    }

    #[test]
    fn what_is_no_amount_is_refused_with_its_reason() {
        let check = |text: &str, reason: BadAmount| assert_eq!(Usd::parse(text), Err(reason), "{text}");
        check("", BadAmount::Empty);
        check("1e-6", BadAmount::Exponent);
        check("1.5E3", BadAmount::Exponent);
        check("free", BadAmount::NotDecimal);
        check(".5", BadAmount::NotDecimal);
        check("5.", BadAmount::NotDecimal);
        check("1,5", BadAmount::NotDecimal);
        check("$1", BadAmount::NotDecimal);
        check("1_000", BadAmount::NotDecimal);
        check("+1", BadAmount::NotDecimal);
        check(" 1", BadAmount::NotDecimal);
        check("--1", BadAmount::NotDecimal);
        check("0.0000000000001", BadAmount::TooManyDecimals(12));
        check("9999999999999999999", BadAmount::TooLarge);
        assert_eq!(Credits::parse("0.0000000001"), Err(BadAmount::TooManyDecimals(9)));
        assert_eq!(Credits::parse("9223372036.854775808"), Err(BadAmount::TooLarge));
        assert_eq!(Credits::parse("9223372036.854775807"), Ok(Credits(i64::MAX)));
        assert_eq!(Factor::parse("1000000.1"), Err(BadAmount::TooLarge));
    }

    #[test]
    fn json_numbers_are_read_from_their_text() {
        let check = |text: &str, expected: Option<(i128, bool)>| assert_eq!(number(text, 12), expected, "{text}");
        check("1.5e-07", Some((150_000, true)));
        check("0.00001845", Some((18_450_000, true)));
        check("2.0000000000000001e-06", Some((2_000_000, false)));
        check("5E-13", Some((0, false)));
        check("15e-13", Some((2, false)));
        check("-1", Some((-1_000_000_000_000, true)));
        check("2e+1", Some((20_000_000_000_000, true)));
        check("0", Some((0, true)));
        check("0e99", Some((0, true)));
        check("1e-99", Some((0, false)));
        check("1e99", None);
        check("NaN", None);
        check("", None);
        check("1e", None);
    }

    #[test]
    fn a_charge_is_rounded_once() {
        let factor = |text: &str| Factor::parse(text).unwrap();
        let check = |cost: &str, multiplier: &str, markup: &str, credit: &str, charged: &str| {
            let charged_here =
                charge(Usd::parse(cost).unwrap(), factor(multiplier), factor(markup), Usd::parse(credit).unwrap()).to_string();
            assert_eq!(charged_here, charged, "{cost} × {multiplier} × (1 + {markup}) / {credit}");
        };
        check("0.00001845", "1.0", "0.6", "0.001", "0.02952");
        check("0.01", "0.25", "0", "0.001", "2.5");
        // Half a unit of 10⁻⁹ credit at a credit of one dollar: to even.
        check("0.0000000005", "1", "0", "1", "0");
        check("0.0000000015", "1", "0", "1", "0.000000002");
        // Rounding after each step would give 0.000000001 × 1.6 = 0.000000002.
        check("0.0000000009", "1", "0.6", "1", "0.000000001");
        check("1", "1", "0", "3", "0.333333333");
        check("0", "1", "0.6", "0.001", "0");
        check("-1", "1", "0", "0.001", "0");
        check("1", "1", "0", "0", "0");
        check("999999999999", "1000000", "1000000", "0.001", "9223372036.854775807");
    }

    #[test]
    fn cents_for_the_billing_export() {
        assert_eq!(Usd::parse("0.123456789012").unwrap().cents(), "12.3456789012");
        assert_eq!(Usd::parse("1").unwrap().cents(), "100");
    }

    proptest! {
        #[test]
        fn printing_and_reading_is_the_identity(pico in -10i128.pow(29)..10i128.pow(29), nano: i64) {
            prop_assert_eq!(Usd::parse(&Usd(pico).to_string()), Ok(Usd(pico)));
            prop_assert_eq!(Credits::parse(&Credits(nano).to_string()), Ok(Credits(nano)));
            prop_assert_eq!(Usd::of_json_number(&Usd(pico).to_string()), Some(Usd(pico)));
        }

        #[test]
        fn the_wide_path_agrees_with_the_narrow_one(a: u64, b: u64, divisor in 1u128..) {
            let (a, b) = (u128::from(a), u128::from(b));
            prop_assert_eq!(wide_mul(a, b), (0, a * b));
            prop_assert_eq!(wide_div((0, a * b), divisor), Some((a * b / divisor, a * b % divisor)));
        }

        #[test]
        fn wide_division_undoes_wide_multiplication(a: u128, b in 1u128..) {
            prop_assert_eq!(wide_div(wide_mul(a, b), b), Some((a, 0)));
        }

        #[test]
        fn rounding_is_never_off_by_more_than_half(number in -10i128.pow(30)..10i128.pow(30), divisor in 1i128..10i128.pow(15)) {
            let rounded = div_half_even(number, divisor);
            let off = (rounded * divisor - number).abs() * 2;
            prop_assert!(off < divisor || (off == divisor && rounded % 2 == 0));
        }
    }
}

//! Balances in memory: a reservation is consumed by settle or release, by value.
//!
//! What a request can cost is set aside before it is sent and becomes a charge when it ends. An account keeps what is available (balance
//! less reservations) in one atomic, so a reservation is one compare-and-swap and two requests never spend the same credit.
//! A monthly cap counts charges and open reservations of a calendar month (UTC) in the same way. A request belongs to the month it
//! began in.
//!
//! An account without a grant has no budget: nothing is checked or taken. Once it has one, requests that began before do not
//! count against it.
//!
//! Deliberately absent: a clock (the month is passed in), and storage: grants and charges are rebuilt from the ledger.

use super::money::Credits;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One account's money.
#[derive(Debug, Default)]
pub struct Account {
    /// It was granted credits at least once.
    has_budget: AtomicBool,
    /// Balance less open reservations, in nano-credits.
    available: AtomicI64,
    /// Open reservations against the balance, in nano-credits.
    reserved: AtomicI64,
    /// This month and the one before, by parity of the month.
    months: [Month; 2],
    /// Held for a moment when a month begins.
    turn: Mutex<()>,
    /// Reservations dropped without settle or release.
    abandoned: AtomicU64,
}

/// A calendar month as a number: `year × 12 + month − 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonthIndex(pub u32);

/// When a reservation is made and what a month may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The month the request began in.
    pub month: MonthIndex,
    /// Credits a month at most; `None`: no cap.
    pub monthly_cap: Option<Credits>,
}

/// Credits set aside for one request. Settle it with the charge or release it; dropped, everything goes back and
/// [`Account::abandoned`] counts it.
#[derive(Debug)]
#[must_use = "settle or release it"]
pub struct Reservation {
    account: Arc<Account>,
    terms: Terms,
    /// What is set aside, in nano-credits.
    amount: i64,
    /// It is taken from the balance (the account had a budget when it was made).
    budgeted: bool,
    open: bool,
}

/// Not enough: what stood in the way and what is left there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// What stood in the way.
    pub by: ShortBy,
    /// What could have been reserved; zero when it owes.
    pub available: Credits,
}

/// What is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortBy {
    /// The balance.
    Balance,
    /// The monthly cap.
    MonthlyCap,
}

/// An account at one moment. Taken while requests run, the parts may be a moment apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balances {
    /// Grants less charges; `None`: no budget.
    pub balance: Option<Credits>,
    /// Open reservations.
    pub reserved: Credits,
    /// Charged this month.
    pub used_this_month: Credits,
}

/// Sums of one month. `number` is the month plus one, so that zero means "not begun".
#[derive(Debug, Default)]
struct Month {
    number: AtomicU32,
    /// Charges and open reservations, in nano-credits: what a cap is held against.
    committed: AtomicI64,
    /// Charges, in nano-credits.
    charged: AtomicI64,
}

impl Account {
    /// No grant, nothing used.
    pub fn new() -> Account {
        Account::default()
    }

    /// As rebuilt from the ledger: the balance (`None`: never granted) and what the month has cost so far.
    pub fn restored(balance: Option<Credits>, month: MonthIndex, charged: Credits) -> Account {
        let account = Account::default();
        if let Some(balance) = balance {
            account.grant(balance);
        }
        if let Some(sums) = account.month(month) {
            add(&sums.committed, charged.0);
            add(&sums.charged, charged.0);
        }
        account
    }

    /// Adds credits (or takes some, when negative) and gives the account a budget if it had none.
    pub fn grant(&self, amount: Credits) {
        add(&self.available, amount.0);
        // Release, after the credits are there: who sees the budget sees them.
        self.has_budget.store(true, Ordering::Release);
    }

    /// Sets `amount` aside, or says what is left. A negative amount counts as zero.
    pub fn reserve(self: &Arc<Account>, amount: Credits, terms: Terms) -> Result<Reservation, Short> {
        self.reserve_up_to(amount, amount, terms)
    }

    /// Sets as much aside as there is, at most `most`, or says what is left when that is less than `least`.
    pub fn reserve_up_to(self: &Arc<Account>, least: Credits, most: Credits, terms: Terms) -> Result<Reservation, Short> {
        let budgeted = self.has_budget.load(Ordering::Acquire);
        let mut reservation = Reservation { account: Arc::clone(self), terms, amount: 0, budgeted, open: true };
        match reservation.extend_up_to(least, most) {
            Ok(_) => Ok(reservation),
            Err(short) => {
                reservation.release();
                Err(short)
            }
        }
    }

    /// Charges without a reservation: what a request before a restart turned out to cost. Counts against the budget if there is one.
    pub fn charge(&self, amount: Credits, month: MonthIndex) {
        if self.has_budget.load(Ordering::Acquire) {
            add(&self.available, -amount.0);
        }
        if let Some(sums) = self.month(month) {
            add(&sums.committed, amount.0);
            add(&sums.charged, amount.0);
        }
    }

    /// Whether it was ever granted credits.
    pub fn has_budget(&self) -> bool {
        self.has_budget.load(Ordering::Acquire)
    }

    /// Where it stands in `month`.
    pub fn balances(&self, month: MonthIndex) -> Balances {
        let reserved = self.reserved.load(Ordering::Relaxed);
        let available = self.available.load(Ordering::Relaxed);
        Balances {
            balance: self.has_budget().then(|| Credits(available.saturating_add(reserved))),
            reserved: Credits(reserved),
            used_this_month: self.month(month).map_or(Credits::ZERO, |sums| Credits(sums.charged.load(Ordering::Relaxed))),
        }
    }

    /// Reservations dropped without settle or release: each is a defect of the caller, though no money is lost.
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// The sums of a month, begun if need be; `None` when a later month has taken their place (two months on, nobody asks).
    fn month(&self, month: MonthIndex) -> Option<&Month> {
        let number = month.0.saturating_add(1);
        let sums = &self.months[(month.0 % 2) as usize];
        // Acquire: who sees the number sees the sums at zero.
        if sums.number.load(Ordering::Acquire) < number {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if sums.number.load(Ordering::Relaxed) < number {
                sums.committed.store(0, Ordering::Relaxed);
                sums.charged.store(0, Ordering::Relaxed);
                sums.number.store(number, Ordering::Release);
            }
        }
        (sums.number.load(Ordering::Acquire) == number).then_some(sums)
    }

    /// What a month's cap still allows.
    fn room(&self, terms: Terms) -> Option<(&Month, i64)> {
        let cap = terms.monthly_cap?;
        let sums = self.month(terms.month)?;
        Some((sums, cap.0))
    }
}

impl Reservation {
    /// What is set aside.
    pub fn amount(&self) -> Credits {
        Credits(self.amount)
    }

    /// Whether it is taken from a balance.
    pub fn is_budgeted(&self) -> bool {
        self.budgeted
    }

    /// Whether at least this much could still be set aside. Another request may take it the next moment.
    pub fn leaves(&self, amount: Credits) -> bool {
        let capped =
            self.account.room(self.terms).is_none_or(|(sums, cap)| cap.saturating_sub(sums.committed.load(Ordering::Relaxed)) >= amount.0);
        capped && (!self.budgeted || self.account.available.load(Ordering::Relaxed) >= amount.0)
    }

    /// Sets more aside, all of it or none.
    pub fn extend(&mut self, amount: Credits) -> Result<(), Short> {
        self.extend_up_to(amount, amount).map(|_| ())
    }

    /// Sets more aside, as much as there is: at most `most`, and nothing when that is less than `least`. Returns how much.
    pub fn extend_up_to(&mut self, least: Credits, most: Credits) -> Result<Credits, Short> {
        let (least, most) = (least.0.max(0), most.0.max(0));
        let (account, terms) = (&*self.account, self.terms);
        let capped = match account.room(terms) {
            Some((sums, cap)) => {
                let taken = take(&sums.committed, least, most, |committed| cap.saturating_sub(committed), 1);
                taken.map_err(|available| Short { by: ShortBy::MonthlyCap, available })?
            }
            // Without a cap the sum is still kept: a later reload may set one.
            None => {
                if let Some(sums) = account.month(terms.month) {
                    add(&sums.committed, most);
                }
                most
            }
        };
        let taken = if self.budgeted { take(&account.available, least, capped, |available| available, -1) } else { Ok(capped) };
        let unused = capped - *taken.as_ref().unwrap_or(&0);
        if unused > 0
            && let Some(sums) = account.month(terms.month)
        {
            add(&sums.committed, -unused);
        }
        let taken = taken.map_err(|available| Short { by: ShortBy::Balance, available })?;
        if self.budgeted {
            add(&account.reserved, taken);
        }
        self.amount = self.amount.saturating_add(taken);
        Ok(Credits(taken))
    }

    /// The request ended and cost this; the rest goes back. A charge beyond the reservation is taken too, below zero if need be.
    pub fn settle(mut self, charge: Credits) {
        self.close(charge.0.max(0));
    }

    /// The request cost nothing: everything goes back.
    pub fn release(mut self) {
        self.close(0);
    }

    fn close(&mut self, charge: i64) {
        self.open = false;
        if self.budgeted {
            add(&self.account.reserved, -self.amount);
            add(&self.account.available, self.amount.saturating_sub(charge));
        }
        if let Some(sums) = self.account.month(self.terms.month) {
            add(&sums.committed, charge.saturating_sub(self.amount));
            add(&sums.charged, charge);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.account.abandoned.fetch_add(1, Ordering::Relaxed);
            self.close(0);
        }
    }
}

impl MonthIndex {
    /// The month of an instant, UTC (days to a civil date after H. Hinnant, "chrono-compatible low-level date algorithms").
    pub fn of_ms(now_ms: u64) -> MonthIndex {
        let days = now_ms / 86_400_000 + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March: the leap day is the last of the year.
        let march_month = (5 * day_of_year + 2) / 153;
        let year = year_of_era + era * 400 + u64::from(march_month >= 10);
        let month = (march_month + 2) % 12;
        MonthIndex(u32::try_from(year * 12 + month).unwrap_or(u32::MAX))
    }

    /// The calendar year.
    pub const fn year(self) -> u32 {
        self.0 / 12
    }

    /// The month of the year, from 1.
    pub const fn month(self) -> u32 {
        self.0 % 12 + 1
    }
}

/// Takes between `least` and `most` of what `room` leaves, in the direction of `sign`; or says what is left, zero at least.
fn take(sum: &AtomicI64, least: i64, most: i64, room: impl Fn(i64) -> i64, sign: i64) -> Result<i64, Credits> {
    let mut current = sum.load(Ordering::Relaxed);
    loop {
        let left = room(current).max(0);
        let taken = most.min(left);
        // Asking for nothing passes even when nothing is left: a free model stays usable.
        if taken < least {
            return Err(Credits(left));
        }
        match sum.compare_exchange_weak(current, current.saturating_add(sign * taken), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(taken),
            Err(changed) => current = changed,
        }
    }
}

/// Adds, and stays at the largest or smallest amount instead of wrapping into the opposite.
fn add(sum: &AtomicI64, amount: i64) {
    // The closure always returns a value, so the update cannot fail.
    let _ = sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |current| Some(current.saturating_add(amount)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MONTH: MonthIndex = MonthIndex(2026 * 12 + 10);
    const UNCAPPED: Terms = Terms { month: MONTH, monthly_cap: None };

    fn account(balance: i64) -> Arc<Account> {
        Arc::new(Account::restored(Some(Credits(balance)), MONTH, Credits(0)))
    }

    fn check(account: &Account, balance: i64, reserved: i64, used: i64) {
        let expected = Balances { balance: Some(Credits(balance)), reserved: Credits(reserved), used_this_month: Credits(used) };
        assert_eq!(account.balances(MONTH), expected);
    }

    #[test]
    fn what_is_reserved_cannot_be_reserved_again() {
        let account = account(100);
        let mut one = account.reserve(Credits(60), UNCAPPED).unwrap();
        let short = account.reserve(Credits(41), UNCAPPED).unwrap_err();
        assert_eq!(short, Short { by: ShortBy::Balance, available: Credits(40) });
        let two = account.reserve_up_to(Credits(1), Credits(500), UNCAPPED).unwrap();
        assert_eq!(two.amount(), Credits(40));
        assert!(one.extend(Credits(1)).is_err());
        check(&account, 100, 100, 0);
        two.release();
        one.extend(Credits(5)).unwrap();
        assert_eq!(one.extend_up_to(Credits(1), Credits(100)), Ok(Credits(35)));
        one.settle(Credits(7));
        check(&account, 93, 0, 7);
        assert_eq!(account.abandoned(), 0);
    }

    #[test]
    fn a_charge_beyond_its_reservation_is_still_taken() {
        let account = account(10);
        account.reserve(Credits(10), UNCAPPED).unwrap().settle(Credits(12));
        check(&account, -2, 0, 12);
        assert_eq!(account.reserve(Credits(1), UNCAPPED).unwrap_err().available, Credits(0));
        account.reserve(Credits(0), UNCAPPED).unwrap().settle(Credits(0));
        account.grant(Credits(5));
        check(&account, 3, 0, 12);
    }

    #[test]
    fn a_dropped_reservation_gives_everything_back_and_is_noticed() {
        let account = account(10);
        drop(account.reserve(Credits(4), UNCAPPED).unwrap());
        check(&account, 10, 0, 0);
        assert_eq!(account.abandoned(), 1);
    }

    #[test]
    fn without_a_grant_there_is_no_budget() {
        let account = Arc::new(Account::new());
        let before = account.reserve(Credits(1_000), UNCAPPED).unwrap();
        assert!(!before.is_budgeted());
        account.grant(Credits(5));
        assert!(account.reserve(Credits(6), UNCAPPED).is_err());
        before.settle(Credits(900));
        check(&account, 5, 0, 900);
        account.charge(Credits(2), MONTH);
        check(&account, 3, 0, 902);
    }

    #[test]
    fn a_cap_holds_charges_and_reservations_of_its_month() {
        let account = Arc::new(Account::restored(None, MONTH, Credits(70)));
        let terms = Terms { month: MONTH, monthly_cap: Some(Credits(100)) };
        let open = account.reserve(Credits(20), terms).unwrap();
        let short = account.reserve(Credits(11), terms).unwrap_err();
        assert_eq!(short, Short { by: ShortBy::MonthlyCap, available: Credits(10) });
        // The next month begins; the open request ends in the one it began in.
        let next = Terms { month: MonthIndex(MONTH.0 + 1), ..terms };
        account.reserve(Credits(100), next).unwrap().settle(Credits(30));
        open.settle(Credits(25));
        assert_eq!(account.balances(MONTH).used_this_month, Credits(95));
        assert_eq!(account.balances(next.month).used_this_month, Credits(30));
        assert!(account.reserve(Credits(71), next).is_err());
        // Two months on the first one's place is taken; a straggler changes nothing.
        let later = Terms { month: MonthIndex(MONTH.0 + 2), ..terms };
        let straggler = account.reserve(Credits(1), terms).unwrap();
        account.reserve(Credits(100), later).unwrap().release();
        straggler.settle(Credits(1));
        assert_eq!(account.balances(later.month).used_this_month, Credits(0));
        account.reserve(Credits(100), later).unwrap().release();
    }

    #[test]
    fn a_short_balance_takes_nothing_from_the_cap() {
        let account = account(10);
        let terms = Terms { month: MONTH, monthly_cap: Some(Credits(100)) };
        assert_eq!(account.reserve(Credits(90), terms).unwrap_err().by, ShortBy::Balance);
        account.reserve_up_to(Credits(1), Credits(90), terms).unwrap().release();
        account.grant(Credits(90));
        account.reserve(Credits(100), terms).unwrap().release();
    }

    #[test]
    fn what_is_left_is_what_balance_and_cap_allow() {
        let rich = account(1_000);
        let capped = Terms { month: MONTH, monthly_cap: Some(Credits(100)) };
        let (free, held) = (rich.reserve(Credits(10), UNCAPPED).unwrap(), rich.reserve(Credits(40), capped).unwrap());
        assert!(free.leaves(Credits(950)) && !free.leaves(Credits(951)));
        assert!(held.leaves(Credits(50)) && !held.leaves(Credits(51)));
        let unbudgeted = Arc::new(Account::new()).reserve(Credits(1), UNCAPPED).unwrap();
        assert!(unbudgeted.leaves(Credits(i64::MAX)));
        for open in [free, held, unbudgeted] {
            open.release();
        }
    }

    #[test]
    fn months_of_instants() {
        let check = |ms: u64, year: u32, month: u32| {
            let index = MonthIndex::of_ms(ms);
            assert_eq!((index.year(), index.month()), (year, month), "{ms}");
        };
        check(0, 1970, 1);
        check(1_709_164_800_000 - 1, 2024, 2);
        check(1_709_251_200_000 - 1, 2024, 2);
        check(1_709_251_200_000, 2024, 3);
        check(1_767_225_600_000 - 1, 2025, 12);
        check(1_767_225_600_000, 2026, 1);
        check(4_107_542_400_000 - 1, 2100, 2);
        check(4_107_542_400_000, 2100, 3);
    }

    /// One step of a request or an operator. `slot` picks among open reservations.
    #[derive(Debug, Clone)]
    enum Step {
        Reserve(i64),
        ReserveUpTo(i64, i64),
        Extend(usize, i64),
        Settle(usize, i64),
        Release(usize),
        Drop(usize),
        Grant(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..200i64).prop_map(Step::Reserve),
            (0..50i64, 0..400i64).prop_map(|(least, more)| Step::ReserveUpTo(least, least + more)),
            (any::<usize>(), 0..100i64).prop_map(|(slot, amount)| Step::Extend(slot, amount)),
            (any::<usize>(), 0..100i64).prop_map(|(slot, percent)| Step::Settle(slot, percent)),
            any::<usize>().prop_map(Step::Release),
            any::<usize>().prop_map(Step::Drop),
            (0..300i64).prop_map(Step::Grant),
        ]
    }

    /// Runs the steps; returns what was granted and charged. Every reservation is closed at the end.
    fn run(account: &Arc<Account>, terms: Terms, steps: &[Step]) -> (i64, i64) {
        let (mut granted, mut charged) = (0, 0);
        let mut open: Vec<Reservation> = Vec::new();
        let pick = |open: &mut Vec<Reservation>, slot: usize| (!open.is_empty()).then(|| open.swap_remove(slot % open.len()));
        for step in steps {
            match *step {
                Step::Reserve(amount) => open.extend(account.reserve(Credits(amount), terms)),
                Step::ReserveUpTo(least, most) => open.extend(account.reserve_up_to(Credits(least), Credits(most), terms)),
                Step::Extend(slot, amount) => {
                    if let Some(mut reservation) = pick(&mut open, slot) {
                        let _ = reservation.extend(Credits(amount));
                        open.push(reservation);
                    }
                }
                Step::Settle(slot, percent) => {
                    if let Some(reservation) = pick(&mut open, slot) {
                        let charge = reservation.amount().0 * percent / 100;
                        charged += charge;
                        reservation.settle(Credits(charge));
                    }
                }
                Step::Release(slot) => pick(&mut open, slot).into_iter().for_each(Reservation::release),
                Step::Drop(slot) => drop(pick(&mut open, slot)),
                Step::Grant(amount) => {
                    granted += amount;
                    account.grant(Credits(amount));
                }
            }
            let balances = account.balances(terms.month);
            assert!(account.available.load(Ordering::Relaxed) >= 0, "spent twice: {balances:?}");
        }
        open.into_iter().for_each(Reservation::release);
        (granted, charged)
    }

    proptest! {
        #[test]
        fn any_order_conserves_money(steps in proptest::collection::vec(step(), 0..80), cap in proptest::option::of(0..2_000i64)) {
            let account = account(500);
            let terms = Terms { month: MONTH, monthly_cap: cap.map(Credits) };
            let (granted, charged) = run(&account, terms, &steps);
            check(&account, 500 + granted - charged, 0, charged);
            prop_assert!(cap.is_none_or(|cap| charged <= cap));
            prop_assert_eq!(account.months[(MONTH.0 % 2) as usize].committed.load(Ordering::Relaxed), charged);
        }

        #[test]
        fn threads_at_once_conserve_money(lists in proptest::collection::vec(proptest::collection::vec(step(), 1..60), 2..5)) {
            let account = account(500);
            let terms = Terms { month: MONTH, monthly_cap: Some(Credits(3_000)) };
            let (granted, charged) = std::thread::scope(|scope| {
                let threads: Vec<_> = lists.iter().map(|steps| scope.spawn(|| run(&account, terms, steps))).collect();
                threads.into_iter().fold((0, 0), |(granted, charged), thread| {
                    let (more_granted, more_charged) = thread.join().unwrap();
                    (granted + more_granted, charged + more_charged)
                })
            });
            check(&account, 500 + granted - charged, 0, charged);
            prop_assert!(charged <= 3_000);
        }
    }
}

//! Any interleaving of grants, requests, reloads and crashes conserves money.

use super::*;
use crate::engine::budget::Reservation;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Grant(i64),
    Begin(i64),
    Progress(usize, i64),
    Extend(usize, i64),
    End(usize, i64),
    /// As a change noted by another process.
    Refresh,
    Flush,
    /// An orderly end and a new start.
    Restart,
    /// A killed process and a new start.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (-500i64..2000).prop_map(Step::Grant),
        6 => (0i64..300).prop_map(Step::Begin),
        3 => (any::<usize>(), 0i64..300).prop_map(|(at, charge)| Step::Progress(at, charge)),
        2 => (any::<usize>(), 0i64..300).prop_map(|(at, more)| Step::Extend(at, more)),
        6 => (any::<usize>(), 0i64..300).prop_map(|(at, charge)| Step::End(at, charge)),
        2 => Just(Step::Refresh),
        2 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

struct Running {
    ticket: Ticket,
    reservation: Reservation,
    /// What a crash would charge.
    progress: i64,
}

struct World {
    folder: tempfile::TempDir,
    store: Store,
    ledger: Ledger,
    running: Vec<Running>,
    next: u32,
    /// The model: `None` before the first grant.
    balance: Option<i64>,
    charged: i64,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let store = store_in(folder.path());
        let ledger = Ledger::start(&store, settings()).unwrap();
        World { folder, store, ledger, running: Vec::new(), next: 0, balance: None, charged: 0 }
    }

    fn facts(&self) -> Facts {
        row("", "acme", 0).facts
    }

    fn month(&self) -> MonthIndex {
        MonthIndex::of_ms(self.facts().started_ms)
    }

    fn charge(&mut self, budgeted: bool, charge: i64) {
        self.charged += charge;
        if budgeted {
            self.balance = self.balance.map(|balance| balance - charge);
        }
    }

    fn refresh(&self) {
        self.ledger.accounts().refresh(&self.store, &["acme"], self.facts().started_ms).unwrap();
    }

    fn step(&mut self, step: Step) {
        let count = self.running.len();
        match step {
            Step::Grant(amount) => {
                self.store.write(|tx| grant(tx, "acme", Credits(amount), "", 0)).unwrap();
                self.balance = Some(self.balance.unwrap_or(0) + amount);
                self.refresh();
            }
            Step::Begin(amount) => {
                let terms = Terms { month: self.month(), monthly_cap: None };
                let Ok(reservation) = self.ledger.accounts().of("acme").reserve(Credits(amount), terms) else { return };
                let mut facts = self.facts();
                facts.request_id = format!("r{}", self.next).into();
                facts.reserved = reservation.is_budgeted().then(|| reservation.amount());
                self.next += 1;
                let ticket = self.ledger.open(facts).unwrap();
                self.running.push(Running { ticket, reservation, progress: 0 });
            }
            Step::Progress(at, charge) if count > 0 => {
                let running = &mut self.running[at % count];
                // Long after the last one, so that it is due.
                let due_ms = u64::from(self.next) * 10_000 + running.progress as u64 + at as u64 % 7;
                running.ticket.progress(due_ms, || {
                    running.progress = charge;
                    Outcome { charge: Credits(charge), ..Outcome::default() }
                });
            }
            Step::Extend(at, more) if count > 0 => {
                let _ = self.running[at % count].reservation.extend(Credits(more));
            }
            Step::End(at, charge) if count > 0 => {
                let running = self.running.swap_remove(at % count);
                self.charge(running.reservation.is_budgeted(), charge);
                running.reservation.settle(Credits(charge));
                let _ = running.ticket.close(Outcome { charge: Credits(charge), end: End::Complete, ..Outcome::default() });
            }
            Step::Refresh => self.refresh(),
            Step::Flush => assert!(self.ledger.flush()),
            Step::Restart => {
                for running in std::mem::take(&mut self.running) {
                    running.reservation.release();
                    let _ = running.ticket.close(Outcome::default());
                }
                self.ledger.shutdown();
                self.ledger = Ledger::start(&self.store, settings()).unwrap();
            }
            Step::Crash => {
                let crashed = image(&self.store);
                for running in std::mem::take(&mut self.running) {
                    self.charge(running.reservation.is_budgeted(), running.progress);
                    running.reservation.release();
                }
                self.ledger.shutdown();
                self.store = store_in(crashed.path());
                self.folder = crashed;
                self.ledger = Ledger::start(&self.store, settings()).unwrap();
            }
            Step::Progress(..) | Step::Extend(..) | Step::End(..) => {}
        }
    }

    fn check(&self) {
        let balances = self.ledger.accounts().of("acme").balances(self.month());
        let reserved: i64 = self.running.iter().filter(|r| r.reservation.is_budgeted()).map(|r| r.reservation.amount().0).sum();
        assert_eq!(balances.balance.map(|balance| balance.0), self.balance);
        assert_eq!((balances.used_this_month.0, balances.reserved.0), (self.charged, reserved));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn money_is_conserved(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.ledger.flush();
        assert_consistent(&world.store);
        assert_eq!(balance(&world.store, "acme"), world.balance);
        world.step(Step::Crash);
        world.check();
        world.ledger.flush();
        assert_consistent(&world.store);
        assert_eq!(balance(&world.store, "acme"), world.balance);
        world.ledger.shutdown();
        prop_assert!(world.folder.path().exists());
    }
}

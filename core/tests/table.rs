//! The rules of sharing under random operations: what must hold after every one of them.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use ringfence_core::table::{Answer, CLAIM_WINDOW, Effects, Entry, Op, Refusal, Seat, Table};
use ringfence_core::{
    BootInstant, FencingToken, HolderInfo, LockName, Mode, Nonce, RecordGuard, RecordKey, Ttl, Version,
};

const TTL: Duration = Duration::from_secs(10);

fn name(index: u8) -> LockName {
    LockName::new(["a", "b"][usize::from(index % 2)]).unwrap()
}

fn nonce(number: u8) -> Nonce {
    Nonce::from_u64(u64::from(number) + 1).unwrap()
}

fn instant(seconds: u64) -> BootInstant {
    BootInstant::from_nanos(0).saturating_add(Duration::from_secs(seconds))
}

fn entry(lock: u8, mode: Mode, waits: bool, attempt: u8, session: u8, at: u64) -> Entry {
    Entry {
        name: name(lock),
        mode,
        ttl: Ttl::new(TTL).unwrap(),
        waits,
        nonce: nonce(attempt),
        session: nonce(session),
        holder: HolderInfo::new("test", "host", 1).unwrap(),
        at: instant(at),
    }
}

fn table() -> Table {
    let mut table = Table::default();
    table.apply(Op::Reserve { upto: 1 << 20 });
    table.apply(Op::Commit { from: 1, upto: 1 << 20, at: instant(0) });
    table
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::Exclusive),
        Just(Mode::Shared),
        (1_u32..4).prop_map(|limit| Mode::permit(limit).unwrap())
    ]
}

/// One step of the random walk; the clock moves by the number of seconds.
#[derive(Clone, Debug)]
enum Step {
    Enter { lock: u8, mode: Mode, waits: bool, session: u8 },
    Renew(prop::sample::Index),
    Release(prop::sample::Index),
    Downgrade(prop::sample::Index),
    Evict(prop::sample::Index),
    Settle(u8),
    Bury(u8),
    Write(prop::sample::Index),
    Reopen,
}

fn step() -> impl Strategy<Value = (Step, u64)> {
    let any_attempt = || any::<prop::sample::Index>();
    let step = prop_oneof![
        6 => (0_u8..2, mode(), any::<bool>(), 0_u8..4)
            .prop_map(|(lock, mode, waits, session)| Step::Enter { lock, mode, waits, session }),
        3 => any_attempt().prop_map(Step::Renew),
        4 => any_attempt().prop_map(Step::Release),
        1 => any_attempt().prop_map(Step::Downgrade),
        1 => any_attempt().prop_map(Step::Evict),
        1 => (0_u8..2).prop_map(Step::Settle),
        1 => (0_u8..4).prop_map(Step::Bury),
        3 => any_attempt().prop_map(Step::Write),
        1 => Just(Step::Reopen),
    ];
    (step, prop_oneof![4 => Just(0_u64), 2 => Just(1), 1 => 2_u64..20])
}

/// Nobody holds beside somebody it does not tolerate.
fn check_holders(table: &Table, now: BootInstant) -> Result<(), TestCaseError> {
    for lock in 0..2 {
        let holders = table.state(&name(lock), now).holders;
        let count = |wanted: fn(&Mode) -> bool| holders.iter().filter(|holder| wanted(&holder.mode)).count();
        let exclusive = count(|mode| *mode == Mode::Exclusive);
        let shared = count(|mode| *mode == Mode::Shared);
        let kinds = usize::from(exclusive > 0)
            + usize::from(shared > 0)
            + usize::from(count(|mode| matches!(mode, Mode::Permit(_))) > 0);
        prop_assert!(kinds <= 1, "modes mix: {holders:?}");
        prop_assert!(exclusive <= 1, "two exclusive holders: {holders:?}");
        for holder in &holders {
            if let Mode::Permit(limit) = holder.mode {
                prop_assert!(holders.len() <= limit.get() as usize, "too many permits: {holders:?}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn sharing_keeps_its_rules(steps in prop::collection::vec(step(), 1..60)) {
        let mut table = table();
        let (mut now, mut attempts) = (0, 0_u8);
        let mut numbers: HashMap<Nonce, u64> = HashMap::new();
        // The highest token that each lock's record took.
        let mut marks: HashMap<LockName, u64> = HashMap::new();
        for (step, seconds) in steps {
            now += seconds;
            let at = instant(now);
            let pick = |index: &prop::sample::Index| nonce(u8::try_from(index.index(usize::from(attempts.max(1)))).unwrap());
            match step {
                Step::Enter { lock, mode, waits, session } => {
                    let (answer, _) = table.apply(Op::Enter(entry(lock, mode, waits, attempts, 100 + session, now)));
                    prop_assert!(waits || answer != Answer::Waiting);
                    prop_assert_eq!(answer == Answer::Held, table.grant(nonce(attempts)).is_some());
                    attempts += 1;
                }
                Step::Renew(attempt) => {
                    let (answer, _) = table.apply(Op::Renew { nonce: pick(&attempt), at });
                    if let Some(grant) = table.grant(pick(&attempt)) {
                        prop_assert_eq!(answer, Answer::Held);
                        prop_assert_eq!(grant.deadline, at.saturating_add(TTL));
                    }
                }
                Step::Release(attempt) => {
                    table.apply(Op::Release { nonce: pick(&attempt), at });
                    prop_assert!(!table.knows(pick(&attempt)));
                    let (again, _) = table.apply(Op::Release { nonce: pick(&attempt), at });
                    prop_assert_eq!(again, Answer::NotHeld);
                }
                Step::Downgrade(attempt) => {
                    table.apply(Op::Downgrade { nonce: pick(&attempt), at });
                }
                Step::Evict(attempt) => {
                    for lock in 0..2 {
                        table.apply(Op::Evict { name: name(lock), nonce: pick(&attempt), at });
                    }
                    prop_assert!(table.grant(pick(&attempt)).is_none());
                }
                Step::Settle(lock) => {
                    table.apply(Op::Settle { name: name(lock), at });
                    prop_assert!(table.next_deadline(&name(lock)).is_none_or(|deadline| deadline > at));
                }
                Step::Bury(session) => {
                    table.apply(Op::Bury { session: nonce(100 + session), at });
                    prop_assert!(!table.knows_session(nonce(100 + session)));
                }
                Step::Write(attempt) => {
                    let Some(&number) = numbers.get(&pick(&attempt)) else { continue };
                    let token = FencingToken::of_grant(number, pick(&attempt)).unwrap();
                    for lock in 0..2 {
                        let key = RecordKey::of(name(lock));
                        let guard = RecordGuard::LiveLease;
                        let before: Option<Vec<String>> = table
                            .is_open(&key, token, guard, at)
                            .then(|| table.pieces().map(|piece| format!("{piece:?}")).collect());
                        let (opened, effects) = table.apply(Op::Open { key: key.clone(), token, guard, at });
                        if let Some(before) = before {
                            prop_assert_eq!(&opened, &Answer::Opened);
                            prop_assert_eq!(effects, Effects::default());
                            let after: Vec<String> = table.pieces().map(|piece| format!("{piece:?}")).collect();
                            prop_assert_eq!(before, after, "what is open already changes nothing");
                        }
                        prop_assert_eq!(table.is_open(&key, token, guard, at), opened == Answer::Opened);
                        let value = Bytes::from_static(b"value");
                        let (written, _) = table.apply(Op::Write { key: key.clone(), token, value, at });
                        prop_assert_eq!(opened == Answer::Opened, matches!(written, Answer::Written(_)));
                        if opened == Answer::Opened {
                            let grant = table.grant(pick(&attempt));
                            prop_assert!(grant.is_some_and(|grant| grant.number == number && grant.deadline > at));
                            let mark = marks.entry(name(lock)).or_default();
                            prop_assert!(token.sequence() >= *mark, "a lower token than {mark} was taken: {token}");
                            *mark = token.sequence();
                        }
                    }
                }
                Step::Reopen => table = table.pieces().collect(),
            }
            check_holders(&table, at)?;
            for attempt in 0..attempts {
                if let Some(grant) = table.grant(nonce(attempt))
                    && numbers.insert(grant.nonce, grant.number).is_none()
                {
                    prop_assert!(grant.number > 0);
                }
            }
            let mut granted: Vec<u64> = numbers.values().copied().collect();
            granted.sort_unstable();
            granted.dedup();
            prop_assert_eq!(granted.len(), numbers.len(), "two grants have one number");
        }
    }

    /// A line in which all wait for the same is served in the order in which it came.
    #[test]
    fn a_line_is_first_come_first_served(modes in prop::collection::vec(mode(), 2..12)) {
        let mut table = table();
        for (attempt, mode) in (0_u8..).zip(&modes) {
            table.apply(Op::Enter(entry(0, *mode, true, attempt, attempt, 0)));
        }
        let mut order = Vec::new();
        while let Some(next) = (0..u8::try_from(modes.len()).unwrap())
            .filter_map(|attempt| table.grant(nonce(attempt)))
            .min_by_key(|grant| grant.number)
            .map(|grant| grant.nonce)
        {
            order.push(next);
            table.apply(Op::Release { nonce: next, at: instant(0) });
        }
        let came: Vec<Nonce> = (0..u8::try_from(modes.len()).unwrap()).map(nonce).collect();
        prop_assert_eq!(order, came);
    }
}

#[test]
fn an_offer_that_nobody_claims_passes_to_the_next_after_its_window() {
    let mut table = table();
    for attempt in 0..3 {
        table.apply(Op::Enter(entry(0, Mode::Exclusive, true, attempt, attempt, 0)));
    }
    let (_, effects) = table.apply(Op::Release { nonce: nonce(0), at: instant(1) });
    assert_eq!(effects.offered[0].nonce, nonce(1));
    let lapses = instant(1).saturating_add(CLAIM_WINDOW);
    assert_eq!(table.next_deadline(&name(0)), Some(lapses));
    let (_, effects) = table.apply(Op::Settle { name: name(0), at: lapses });
    assert_eq!((effects.ended[0].nonce, effects.offered[0].nonce), (nonce(1), nonce(2)));
    // A claim that comes too late is none.
    assert_eq!(table.apply(Op::Renew { nonce: nonce(1), at: lapses }).0, Answer::NotHeld);
    assert_eq!(table.apply(Op::Renew { nonce: nonce(2), at: lapses }).0, Answer::Held);
}

#[test]
fn a_release_is_news_for_the_next_in_line_and_for_nobody_else() {
    let mut table = table();
    for attempt in 0..50 {
        table.apply(Op::Enter(entry(0, Mode::Exclusive, true, attempt, attempt, 0)));
    }
    for holder in 0..49 {
        table.apply(Op::Renew { nonce: nonce(holder), at: instant(0) });
        let (_, effects) = table.apply(Op::Release { nonce: nonce(holder), at: instant(0) });
        let next = nonce(holder + 1);
        assert_eq!(
            effects,
            Effects { offered: vec![Seat { nonce: next, session: next }], ..Effects::default() }
        );
    }
}

#[test]
fn no_grant_has_a_number_that_is_not_durable() {
    let mut table = Table::default();
    let (answer, _) = table.apply(Op::Enter(entry(0, Mode::Exclusive, true, 0, 0, 0)));
    assert_eq!(answer, Answer::ShortOfNumbers);
    table.apply(Op::Reserve { upto: 2 });
    assert_eq!(table.apply(Op::Enter(entry(0, Mode::Exclusive, false, 0, 0, 0))).0, Answer::ShortOfNumbers);
    table.apply(Op::Commit { from: 1, upto: 2, at: instant(0) });
    assert_eq!(table.apply(Op::Enter(entry(0, Mode::Exclusive, true, 0, 0, 0))).0, Answer::Held);
    assert_eq!(table.apply(Op::Enter(entry(0, Mode::Exclusive, true, 1, 1, 0))).0, Answer::Waiting);
    // The next in line has to wait for a number as well, through a reopening too.
    table.apply(Op::Release { nonce: nonce(0), at: instant(0) });
    assert!(table.grant(nonce(1)).is_none());
    let mut table: Table = table.pieces().collect();
    table.apply(Op::Reserve { upto: 4 });
    let (_, effects) = table.apply(Op::Commit { from: 0, upto: 4, at: instant(0) });
    assert_eq!(effects.offered[0].nonce, nonce(1));
}

/// A process that read everything and one that began with a snapshot must number the same grants alike.
#[test]
fn a_table_that_was_read_from_its_pieces_numbers_alike() {
    let waits = |table: &mut Table, lock: u8, attempt: u8| {
        table.apply(Op::Enter(entry(lock, Mode::Exclusive, true, attempt, attempt, 0)))
    };
    let release =
        |table: &mut Table, attempt| table.apply(Op::Release { nonce: nonce(attempt), at: instant(0) });
    let mut table = Table::default();
    table.apply(Op::Reserve { upto: 4 });
    table.apply(Op::Commit { from: 1, upto: 4, at: instant(0) });
    // The place of the first name is free when the snapshot is taken, and is taken again after it.
    waits(&mut table, 0, 0);
    waits(&mut table, 1, 1);
    waits(&mut table, 1, 2);
    release(&mut table, 0);
    let mut reread: Table = table.pieces().collect();
    let numbers = |table: &mut Table| {
        waits(table, 0, 3);
        waits(table, 0, 4);
        release(table, 1);
        release(table, 3);
        assert!(table.grant(nonce(2)).is_none() && table.grant(nonce(4)).is_none(), "no number is left");
        table.apply(Op::Reserve { upto: 8 });
        table.apply(Op::Commit { from: 0, upto: 8, at: instant(0) });
        [2, 4].map(|attempt| table.grant(nonce(attempt)).unwrap().number)
    };
    assert_eq!(numbers(&mut table), numbers(&mut reread));
}

#[test]
fn equal_sequences_of_two_holders_are_a_collision_in_both_directions() {
    let mut table = table();
    table.apply(Op::Enter(entry(0, Mode::Exclusive, true, 0, 0, 0)));
    let token = table.grant(nonce(0)).unwrap().token();
    let twin = FencingToken::new(token.sequence(), nonce(7)).unwrap();
    let key = RecordKey::of(name(0));
    let guard = RecordGuard::LiveLease;
    let open = |token| Op::Open { key: key.clone(), token, guard, at: instant(0) };
    assert_eq!(table.apply(open(twin)).0, Answer::Refused(Refusal::Collision(token)));
    assert_eq!(table.apply(open(token)).0, Answer::Opened);
    assert_eq!(table.apply(open(twin)).0, Answer::Refused(Refusal::Collision(token)));
}

/// The record of a lock that lives elsewhere: no lease of this table has anything to do with it.
#[test]
fn a_record_for_a_lock_elsewhere_checks_its_mark_and_no_lease() {
    const GUARDS: [RecordGuard; 2] = [RecordGuard::HighWaterMark, RecordGuard::LiveLease];
    let mut table = table();
    let at = instant(0);
    let token = |sequence, holder| FencingToken::new(sequence, nonce(holder)).unwrap();
    let (low, twin, mark, high) = (token(6, 1), token(7, 1), token(7, 2), token(8, 3));
    let key = RecordKey::of(name(0));
    let open =
        |table: &mut Table, token, guard| table.apply(Op::Open { key: key.clone(), token, guard, at }).0;
    let write = |table: &mut Table, token| {
        table.apply(Op::Write { key: key.clone(), token, value: Bytes::from_static(b"value"), at }).0
    };
    let below = |mark| Answer::Refused(Refusal::BelowMark(mark));
    let collides = |mark| Answer::Refused(Refusal::Collision(mark));

    assert_eq!(write(&mut table, mark), Answer::Refused(Refusal::NotOpened));
    assert_eq!(open(&mut table, mark, GUARDS[0]), Answer::Opened);
    // What is settled stays so through a reopening, and nobody's setting weakens or strengthens it.
    let mut table: Table = table.pieces().collect();
    for (token, refused) in [(low, below(mark)), (twin, collides(mark))] {
        assert_eq!(open(&mut table, token, GUARDS[0]), refused);
        assert_eq!(write(&mut table, token), refused);
    }
    assert_eq!(write(&mut table, high), Answer::Refused(Refusal::NotOpened));
    assert_eq!(open(&mut table, high, GUARDS[1]), Answer::Refused(Refusal::OtherGuard(GUARDS[0])));
    assert_eq!(write(&mut table, mark), Answer::Written(Version(1)));
    assert_eq!(open(&mut table, high, GUARDS[0]), Answer::Opened);
    assert_eq!(write(&mut table, mark), below(high));
    assert_eq!(write(&mut table, high), Answer::Written(Version(2)));

    // The other way round.
    table.apply(Op::Enter(entry(1, Mode::Exclusive, true, 0, 0, 0)));
    let held = table.grant(nonce(0)).unwrap().token();
    let key = RecordKey::of(name(1));
    let mut open = |guard| table.apply(Op::Open { key: key.clone(), token: held, guard, at }).0;
    assert_eq!(open(GUARDS[1]), Answer::Opened);
    assert_eq!(open(GUARDS[0]), Answer::Refused(Refusal::OtherGuard(GUARDS[1])));
}
